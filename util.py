"""What all three scripts share: the log, printed tables, the test, and the data as one tensor per split."""
import argparse
import importlib.util
import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision import transforms
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.datasets.folder import find_classes
from tqdm import tqdm

try:
    import resource
except ImportError:  # Windows
    resource = None

# MNIST's constants, which the homework's scaffold applies to all three channels of CIFAR-10: a model trained with
# others would lose accuracy when it is graded.
MEAN, STD = 0.1307, 0.3081
SIZE = 32  # pixels, width and height
PADDING = 4  # pixels on every side, before the random crop


# ---- log and printed tables ------------------------------------------------------------------------------------------

def log(content, filename='log.txt'):
    """Append one line to the log file; OSError, naming the file, if that fails."""
    try:
        with open(filename, 'a') as file:
            file.write(f'{content}\n')
    except OSError as error:
        raise OSError(f'{filename}: cannot be written ({error.strerror})') from error


def print_model_parameters(model, with_values=False):
    """Print name, shape and type of every parameter, and on request its values."""
    print(f'{"Param name":20} {"Shape":30} {"Type":15}')
    print('-' * 70)
    for name, param in model.named_parameters():
        print(f'{name:20} {str(param.shape):30} {str(param.dtype):15}')
        if with_values:
            print(param)


def print_nonzeros(model, filename='log.txt'):
    """Print and log how many values of every parameter are not zero, and the sums over the model."""
    lines, alive, total = [], 0, 0
    for name, param in model.named_parameters():
        n, nonzeros = param.numel(), int(torch.count_nonzero(param))
        lines.append(f'{name:20} | nonzeros = {nonzeros:7} / {n:7} ({100 * nonzeros / n:6.2f}%) | '
                     f'total_pruned = {n - nonzeros:7} | shape = {tuple(param.shape)}')
        alive, total = alive + nonzeros, total + n
    rate = total / alive if alive else float('inf')
    lines.append(f'alive: {alive}, pruned : {total - alive}, total: {total}, '
                 f'Compression rate : {rate:10.2f}x  ({100 * (total - alive) / total:6.2f}% pruned)')
    print('\n'.join(lines))
    log('\n'.join(lines), filename)


# ---- data ------------------------------------------------------------------------------------------------------------

class Images(NamedTuple):
    """A whole split on one device."""
    pixels: torch.Tensor  # (n, 3, 32, 32), uint8
    labels: torch.Tensor  # (n,), int64, 0 to len(classes) - 1
    classes: tuple  # of names

    def to(self, device):
        return Images(self.pixels.to(device), self.labels.to(device), self.classes)

    def split(self, n):
        """All but `n` images, and those `n`: drawn at random, but always the same ones."""
        if not 0 < n < len(self.labels):
            raise ValueError(f'can hold out 1 to {len(self.labels) - 1} of the training images, got {n}')
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0)).to(self.labels.device)
        return tuple(Images(self.pixels[i], self.labels[i], self.classes) for i in (order[n:], order[:n]))


def load_images(root='data', train=True, download=True):
    """Read one split: of `digits`, of an image folder with train/ and test/ inside, else of torchvision's CIFAR-10.

    Raises ValueError or OSError with one line that names what is missing, or the image that cannot be read.
    """
    if root == 'digits':
        return _load_digits(train)
    if Path(root, 'train').is_dir() or Path(root, 'test').is_dir():
        return _load_folder(Path(root), 'train' if train else 'test')
    return _load_cifar10(root, train, download)


def _load_digits(train):
    """Scikit-learn's 1,797 handwritten digits (8x8, 0 to 16) as 3x32x32 images, a fifth of them for the test."""
    digits, labels = load_digits(return_X_y=True)
    part = train_test_split(digits, labels, test_size=0.2, stratify=labels, random_state=0)[0 if train else 1::2]
    pixels = torch.from_numpy(part[0]).float().reshape(-1, 1, 8, 8) * (255 / 16)
    pixels = F.interpolate(pixels, (SIZE, SIZE), mode='bilinear').round().to(torch.uint8)
    return Images(pixels.repeat(1, 3, 1, 1), torch.from_numpy(part[1]), tuple('0123456789'))


