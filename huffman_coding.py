"""Stage 3 of Deep Compression: encode the shared model, decode it again, and check what is handed in."""
import io
import shlex
import zipfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import util
from net import stage
from net.arguments import parse_coding as parse_args
from net.checkpoint import PATH as CHECKPOINT
from net.data import DOWNLOAD_FOLDER, load_images
from net.errors import UserError
from net.files import crc32_of, one_run_per_folder, replace_file
from net.huffmancoding import huffman_decode_model, huffman_encode_model
from net.live import live_units
from net.models import SHARED, AlexNet, check_lossless, save_model
from net.statistics import entropy_table, read_streams

import torch

DIRECTORY = 'encodings/'
MADE_HERE = b'made by huffman_coding.py'  # the comment of an archive begins so


def main(argv=None):
    args = parse_args(argv)
    with one_run_per_folder():
        run_stage(args, stage.header('huffman_coding.py', argv))


def run_stage(args, header):
    """From the shared model to `encodings/`, and back."""
    device = stage.pick_device(args.no_cuda)
    model = stage.load_input(args, device)
    stage.note_if_older(args.load_model_path)
    if CHECKPOINT.exists():
        print(f'Note: {CHECKPOINT}: a run is unfinished, and {args.load_model_path} may be of the one before')
    test_images = load_images(args.data, train=False).to(device)
    stage.check_images(args.load_model_path, model, test_images, args.data)
    if args.student_id:
        check_own_files(args.student_id)
    report = partial(stage.report, images=test_images, log=args.log)
    util.log(header, args.log)
    print('--- Accuracy before encoding ---')
    accuracy_before = report('Accuracy_before_encoding', model)
    print('--- Start encoding ---')
    huffman_encode_model(model, DIRECTORY, args.log)
    with stage.already_written(DIRECTORY):
        print('--- How good the code is ---')
        print_statistics(model, args)
        print('--- Start decoding ---')
        decoded = AlexNet(model.n_classes).to(device)
        huffman_decode_model(decoded, DIRECTORY)
        check_lossless(model, decoded)
        print('Lossless: every parameter came back bit for bit')
        print('--- Accuracy after decoding ---')
        accuracy_after = report('Accuracy_after_decoding', decoded)
        print('--- Submission check ---')
        failed = print_checks(submission_checks(decoded, accuracy_before, accuracy_after))
        if args.student_id:
            write_submission(decoded, args)
            if failed:
                raise UserError(f'submission check failed: {"; ".join(failed)}')


def print_statistics(model, args):
    streams = read_streams(model, DIRECTORY)
    table = entropy_table(streams)
    print(table)
    util.log(table, args.log)
    if args.figures:
        from net import figures  # matplotlib takes a second to import
        biases = {name: 4 * layer.bias.numel() for name, layer in model.layers()}
        original = {name: biases[name] + 4 * layer.weight.numel() for name, layer in model.layers()}
        print('Wrote', figures.draw_bytes(streams, biases, original, args.figures))


# ---- what is handed in -----------------------------------------------------------------------------------------------

class Check(NamedTuple):
    """One of the grader's checks."""
    expected: str
    points: str
    passed: bool
    found: str


def submission_checks(model, accuracy_before, accuracy_after):
    """What the grader will look at, in its order (the homework's points)."""
    loaded = plain_load(model)
    zeros, unused = count_zeros(model)
    distinct = [len(torch.unique(param)) for param in model.parameters() if param.dim() == 4]
    shared_as_asked = sum(distinct) == 33 * len(distinct)
    way_out = '' if shared_as_asked else ': share with --bits 5, each with a zero and 32 weights or more'
    return [
        Check('torch.load(..., weights_only=False) reads it', 'required', isinstance(loaded, AlexNet),
              type(loaded).__name__),
        Check('some convolution weight is zero', '70 points', zeros > 0,
              f'{zeros} zeros, {unused} of them in units not in use'),
        Check('33 distinct values per convolution, on average', '10 points', shared_as_asked,
              ', '.join(map(str, distinct)) + way_out),
        Check('decoding keeps the accuracy', '10 points', accuracy_before == accuracy_after,
              f'{accuracy_before:.2f}% -> {accuracy_after:.2f}%'),
        Check('accuracy above 58% enters the ranking', '0, 5 or 10 points', accuracy_after > 58,
              f'{accuracy_after:.2f}%'),
    ]


def plain_load(model):
    """What the grader gets: the model, saved and loaded as it does that."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # safe: these are the bytes just written


def count_zeros(model):
    """How many weights of convolutions are zero, and how many of these lie in units that are not in use.

    Those that training left out from the start are such: a model that was never pruned has zeros, too.
    """
    zeros = in_use = 0
    for (_, layer), (inputs, outputs) in zip(model.layers(), pairwise(live_units(model)), strict=True):
        if layer.weight.dim() == 4:
            is_zero = layer.weight == 0
            zeros += int(is_zero.sum())
            in_use += int(is_zero[outputs][:, inputs].sum())
    return zeros, zeros - in_use


def print_checks(checks):
    """Print a line for each; return what those that failed expected."""
    for check in checks:
        print(f'{"ok" if check.passed else "FAILED":6} | {check.expected:46} | {check.points:17} | {check.found}')
    return [check.expected for check in checks if not check.passed]


def check_own_files(student_id):
    """Raise UserError if a file that would be replaced was not written here: it may be the student's own."""
    model_path, archive_path = f'{student_id}.ptmodel', f'{student_id}.zip'
    comment = b''
    if zipfile.is_zipfile(archive_path):
        with zipfile.ZipFile(archive_path) as archive:
            comment = archive.comment
    for path in archive_path, model_path:
        expected = made_with(model_path) if path == model_path and Path(path).is_file() else MADE_HERE
        if Path(path).exists() and not comment.startswith(expected):
            raise UserError(f'{path}: is there already, and nothing says that this script made it: rename it')


def made_with(model_path):
    """What the archive that is written with this model says, so that both are known as made here."""
    return MADE_HERE + f' with CRC-32 {crc32_of(model_path):08x}'.encode()


def write_submission(model, args):
    """Write the two files to hand in, the model and an archive of the net/ folder, and say which grader they suit."""
    folder = Path(__file__).resolve().with_name('net')  # beside the script, also where that is a link
    sources = sorted(folder.glob('*.py'))
    if not sources:
        raise UserError(f'{folder}: expected the files of the homework, to be handed in, found none')
    model_path, archive_path = f'{args.student_id}.ptmodel', f'{args.student_id}.zip'
    save_model(model, model_path)
    with replace_file(archive_path) as file, zipfile.ZipFile(
            file, 'w', zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:  # some sources are dated 1970
        for path in sources:
            archive.write(path, f'net/{path.name}')
        archive.comment = made_with(model_path)
    print(f'Wrote {model_path} and {archive_path}')
    given = [] if args.data == DOWNLOAD_FOLDER else ['--data', args.data]
    given += [] if args.load_model_path == SHARED else ['--load-model-path', args.load_model_path]
    command = shlex.join(['python', 'huffman_coding.py', *given, '--student-id', args.student_id])
    if next(model.parameters()).is_cuda:
        print(f'{model_path} remembers the GPU. For a grader without one: {command} --no-cuda')
    else:
        print(f'{model_path} remembers the CPU. For a grader with a GPU, copy {args.load_model_path} to a machine with '
              f'a GPU and run there: {command}')


if __name__ == '__main__':
    stage.run(main)
