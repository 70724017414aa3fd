"""Stage 3 of Deep Compression: encode the shared model, decode it again, and check what is handed in."""
import argparse
import glob
import io
import os
import shlex
import zipfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from net.command_line import PRUNED, SHARED

import util
from net import command_line
from net.compact import compact_from_model, live_network_from_compact, model_from_compact
from net.data import DOWNLOAD_FOLDER, load_images, load_photo, normalize
from net.errors import UserError
from net.export import check_format, export
from net.files import one_run_per_folder, replace_file
from net.huffmancoding import huffman_decode_model, huffman_encode_model, naming
from net.models import AlexNet, save_model
from net.statistics import entropy_table, read_streams

DIRECTORY = 'encodings/'
PRETRAINED = {path.stem: path for path in sorted(Path(__file__).with_name('net').glob('pretrained/*.dcan'))}
CIFAR10_CLASSES = 'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'

DECODING = 'from_compact', 'classify', 'export'  # flags that only decode a compact file

EXAMPLES = """\
  python huffman_coding.py --student-id b08902000
  python huffman_coding.py --classify photo.png"""


# ---- arguments -------------------------------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = arguments.Parser(__doc__, ['data', 'output', 'only decode a compact file'], EXAMPLES)
    command_line.add_common_arguments(parser)
    parser.groups['data'].add_argument('--load-model-path', metavar='FILE', default=SHARED, help='shared model')
    add = parser.groups['output'].add_argument
    add('--student-id', type=student_id, metavar='ID', help='write the files to hand in: ID.ptmodel and ID.zip')
    add('--compact', type=command_line.output_file, metavar='FILE', help='write the model as one small file, too')
    add = parser.groups['only decode a compact file'].add_argument
    add('--from-compact', metavar='FILE', help='the file, or the name of one that comes with the scripts: '
        f'{", ".join(PRETRAINED)} (without this, --classify and --export take smallest)')
    add('--save-model-path', metavar='FILE', help='where to write the model of --from-compact')
    add('--classify', nargs='*', metavar='IMAGE', help='measure its accuracy, if the data is there, and say what these '
        'images show')
    add('--export', type=export_file, metavar='FILE', help='write its live units as a network for other programs, '
        'FILE.onnx or FILE.pt2 (torch.export)')
    args = parser.parse_args(argv)
    if args.save_model_path is not None and args.from_compact is None:
        parser.error('--save-model-path goes with --from-compact, got only the first')
    asked = [args.save_model_path, args.classify, args.export]
    if args.from_compact is not None and not any(value is not None for value in asked):
        parser.error('--from-compact goes with --save-model-path, --classify or --export, got none of them')
    for flag in DECODING:
        for other in 'student_id', 'compact', 'figures', 'log', 'load_model_path':
            if getattr(args, flag) is not None and getattr(args, other) != parser.get_default(other):
                parser.error(f'{command_line.flag(flag)} only decodes a compact file, got {command_line.flag(other)}')
    return args


def student_id(text):
    """An argparse type: letters and digits, since the id becomes a file name."""
    if not (text.isascii() and text.isalnum()):
        raise argparse.ArgumentTypeError(f'must be letters and digits, got {text!r}')
    return text


def export_file(path):
    """An argparse type: a file in a format that the network can be exported to."""
    try:
        check_format(path)
    except UserError as error:
        raise argparse.ArgumentTypeError(error) from None
    return command_line.output_file(path)


# ---- compact files ---------------------------------------------------------------------------------------------------

def check_lossless(model, decoded):
    """Raise RuntimeError unless all parameters of the two models are the same, bit for bit."""
    decoded_params = dict(decoded.named_parameters())
    for name, param in model.named_parameters():
        if not torch.equal(param.data.view(torch.int32), decoded_params[name].data.view(torch.int32)):
            raise RuntimeError(f'{name} differs after decoding: the encoding is not lossless')


def write_compact(model, path):
    """Write the compact file, which takes its place only after it was read back and found lossless."""
    with replace_file(path) as file:
        file.write(compact_from_model(model))
        file.flush()
        check_lossless(model, load_compact(file.name).to(next(model.parameters()).device))
    n_bytes, original = Path(path).stat().st_size, sum(4 * param.numel() for param in model.parameters())
    print(f'{path}: {n_bytes} bytes of {original}, {original / n_bytes:.2f}x, every parameter came back bit for bit')


