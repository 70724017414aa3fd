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

DIRECTORY = 'encodings/'


def parse_args(argv=None):
    parser = util.Parser(__doc__)
    util.add_common_arguments(parser)
    parser.add_argument('--load-model-path', default='saves/model_after_weight_sharing.ptmodel', help='shared model')
    parser.add_argument('--student-id', type=student_id, metavar='ID',
                        help='write the files to hand in: ID.ptmodel and ID.zip')
    compact = parser.add_mutually_exclusive_group()
    compact.add_argument('--compact', type=util.output_file, metavar='FILE',
                         help='write the model as one small file, too')
    compact.add_argument('--from-compact', metavar='FILE', help='only decode this small file')
    parser.add_argument('--save-model-path', metavar='FILE', help='where --from-compact writes the model')
    args = parser.parse_args(argv)
    if (args.from_compact is None) != (args.save_model_path is None):
        parser.error('--from-compact and --save-model-path go together, got only one of them')
    if args.from_compact is not None and args.student_id:
        parser.error('--from-compact only decodes, got --student-id: decode first, then give --load-model-path')
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


def main(argv=None):
    args = parse_args(argv)
    device = util.pick_device(args.no_cuda)
    if args.from_compact is not None:
        save_model(load_compact(args.from_compact).to(device), args.save_model_path)
        print(f'Decoded {args.from_compact} to {args.save_model_path}')
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
    if args.student_id:
        write_submission(decoded, args.student_id)
        failed = [check.expected for check in checks if not check.passed]
        if failed:
            raise ValueError(f'submission check failed: {"; ".join(failed)}')


if __name__ == '__main__':
    util.run(main)