def _load_folder(root, split):
    try:
        classes, test_classes = find_classes(root / 'train')[0], find_classes(root / 'test')[0]
        if classes != test_classes:
            differ = sorted(set(classes) ^ set(test_classes))
            raise ValueError(f'{root}: train/ and test/ must hold the same classes, only one has {", ".join(differ)}')
        to_tensor = transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.PILToTensor()])
        folder = ImageFolder(root / split, transform=to_tensor)
    except FileNotFoundError as error:  # one of the two is missing, or has no class folder, or a class has no image
        raise FileNotFoundError(f'{root}: expected images in train/<class>/ and test/<class>/ ({error})') from error
    pixels = torch.empty(len(folder), 3, SIZE, SIZE, dtype=torch.uint8)
    for i, (path, _) in enumerate(tqdm(folder.samples, f'Reading {root / split}', leave=False, disable=None)):
        try:
            pixels[i] = folder[i][0]
        except Exception as error:  # Pillow raises many types of errors for damaged images
            raise ValueError(f'{path}: not a readable image ({error})') from error
    return Images(pixels, torch.tensor(folder.targets), tuple(classes))


def _load_cifar10(root, train, download):
    existed = Path(root).exists()
    try:
        cifar10 = CIFAR10(root, train=train, download=download)
    except (OSError, RuntimeError) as error:
        if not existed:
            with suppress(OSError):
                Path(root).rmdir()  # torchvision makes the folder before it fails
        raise FileNotFoundError(
            f'CIFAR-10 is not in {root!r} and cannot be downloaded ({error}): put cifar-10-python.tar.gz there, '
            'or give --data FOLDER with train/<class>/ and test/<class>/ images inside, '
            'or take --data digits, which needs no download') from error
    pixels = torch.from_numpy(cifar10.data).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.tensor(cifar10.targets), tuple(cifar10.classes))


def load_photo(path):
    """An image file of any size -> its middle square as pixels of 1 image, (1, 3, 32, 32), uint8."""
    shrink = transforms.Compose([transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.PILToTensor()])
    try:
        with Image.open(path) as photo:
            return shrink(ImageOps.exif_transpose(photo).convert('RGB'))[None]
    except Exception as error:  # Pillow raises many types of errors for damaged images
        raise ValueError(f'{path}: not a readable image ({error})') from error


def normalize(pixels):
    """uint8 (n, 3, 32, 32) -> float32 of the same shape: torchvision's ToTensor, then Normalize."""
    return (pixels.float() / 255 - MEAN) / STD


def random_crop(pixels):
    """Give every image of a batch its own random crop, after 4 pixels of black padding."""
    n, device = len(pixels), pixels.device
    crops = F.pad(pixels, [PADDING] * 4).unfold(2, SIZE, 1).unfold(3, SIZE, 1)  # a view: (n, 3, 9, 9, 32, 32)
    top, left = torch.randint(2 * PADDING + 1, (2, n), device=device)
    return crops[torch.arange(n, device=device), :, top, left]


def random_flip(pixels):
    """Mirror each image of a batch, left to right, with probability 1/2."""
    flip = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
    return torch.where(flip, pixels.flip(3), pixels)


def batches(images, batch_size, crop=True):
    """Yield one epoch of (images, labels): shuffled, augmented and normalised, on the device of the split."""
    for batch in torch.randperm(len(images.labels), device=images.labels.device).split(batch_size):
        pixels = images.pixels[batch]
        if crop:
            pixels = random_crop(pixels)
        yield normalize(random_flip(pixels)), images.labels[batch]


# ---- test ------------------------------------------------------------------------------------------------------------

def test(model, use_cuda=True, images=None, title='Test set', batch_size=1000):
    """Print the average loss and the accuracy of the model, and return the accuracy in percent.

    Takes the test split of `data` unless other `images` are given, and moves them to the model's device; `use_cuda`
    is there because the scaffold's callers pass it.
    """
    device = next(model.parameters()).device
    images = (load_images(train=False) if images is None else images).to(device)
    if model.fc3.out_features != len(images.classes):
        raise ValueError(f'the model tells {model.fc3.out_features} classes apart, the data has {len(images.classes)}')
    loss, correct = evaluate(model, images, batch_size)
    n = len(images.labels)
    print(f'{title}: Average loss: {loss / n:.4f}, Accuracy: {correct}/{n} ({100 * correct / n:.2f}%)')
    return 100 * correct / n


def evaluate(model, images, batch_size=1000):
    """The sum of the losses of all images, and how many the model gets right; leaves the model in evaluation mode."""
    loss, correct = 0.0, 0
    model.eval()
    with torch.no_grad():
        for pixels, labels in zip(images.pixels.split(batch_size), images.labels.split(batch_size), strict=True):
            output = model(normalize(pixels))
            loss += F.nll_loss(output, labels, reduction='sum').item()
            correct += (output.argmax(1) == labels).sum().item()
    return loss, correct


# ---- command lines ---------------------------------------------------------------------------------------------------