def load_compact(path, decode=model_from_compact):
    """Read an AlexNet, or its live units alone, from a compact file; UserError, naming the file, if it is none."""
    with naming(path):
        data = Path(path).read_bytes()
        if data[:4] == b'PK\3\4':  # a zip archive
            raise UserError('a .ptmodel, expected a compact file: name it with --load-model-path')
        return decode(data)


def decode_compact(args, device):
    """All that --from-compact, --classify and --export ask for."""
    name = args.from_compact or 'smallest'
    path, classes = (PRETRAINED[name], CIFAR10_CLASSES) if name in PRETRAINED else (name, None)
    photos = {name: load_photo(name) for name in expand(args.classify or [])}  # before anything is decoded
    images = find_test_images(args, photos, classes)
    if args.save_model_path is not None:
        save_model(load_compact(path).to(device), args.save_model_path)
        print(f'Wrote {args.save_model_path}')
    if args.classify is not None or args.export is not None:
        network = load_compact(path, live_network_from_compact).to(device)
        print(f'{path}: {Path(path).stat().st_size} bytes, decoded')
        classes = images.classes if images else classes or tuple(map(str, range(network.n_classes)))
        use_network(network, photos, images, classes, args)


def use_network(network, photos, images, classes, args):
    if args.classify is not None and images:
        util.test(network, images=images)
    classify(network, photos, classes)
    if args.export is not None:
        export(network, classes, args.export)
        print(f'Wrote {args.export}')


def find_test_images(args, photos, classes):
    """The test images for --classify, or for the names of the classes in --export; None if they are not needed, or if
    there are none at the default place. UserError if they are not of the `classes`, where these are known.
    """
    if args.classify is None and (args.export is None or args.data == DOWNLOAD_FOLDER):
        return None
    try:
        images = load_images(args.data, train=False, download=False)
    except FileNotFoundError:
        if args.data != DOWNLOAD_FOLDER:
            raise
        if not photos:
            raise UserError(f'--classify needs images to look at, or a test set to measure the accuracy on, '
                            f'got neither: there is none in {args.data!r}') from None
        print(f'There are no images in {args.data!r} to measure the accuracy on')
        return None
    if classes and images.classes != classes:
        raise UserError(f'{args.data}: the network knows {", ".join(classes)}, '
                        f'the images are {", ".join(images.classes)}')
    return images


def expand(patterns):
    """Paths, and what patterns such as *.png match, which some shells hand over as they are."""
    paths = []
    for pattern in patterns:
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))
        if not matches:
            raise UserError(f'{pattern}: no such image')
        paths += matches
    return paths


def classify(model, photos, classes):
    """Print what each of the photos, by its name, shows."""
    device = next(model.parameters()).device
    model.eval()
    for name, photo in photos.items():
        with torch.no_grad():
            probabilities = model(normalize(photo.to(device)))[0].exp()
        likely = probabilities.argsort(descending=True)[:3].tolist()
        print(f'{name}: ' + ', '.join(f'{classes[i]} {100 * probabilities[i]:.1f} %' for i in likely))


# ---- what is handed in -----------------------------------------------------------------------------------------------

class Check(NamedTuple):
    """One of the grader's checks."""
    expected: str
    found: str
    passed: bool
    points: str


def submission_checks(model, accuracy_before, accuracy_after):
    """What the grader will look at, in its order (the homework's points)."""
    convs = [param for param in model.parameters() if param.dim() == 4]
    zeros = sum(int((weight == 0).sum()) for weight in convs)
    distinct = [len(torch.unique(weight)) for weight in convs]
    return [
        Check('a plain torch.load reads the model', *plain_load(model), 'required'),
        Check('some convolution weight is zero', f'{zeros} zeros', zeros > 0, '70 points'),
        Check('33 distinct values per convolution, on average', ', '.join(map(str, distinct)),
              sum(distinct) == 33 * len(distinct), '10 points'),
        Check('decoding keeps the accuracy', f'{accuracy_before:.2f}% -> {accuracy_after:.2f}%',
              accuracy_before == accuracy_after, '10 points'),
        Check('accuracy above 58% enters the ranking', f'{accuracy_after:.2f}%', accuracy_after > 58,
              '10 points in the top third, 5 in the middle'),
    ]


