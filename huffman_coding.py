"""Stage 3 of Deep Compression: encode the shared model, decode it again, and check what is handed in."""
import argparse
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

import util
from net.compact import compact_from_model, model_from_compact
from net.huffmancoding import huffman_decode_model, huffman_encode_model, naming
from net.models import AlexNet, load_model, replace_file, save_model
from net.statistics import entropy_table, read_streams

DIRECTORY = 'encodings/'
SHIPPED = Path(__file__).parent / 'tests/data/alexnet-cifar10.dcan'
CIFAR10_CLASSES = 'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'


def parse_args(argv=None):
    parser = util.Parser(__doc__)
    util.add_common_arguments(parser)
    parser.add_argument('--load-model-path', default='saves/model_after_weight_sharing.ptmodel', help='shared model')
    parser.add_argument('--student-id', type=student_id, metavar='ID',
                        help='write the files to hand in: ID.ptmodel and ID.zip')
    parser.add_argument('--compact', type=util.output_file, metavar='FILE',
                         help='write the model as one small file, too')
    parser.add_argument('--from-compact', metavar='FILE', help='only decode this small file')
    parser.add_argument('--save-model-path', metavar='FILE', help='where --from-compact writes the model')
    parser.add_argument('--classify', nargs='*', metavar='IMAGE', help='only decode the small file of --from-compact '
                        '(or the one that comes with these scripts), measure its accuracy if the data is there, and '
                        'say what these images show')
    args = parser.parse_args(argv)
    if args.save_model_path is not None and args.from_compact is None:
        parser.error('--save-model-path goes with --from-compact, got only the first')
    if args.from_compact is not None and args.save_model_path is None and args.classify is None:
        parser.error('--from-compact goes with --save-model-path or --classify, got neither')
    for flag in 'from_compact', 'classify':
        for other in 'student_id', 'compact', 'figures', 'load_model_path':
            if getattr(args, flag) is not None and getattr(args, other) != parser.get_default(other):
                parser.error(f'{util.flag(flag)} only decodes a compact file, got {util.flag(other)}')
    return args


def student_id(text):
    """An argparse type: letters and digits, since the id becomes a file name."""
    if not (text.isascii() and text.isalnum()):
        raise argparse.ArgumentTypeError(f'must be letters and digits, got {text!r}')
    return text


def check_lossless(model, decoded):
    """Raise ValueError unless all parameters of the two models are the same, bit for bit."""
    decoded_params = dict(decoded.named_parameters())
    for name, param in model.named_parameters():
        if not torch.equal(param.data.view(torch.int32), decoded_params[name].data.view(torch.int32)):
            raise ValueError(f'{name} differs after decoding: the encoding is not lossless')


def write_compact(model, path):
    """Write the compact file, which takes its place only after it was read back and found lossless."""
    with replace_file(path) as file:
        file.write(compact_from_model(model))
        file.flush()
        check_lossless(model, load_compact(file.name).to(next(model.parameters()).device))
    n_bytes, original = Path(path).stat().st_size, sum(4 * param.numel() for param in model.parameters())
    print(f'{path}: {n_bytes} bytes of {original}, {original / n_bytes:.2f}x, every parameter came back bit for bit')


def load_compact(path):
    """Read an AlexNet from a compact file; ValueError, naming the file, if it is none."""
    with naming(path):
        return model_from_compact(Path(path).read_bytes())


def decode_compact(args, device):
    """All that --from-compact and --classify ask for."""
    path = args.from_compact or SHIPPED
    model = load_compact(path).to(device)
    print(f'{path}: {Path(path).stat().st_size} bytes, decoded')
    if args.save_model_path is not None:
        save_model(model, args.save_model_path)
        print(f'Wrote {args.save_model_path}')
    if args.classify is not None:
        classify(model, args.classify, args.data, CIFAR10_CLASSES if args.from_compact is None else None)


def classify(model, paths, data, classes=None):
    """Print the accuracy on the test images, if they are there, and what each of the image files shows.

    `classes` are the names of what the model knows; else those of the images, or else numbers.
    """
    photos = [util.load_photo(path) for path in paths]
    try:
        images = util.load_images(data, train=False, download=False)
    except FileNotFoundError:
        print(f'There are no images in {data!r} to measure the accuracy on')
        classes = classes or [str(i) for i in range(model.fc3.out_features)]
    else:
        if classes is not None and classes != images.classes:
            raise ValueError(
                f'{data}: the network knows {", ".join(classes)}, the images are {", ".join(images.classes)}')
        util.test(model, images=images)
        classes = images.classes
    device = next(model.parameters()).device
    model.eval()
    for path, photo in zip(paths, photos, strict=True):
        with torch.no_grad():
            probabilities = model(util.normalize(photo.to(device)))[0].exp()
        likely = probabilities.argsort(descending=True)[:3].tolist()
        print(f'{path}: ' + ', '.join(f'{classes[i]} {100 * probabilities[i]:.1f} %' for i in likely))


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


def write_submission(model, student_id):
    """Write the two files to hand in: the model and an archive of the net/ folder."""
    save_model(model, f'{student_id}.ptmodel')
    with replace_file(f'{student_id}.zip') as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(Path(__file__).with_name('net').glob('*.py')):
            archive.write(path, f'net/{path.name}')
    print(f'Wrote {student_id}.ptmodel and {student_id}.zip')


def draw_figures(model, streams, folder):
    from net import figures
    biases = {name: 4 * layer.bias.numel() for name, layer in model.named_children()}
    original = {name: biases[name] + 4 * layer.weight.numel() for name, layer in model.named_children()}
    print('Wrote', figures.draw_bytes(streams, biases, original, folder))
    print('Wrote', figures.draw_code_lengths(streams, folder))


def main(argv=None):
    args = parse_args(argv)
    device = util.pick_device(args.no_cuda)
    if args.from_compact is not None or args.classify is not None:
        decode_compact(args, device)
        return
    model = load_model(args.load_model_path, device)
    test_images = util.load_images(args.data, train=False).to(device)

    def report(key, model):
        accuracy = util.test(model, device.type == 'cuda', test_images)
        util.log(f'{key} {accuracy}', args.log)
        return accuracy

    print('--- Accuracy before encoding ---')
    accuracy_before = report('Accuracy_before_encoding', model)
    if args.compact:
        print('--- Compact file ---')
        write_compact(model, args.compact)
    print('--- Start encoding ---')
    huffman_encode_model(model, DIRECTORY, args.log)
    streams = read_streams(model, DIRECTORY)
    print('--- How good the code is ---')
    table = entropy_table(streams)
    print(table)
    util.log(table, args.log)
    print('--- Start decoding ---')
    decoded = AlexNet(model.fc3.out_features).to(device)
    huffman_decode_model(decoded, DIRECTORY)
    check_lossless(model, decoded)
    print('Lossless: every parameter came back bit for bit')
    print('--- Accuracy after decoding ---')
    accuracy_after = report('Accuracy_after_decoding', decoded)

    print('--- Submission check ---')
    checks = submission_checks(decoded, accuracy_before, accuracy_after)
    for check in checks:
        print(f'{"ok" if check.passed else "FAILED":6} | {check.expected:46} | {check.found:20} | {check.points}')
    if args.figures:
        draw_figures(model, streams, args.figures)
    if args.student_id:
        write_submission(decoded, args.student_id)
        failed = [check.expected for check in checks if not check.passed]
        if failed:
            raise ValueError(f'submission check failed: {"; ".join(failed)}')


if __name__ == '__main__':
    util.run(main)