class Parser(argparse.ArgumentParser):
    """A parser that shows defaults in its help, and says in one line what is wrong."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def error(self, message):
        self.exit(2, f'error: {message} (see {self.prog} --help)\n')


def flag(name):
    """'batch_size' -> '--batch-size'"""
    return f'--{name.replace("_", "-")}'


def add_common_arguments(parser):
    parser.add_argument('--data', default='data', help='folder with train/ and test/ images, folder of torchvision\'s '
                        'CIFAR-10 (downloaded if it is not there), or the word digits')
    parser.add_argument('--no-cuda', action='store_true', help='use the CPU even if there is a GPU')
    parser.add_argument('--log', type=output_file, default='log.txt', help='log file')
    parser.add_argument('--figures', type=figures_folder, metavar='FOLDER', help='draw figures of the run '
                        '(accuracies are those of the images of --validation, or else of some it was trained on)')


def add_training_arguments(parser):
    parser.add_argument('--batch-size', type=number(int, 1), default=256, help='images per training step')
    parser.add_argument('--test-batch-size', type=number(int, 1), default=1000, help='images per test step')
    parser.add_argument('--schedule', choices=['one-cycle', 'cosine'], default='one-cycle', help='of the learning rate')
    parser.add_argument('--weight-decay', type=number(float, 0), default=0, help='L2 penalty')
    parser.add_argument('--seed', type=number(int, 0, 2**63 - 1), default=42, help='random seed')
    parser.add_argument('--log-interval', type=number(int, 1), default=10, help='steps between two shown losses')
    parser.add_argument('--validation', type=number(int, 1), metavar='N',
                        help='hold N training images out and report on them instead of the test set')
    interrupted = parser.add_mutually_exclusive_group()
    interrupted.add_argument('--resume', action='store_true', help='go on with an interrupted run (same arguments)')
    interrupted.add_argument('--restart', action='store_true', help='throw an interrupted run away')


def load_splits(args, device):
    """The images to train on, those to report on, and what to call these, as `--data` and `--validation` say."""
    images = load_images(args.data).to(device)
    if args.validation:
        return *images.split(args.validation), 'Validation set'
    return images, load_images(args.data, train=False).to(device), 'Test set'


def number(kind, low, high=math.inf):
    """An argparse type: a finite `int` or `float` in [low, high]."""
    def parse(text):
        value = kind(text)
        if not (low <= value <= high and value < math.inf):
            expected = f'at least {low}' if high == math.inf else f'{low} to {high}'
            raise argparse.ArgumentTypeError(f'must be {expected}, got {text}')
        return value
    parse.__name__ = kind.__name__  # for argparse's own message, when the text is no number at all
    return parse


def output_file(path):
    """An argparse type: a file that can be written to later."""
    if not Path(path).parent.is_dir() or Path(path).is_dir():
        raise argparse.ArgumentTypeError(f'must be a file in an existing folder, got {path}')
    return path


def figures_folder(path):
    """An argparse type: a folder, there or not, for figures, which need matplotlib."""
    if importlib.util.find_spec('matplotlib') is None:
        raise argparse.ArgumentTypeError('needs matplotlib, which is not installed: pip install matplotlib')
    if Path(path).exists() and not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f'must be a folder, got {path}')
    return path


def pick_device(no_cuda):
    """The GPU if there is one and it is wanted, else the CPU."""
    return torch.device('cuda' if torch.cuda.is_available() and not no_cuda else 'cpu')


def run(main, checkpoint=None):
    """Call a script's main, tell what it took, and exit: bad input ends in one line and status 1, Ctrl-C in status 130.

    `checkpoint` is the file, if any, from which the script can go on after Ctrl-C.
    """
    start = time.perf_counter()
    try:
        main()
        print(f'Finished in {duration(time.perf_counter() - start)}, peak memory {peak_memory()}')
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        if checkpoint and checkpoint.exists():
            print(f'interrupted: the same command with --resume goes on from {checkpoint}', file=sys.stderr)
        else:
            print('interrupted: there is nothing to resume', file=sys.stderr)
        sys.exit(130)


def duration(seconds):
    """83.4 -> '1 min 23 s'"""
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'


def peak_memory():
    """The most memory the process has had so far, and the most on the GPU, if it was used."""
    text = 'unknown' if resource is None else f'{_peak_bytes() / 1e9:.2f} GB'
    if torch.cuda.is_initialized():
        text += f', on the GPU {torch.cuda.max_memory_allocated() / 1e9:.2f} GB'
    return text


def _peak_bytes():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else 1024 * peak  # Linux counts in KiB
