"""A compressed network as one small file: written, read and used, on the CPU.

    python -m net.compact write saves/compact.ptmodel mine.dcan
    python -m net.compact read mine.dcan mine.ptmodel
    python -m net.compact classify photo.png photos/ --network accurate
    python -m net.compact export network.onnx
"""
if __package__ != 'net.compact':  # started from elsewhere, where what it imports is not found
    raise SystemExit('error: run it in the folder above net/, as python -m net.compact')
from contextlib import nullcontext
from pathlib import Path

import util
from net import stage
from net.arguments import HelpFormatter, OneLineParser, file_name, not_empty, output_file
from net.compact.export import export, export_file
from net.compact.format import compact_from_model, live_network_from_compact, model_from_compact
from net.data import CIFAR10_CLASSES, image_files, load_images, load_photo, normalize
from net.errors import UserError
from net.files import ARCHIVE_MAGIC, COMPACT_MAGIC, check_kind, one_run_per_folder, replace_file
from net.huffmancoding import naming
from net.models import COMPACT, check_lossless, load_model, save_model

import torch

SUMMARY, _, *LINES = __doc__.splitlines()
EXAMPLES = {line.split()[3]: f'    {line.strip()}' for line in LINES}  # by verb; Python 3.13 takes the margin away
SHIPPED = {path.stem: path for path in sorted(Path(__file__).parent.glob('*.dcan'))}


# ---- arguments -------------------------------------------------------------------------------------------------------

def parse_args(argv=None):
    examples = '\n'.join(['examples:', *EXAMPLES.values()])
    parser = OneLineParser('python -m net.compact', description=SUMMARY, epilog=examples, formatter_class=HelpFormatter)
    verbs = parser.add_subparsers(metavar='VERB', required=True)

    def add_verb(name, function, summary):
        verb = verbs.add_parser(name, help=summary, description=summary, epilog=f'example:\n{EXAMPLES[name]}',
                                formatter_class=HelpFormatter, allow_abbrev=False)
        verb.set_defaults(function=function)
        return verb.add_argument

    compact_file = f'a compact file, or one that comes with the code: {", ".join(SHIPPED)}'
    add = add_verb('write', write, 'make a compact file of a model')
    add('model', metavar='MODEL', type=file_name, help='a .ptmodel, such as weight_share.py --compact makes')
    add('file', metavar='FILE', type=output_file, help='the compact file to write')
    add = add_verb('read', read, 'make a model of a compact file')
    add('network', metavar='FILE', help=compact_file)
    add('model', metavar='MODEL', type=file_name, help='the .ptmodel to write')
    add_classify = add_verb('classify', classify, 'say what images show, or how many of a test set are recognised')
    add_classify('images', metavar='IMAGE', nargs='*', help='an image, a folder of images, or a pattern such as *.png')
    add_export = add_verb('export', write_export, 'write a network for other programs')
    add_export('file', metavar='FILE', type=export_file, help='FILE.onnx for any program, or FILE.pt2 for the version '
               'of PyTorch that wrote it, and no other')
    for add in add_classify, add_export:
        add('--network', metavar='FILE', default='smallest', help=compact_file)
        add('--classes', metavar='A,B,...', type=lambda names: tuple(names.split(',')), help='names of its classes')
        add('--data', type=not_empty, metavar='FOLDER',
            help='folder with train/ and test/ images of its classes, or: digits')
    return parser.parse_args(argv)


# ---- the verbs -------------------------------------------------------------------------------------------------------

def write(args):
    """The file takes its place only after it was read back and found lossless."""
    model = load_model(args.model)
    check_kind(args.file, COMPACT_MAGIC, 'compact file')
    stage.note_if_older(args.model)
    data = compact_from_model(model)
    with lock_for(args.file), replace_file(args.file) as file:
        file.write(data)
        file.flush()
        check_lossless(model, model_from_compact(Path(file.name).read_bytes()))
    original = sum(4 * param.numel() for param in model.parameters())
    print(f'{args.file}: {len(data)} bytes of {original}, {original / len(data):.2f}x, '
          'every parameter came back bit for bit')