def plain_load(model):
    """Save and load as the grader does -> (what came back, whether it is an AlexNet)."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)  # safe: these are the bytes just written
    return type(loaded).__name__, isinstance(loaded, AlexNet)


def write_submission(model, args):
    """Write the two files to hand in, the model and an archive of the net/ folder, and say which grader they suit."""
    model_path, archive_path = f'{args.student_id}.ptmodel', f'{args.student_id}.zip'
    save_model(model, model_path)
    with replace_file(archive_path) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(Path(__file__).with_name('net').glob('*.py')):
            archive.write(path, f'net/{path.name}')
    print(f'Wrote {model_path} and {archive_path}')
    given = [] if args.data == DOWNLOAD_FOLDER else ['--data', args.data]
    given += [] if args.load_model_path == SHARED else ['--load-model-path', args.load_model_path]
    command = shlex.join(['python', 'huffman_coding.py', *given, '--student-id', args.student_id])
    if next(model.parameters()).is_cuda:
        print(f'{model_path} remembers the GPU. For a grader without one: {command} --no-cuda')
    else:
        print(f'{model_path} remembers the CPU. For a grader with a GPU, copy {args.load_model_path} to a machine with '
              f'a GPU and run there: {command}')


def draw_figures(model, streams, folder):
    from net import figures  # matplotlib takes a second to import
    biases = {name: 4 * layer.bias.numel() for name, layer in model.layers()}
    original = {name: biases[name] + 4 * layer.weight.numel() for name, layer in model.layers()}
    print('Wrote', figures.draw_bytes(streams, biases, original, folder))
    print('Wrote', figures.draw_code_lengths(streams, folder))


# ---- the whole stage -------------------------------------------------------------------------------------------------

def main(argv=None):
    args = parse_args(argv)
    device = command_line.pick_device(args.no_cuda)
    if any(getattr(args, flag) is not None for flag in DECODING):
        decode_compact(args, device)
        return
    with one_run_per_folder():
        run_stage(args, device, command_line.header('huffman_coding.py', argv))


def run_stage(args, device, header):
    """From the shared model to `encodings/`, and back."""
    model = command_line.load_input(args.load_model_path, SHARED, 'weight_share.py', device)
    if args.load_model_path == SHARED and Path(PRUNED).exists() and os.path.getmtime(PRUNED) > os.path.getmtime(SHARED):
        print(f'Note: {PRUNED} is newer than {SHARED}: if you want it encoded, run weight_share.py first')
    test_images = load_images(args.data, train=False).to(device)
    report = partial(command_line.report, images=test_images, log=args.log)
    util.log(header, args.log)
    print('--- Accuracy before encoding ---')
    accuracy_before = report('Accuracy_before_encoding', model)
    if args.compact:
        print('--- Compact file ---')
        write_compact(model, args.compact)
    print('--- Start encoding ---')
    huffman_encode_model(model, DIRECTORY, args.log)
    with command_line.already_written(DIRECTORY, *filter(None, [args.compact])):
        print_statistics(model, args)
        print('--- Start decoding ---')
        decoded = AlexNet(model.n_classes).to(device)
        huffman_decode_model(decoded, DIRECTORY)
        check_lossless(model, decoded)
        print('Lossless: every parameter came back bit for bit')
        print('--- Accuracy after decoding ---')
        accuracy_after = report('Accuracy_after_decoding', decoded)
        check_submission(decoded, accuracy_before, accuracy_after, args)


def print_statistics(model, args):
    print('--- How good the code is ---')
    streams = read_streams(model, DIRECTORY)
    table = entropy_table(streams)
    print(table)
    util.log(table, args.log)
    if args.figures:
        draw_figures(model, streams, args.figures)


def check_submission(model, accuracy_before, accuracy_after, args):
    """Print the grader's checks and write what --student-id asks for; then UserError if a check has failed."""
    print('--- Submission check ---')
    checks = submission_checks(model, accuracy_before, accuracy_after)
    for check in checks:
        print(f'{"ok" if check.passed else "FAILED":6} | {check.expected:46} | {check.found:20} | {check.points}')
    if args.student_id:
        write_submission(model, args)
        failed = [check.expected for check in checks if not check.passed]
        if failed:
            raise UserError(f'submission check failed: {"; ".join(failed)}')


if __name__ == '__main__':
    command_line.run(main)
