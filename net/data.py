"""Images: a whole split as one tensor, from where they are stored to the normalised batches of a training."""
import difflib
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

from net.errors import UserError

# torchvision, Pillow and scikit-learn take seconds to import, so that happens in the functions that need them.

# MNIST's constants, which the homework's scaffold applies to all three channels of CIFAR-10: a model trained with
# others would lose accuracy when it is graded.
MEAN, STD = 0.1307, 0.3081
SIZE = 32  # pixels, width and height
PADDING = 4  # pixels on every side, before the random crop
DOWNLOAD_FOLDER = 'data'  # the only one that CIFAR-10 is downloaded into, unless it holds some of it already
CIFAR10_PARTS = 'cifar-10-batches-py', 'cifar-10-python.tar.gz'


class Images(NamedTuple):
    """A whole split on one device."""
    pixels: torch.Tensor  # (n, 3, 32, 32), uint8
    labels: torch.Tensor  # (n,), int64, 0 to len(classes) - 1
    classes: tuple  # of names

    def to(self, device):
        return Images(self.pixels.to(device), self.labels.to(device), self.classes)

    def fingerprint(self):
        """A short text that tells these images from others."""
        data = self.pixels.cpu().numpy().tobytes() + self.labels.cpu().numpy().tobytes() + repr(self.classes).encode()
        return f'{len(self.labels):,} images of {len(self.classes)} classes, CRC-32 {zlib.crc32(data):08x}'

    def split(self, n):
        """All but `n` images, and those `n`: drawn at random, but always the same ones."""
        if not 0 < n < len(self.labels):
            raise UserError(f'can hold out 1 to {len(self.labels) - 1} of the training images, got {n}')
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0)).to(self.labels.device)
        return tuple(Images(self.pixels[i], self.labels[i], self.classes) for i in (order[n:], order[:n]))


# ---- loading ---------------------------------------------------------------------------------------------------------

def load_images(root=DOWNLOAD_FOLDER, train=True, download=True):
    """Read one split: of `digits`, of an image folder with train/ and test/ inside, or of torchvision's CIFAR-10.

    Raises UserError or OSError with one line that names what is missing, or the image that cannot be read.
    """
    if root == 'digits':
        return _load_digits(train)
    if Path(root, 'train').is_dir() or Path(root, 'test').is_dir():
        return _load_folder(Path(root), 'train' if train else 'test')
    if Path(root) == Path(DOWNLOAD_FOLDER) or any(Path(root, part).exists() for part in CIFAR10_PARTS):
        return _load_cifar10(root, train, download)
    raise UserError(_no_images(root))


def _no_images(root):
    """One line: what was found, what was looked for, and the ways out."""
    found = 'no such folder'
    if Path(root).exists():
        names = sorted(os.listdir(root)) if Path(root).is_dir() else ['a file']
        found = f'no images there, found {", ".join(names[:3]) or "nothing"}' + (', ...' if len(names) > 3 else '')
    others = {entry.name for entry in os.scandir() if entry.is_dir()} | {'digits'}
    nearest = difflib.get_close_matches(str(root), others - {str(root)}, 1)
    hint = f' (did you mean {nearest[0]}?)' if nearest else ''
    return (f'{root}: {found}{hint}; expected a folder with train/<class>/ and test/<class>/, or with '
            f'{" or ".join(CIFAR10_PARTS)}, or the word digits; without --data, CIFAR-10 is downloaded into '
            f'{DOWNLOAD_FOLDER}/')


def _load_digits(train):
    """Scikit-learn's 1,797 handwritten digits (8x8, 0 to 16) as 3x32x32 images, a fifth of them for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    digits, labels = load_digits(return_X_y=True)
    part = train_test_split(digits, labels, test_size=0.2, stratify=labels, random_state=0)[0 if train else 1::2]
    pixels = torch.from_numpy(part[0]).float().reshape(-1, 1, 8, 8) * (255 / 16)
    pixels = F.interpolate(pixels, (SIZE, SIZE), mode='bilinear').round().to(torch.uint8)
    return Images(pixels.repeat(1, 3, 1, 1), torch.from_numpy(part[1]), tuple('0123456789'))


def _load_folder(root, split):
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    classes = _folder_classes(root)
    to_tensor = transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.PILToTensor()])
    try:
        folder = ImageFolder(root / split, transform=to_tensor)
    except FileNotFoundError as error:  # a class has no image
        raise _no_classes(root, error) from error
    pixels = torch.empty(len(folder), 3, SIZE, SIZE, dtype=torch.uint8)
    for i, (path, _) in enumerate(tqdm(folder.samples, f'Reading {root / split}', leave=False, disable=None)):
        try:
            pixels[i] = folder[i][0]
        except Exception as error:  # Pillow raises many types of errors for damaged images
            raise UserError(f'{path}: not a readable image ({error})') from error
    return Images(pixels, torch.tensor(folder.targets), classes)


def _folder_classes(root):
    """The names of the classes, which train/ and test/ must both have."""
    from torchvision.datasets.folder import find_classes
    for split, other in ('train', 'test'), ('test', 'train'):
        if not (root / split).is_dir():
            raise UserError(f'{root}: has {other}/ but no {split}/, expected images in both')
    try:
        classes, test_classes = find_classes(root / 'train')[0], find_classes(root / 'test')[0]
    except FileNotFoundError as error:  # one of the two has no class folder
        raise _no_classes(root, error) from error
    if classes != test_classes:
        differ = sorted(set(classes) ^ set(test_classes))
        raise UserError(f'{root}: train/ and test/ must hold the same classes, only one has {", ".join(differ)}')
    return tuple(classes)


def _no_classes(root, error):
    return UserError(f'{root}: expected images in train/<class>/ and test/<class>/ ({error})')


def _load_cifar10(root, train, download):
    from torchvision.datasets import CIFAR10
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
    from PIL import Image, ImageOps
    from torchvision import transforms
    shrink = transforms.Compose([transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.PILToTensor()])
    try:
        with Image.open(path) as photo:
            return shrink(ImageOps.exif_transpose(photo).convert('RGB'))[None]
    except Exception as error:  # Pillow raises many types of errors for damaged images
        raise UserError(f'{path}: not a readable image ({error})') from error


# ---- batches ---------------------------------------------------------------------------------------------------------

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
    """Yield one epoch of (images, labels): shuffled, augmented and normalised, on the device of the split.

    The channels of a pixel lie side by side in memory: convolutions with few channels are faster so.
    """
    for batch in torch.randperm(len(images.labels), device=images.labels.device).split(batch_size):
        pixels = images.pixels[batch]
        if crop:
            pixels = random_crop(pixels)
        pixels = normalize(random_flip(pixels))
        yield pixels.contiguous(memory_format=torch.channels_last), images.labels[batch]