def read(args):
    model = decode(args.network, model_from_compact)
    check_kind(args.model, ARCHIVE_MAGIC, '.ptmodel')
    with lock_for(args.model):
        save_model(model, args.model)
    print(f'Wrote {args.model}')


def classify(args):
    paths = image_files(args.images)
    if not paths and not args.data:
        raise UserError('classify needs images to look at, or --data FOLDER to measure the accuracy on, got neither')
    photos = [load_photo(path) for path in paths]  # before anything is decoded
    network, classes, images = load_network(args)
    if images:
        util.test(network, images=images)
    for path, photo in zip(paths, photos, strict=True):
        with torch.inference_mode():
            probabilities = network(normalize(photo))[0].exp()
        likely = probabilities.argsort(descending=True)[:3].tolist()
        print(f'{path}: ' + ', '.join(f'{classes[i]} {100 * probabilities[i]:.1f} %' for i in likely))


def write_export(args):
    network, classes, _ = load_network(args)
    with lock_for(args.file):
        export(network, classes, args.file)
    print(f'Wrote {args.file}')
    if args.file.endswith('.pt2'):
        print(f'Only PyTorch {torch.__version__} can read it: for everything else, export to FILE.onnx')


# ---- what they share -------------------------------------------------------------------------------------------------

def lock_for(path):
    """Nothing is written into saves/ while a stage is at work beside it."""
    in_saves = Path(path).resolve().parent == Path(COMPACT).resolve().parent
    return one_run_per_folder() if in_saves else nullcontext()


def decode(name, from_compact):
    """What one of the two decoders makes of a file, or of one that comes with the code; UserError names the file."""
    path = _path_of(name)
    own = [other for other in (name, f'{name}.dcan') if name in SHIPPED and Path(other).exists()]
    if own:
        print(f'Note: {name} is the network that comes with the code; yours is ./{own[0]}')
    with naming(path):
        if path.stem in SHIPPED and not path.exists():
            raise UserError(f'no such file; the network that comes with the code is called {path.stem}')
        data = path.read_bytes()
        if data[:4] == b'PK\3\4':  # a zip archive
            raise UserError(f'a .ptmodel, expected a compact file: python -m net.compact write {path} FILE makes one')
        decoded = from_compact(data)
    print(f'{path}: {len(data)} bytes, decoded')
    return decoded


def _path_of(name):
    """That of a network that comes with the code, or of a file of the user's own."""
    return SHIPPED.get(name, Path(name).expanduser())


def load_network(args):
    """-> the network, what its classes are called, and the test images of --data, if any."""
    images = args.data and load_images(args.data, train=False, download=False)
    is_shipped = _path_of(args.network).resolve().parent == Path(__file__).resolve().parent
    if is_shipped and images and images.classes != CIFAR10_CLASSES:
        raise UserError(f'{args.data}: the network knows {", ".join(CIFAR10_CLASSES)}, '
                        f'the images are {", ".join(images.classes)}')
    network = decode(args.network, live_network_from_compact).eval()
    if args.classes:
        classes, source = args.classes, '--classes'
    elif images:
        classes, source = images.classes, f'--data {args.data}'
    elif network.n_classes == len(CIFAR10_CLASSES):
        classes, source = CIFAR10_CLASSES, 'of CIFAR-10; others by --classes or --data'
    else:
        classes, source = tuple(map(str, range(network.n_classes))), 'no names known; give --classes or --data'
    if len(classes) != network.n_classes:
        raise UserError(f'the network tells {network.n_classes} classes apart, {source} names {len(classes)}')
    print(f'Classes: {", ".join(classes)} ({source})')
    return network, classes, images


def main(argv=None):
    args = parse_args(argv)
    args.function(args)


if __name__ == '__main__':
    stage.run(main)
