"""Images: a whole split as one tensor, from where they are stored to the normalised batches of a training."""
import difflib
import glob
import os
import zlib
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from net.errors import UserError, is_out_of_memory

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

# torchvision, Pillow and scikit-learn take seconds to import, so that happens in the functions that need them.

# MNIST's constants, which the homework's scaffold applies to all three channels of CIFAR-10: a model trained with
# others would lose accuracy when it is graded.
MEAN, STD = 0.1307, 0.3081
SIZE = 32  # pixels, width and height
PADDING = 4  # pixels on every side, before the random crop
SPLITS = 'train', 'test'
DOWNLOAD_FOLDER = 'data'  # the only one that CIFAR-10 is downloaded into, unless it holds some of it already
ARCHIVE, ARCHIVE_BYTES, ARCHIVE_MD5 = 'cifar-10-python.tar.gz', 170_498_071, 'c58f30108f718f92721af3b95e74349a'
CIFAR10_CLASSES = 'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'
CIFAR10_PARTS = 'cifar-10-batches-py', ARCHIVE
STUBS = {'BUFR', 'GRIB', 'HDF5', 'MPEG'}  # formats that Pillow knows by name only
CLUTTER = {'__macosx', '@eadir', 'thumbs.db', 'desktop.ini'}  # what systems leave, in lower case
MAX_PIXELS = 64_000_000  # of an image in memory, where each takes up to 12 bytes
ORIENTATION = 0x0112  # an EXIF tag
UPRIGHT = {2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM', 5: 'TRANSPOSE', 6: 'ROTATE_270',
           7: 'TRANSVERSE', 8: 'ROTATE_90'}  # what undoes an orientation


class Images(NamedTuple):
    """A whole split on one device."""
    pixels: torch.Tensor  # (n, 3, 32, 32), uint8
    labels: torch.Tensor  # (n,), int64, 0 to len(classes) - 1
    classes: tuple  # of names

    def to(self, device):
        return Images(self.pixels.to(device), self.labels.to(device), self.classes)

    def split(self, n):
        """All but `n` images, and those `n`: drawn at random, but always the same ones."""
        total = len(self.labels)
        if not 0 < n < total:
            raise UserError(f'cannot hold out {n} of {total} training images, expected 1 or more, and 1 or more left')
        order = torch.randperm(total, generator=torch.Generator().manual_seed(0)).to(self.labels.device)
        return tuple(Images(self.pixels[i], self.labels[i], self.classes) for i in (order[n:], order[:n]))

    def fingerprint(self):
        """A line that other pixels, labels or classes would change."""
        crc = zlib.crc32(repr(self.classes).encode())
        for tensor in self.labels, self.pixels:
            crc = zlib.crc32(tensor.cpu().contiguous().numpy(), crc)
        return f'{len(self.labels):,} images of {len(self.classes)} classes, CRC-32 {crc:08x}'


# ---- loading ---------------------------------------------------------------------------------------------------------

def load_images(root=DOWNLOAD_FOLDER, train=True, download=True):
    """Read one split: of an image folder with train/ and test/ inside, of `digits`, or of torchvision's CIFAR-10.

    Raises UserError or OSError with one line that names what is missing, or the image that cannot be read.
    """
    root = os.path.expanduser(root)  # shells leave the ~ of --data=~/images
    split = SPLITS[0 if train else 1]
    own_images = is_image_folder(root)
    if root == 'digits' and Path(root).exists():
        taken = 'those in digits/' if own_images else "scikit-learn's: digits/ has no train/ and test/ inside"
        print(f'Images for {split}: {taken}')
    if own_images:
        return _load_folder(Path(root), split)
    if root == 'digits':
        return _load_digits(train)
    if Path(root) == Path(DOWNLOAD_FOLDER) or any(Path(root, part).exists() for part in CIFAR10_PARTS):
        return _load_cifar10(root, train, download)
    raise UserError(_no_data(root))


def is_image_folder(root):
    """Whether a folder has train/ or test/ inside, and so is not the word `digits`, or CIFAR-10."""
    return any(Path(root, name).is_dir() for name in SPLITS)


def _no_data(root):
    """One line: what was found, what was looked for, and the ways out."""
    path = Path(os.path.abspath(root))
    found = _found(path) if path.exists() else 'no such folder'
    around = [*path.parents[:2], *sorted(path.glob('*/'))]
    nearest = [folder for folder in around if all(os.path.isdir(folder / split) for split in SPLITS)]
    if path.name in SPLITS and path.is_dir():
        nearest = [path.parent]
    others = {entry.name for entry in os.scandir() if entry.is_dir()} | {'digits'}
    nearest += difflib.get_close_matches(root, others - {root}, 1)
    hint = f' (did you mean {nearest[0]}?)' if nearest else ''
    return (f'{root}: {found}{hint}; expected a folder with train/<class>/ and test/<class>/, or with '
            f'{" or ".join(CIFAR10_PARTS)}, or the word digits; without --data, CIFAR-10 is downloaded into '
            f'{DOWNLOAD_FOLDER}/')


def _found(path):
    names = sorted(os.listdir(path)) if os.path.isdir(path) else ['a file']
    return f'no images there, found {", ".join(names[:3]) or "nothing"}' + (', ...' if len(names) > 3 else '')


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
    """The images in each class folder and in the folders below it, in the order of torchvision's ImageFolder."""
    classes = _folder_classes(root)
    paths = _image_files(root / split, '*/**/*')
    names = [Path(path).relative_to(root / split).parts[0] for path in paths]
    for name in sorted(set(classes) - set(names)):
        raise UserError(f'{root}: expected images in train/<class>/ and test/<class>/, none is in {split}/{name}/')
    pixels = [load_photo(path) for path in tqdm(paths, f'Reading {root / split}', leave=False, disable=None)]
    return Images(torch.cat(pixels), torch.tensor([classes.index(name) for name in names]), classes)


def _folder_classes(root):
    """The names of the classes, which train/ and test/ must both have."""
    for split, other in SPLITS, SPLITS[::-1]:
        if not (root / split).is_dir():
            raise UserError(f'{root}: has {other}/ but no {split}/, expected images in both')
    train, test = ([name for name in _entries(root / split) if (root / split / name).is_dir()] for split in SPLITS)
    if not train or train != test:
        differ = ', '.join(sorted(set(train) ^ set(test)))
        raise UserError(f'{root}: train/ and test/ must hold the same classes, ' +
                        (f'only one has {differ}' if differ else 'found none'))
    return tuple(train)


def _load_cifar10(root, train, download):
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity
    archive = Path(root, ARCHIVE)
    had_folder, had_archive = archive.parent.exists(), archive.exists()

    def is_whole():
        return had_archive and check_integrity(archive, ARCHIVE_MD5)
    try:
        cifar10 = CIFAR10(root, train=train, download=download or is_whole())  # what is there is just unpacked
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        reason = str(error) if isinstance(error, (OSError, RuntimeError)) else repr(error)
        what = f'CIFAR-10 is not in {root!r}'
        if had_archive and not is_whole():
            what = (f'{archive} is damaged ({archive.stat().st_size:,} bytes, expected {ARCHIVE_BYTES:,} with the MD5 '
                    f'{ARCHIVE_MD5})')
        why = f' and cannot be downloaded ({" ".join(reason.split())})' if download else ''
        raise FileNotFoundError(
            f'{what}{why}: put {ARCHIVE} there, '
            'or give --data FOLDER with train/<class>/ and test/<class>/ images inside, '
            'or take --data digits, which needs no download') from error
    finally:  # after Ctrl-C as well: nothing half downloaded stays
        if not had_archive and archive.exists() and archive.stat().st_size != ARCHIVE_BYTES:
            archive.unlink()
        if not had_folder:
            with suppress(OSError):  # not empty
                archive.parent.rmdir()
    pixels = torch.from_numpy(cifar10.data).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.tensor(cifar10.targets), tuple(cifar10.classes))


# ---- image files -----------------------------------------------------------------------------------------------------

def image_files(names):
    """Paths: of files, of the images in folders, and of what patterns such as *.png match (some shells expand none).

    UserError for what is not there, and for a folder without images.
    """
    paths = []
    for name in map(os.path.expanduser, names):
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name))
        if not matches:
            raise UserError(f'{name}: no such image or folder')
        for match in matches:
            images = _image_files(match, '*') if os.path.isdir(match) else [match]
            if not images:
                raise UserError(f'{match}: {_found(match)}')
            paths += images
    return paths


def _entries(folder, pattern='*'):
    """Names that match, sorted as ImageFolder does; not those that begin with a dot, or that systems leave."""
    names = glob.glob(pattern, root_dir=folder, recursive=True)
    names = [name for name in names if not CLUTTER & set(Path(name.lower()).parts)]
    return sorted(names, key=lambda name: (Path(name).parts[0], os.path.split(name)))


def _image_files(folder, pattern):
    """Paths of files that match and are images by their names, as Pillow knows them; says what else is there."""
    from PIL import Image
    Image.preinit()  # usual formats are tried first
    Image.init()
    formats = {*Image.OPEN, 'MPO'} - STUBS
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    paths = [path for name in _entries(folder, pattern) if not os.path.isdir(path := os.path.join(folder, name))]
    others = [path for path in paths if Path(path).suffix.lower() not in suffixes]
    if others:
        more = f' and {len(others) - 1} more' if others[1:] else ''
        print(f'{folder}: passed over {others[0]}{more}, no images by name')
    return [path for path in paths if Path(path).suffix.lower() in suffixes]


def load_photo(path):
    """An image file -> pixels of 1 image, (1, 3, 32, 32), uint8; the same for training and for a single photo.

    It is the middle square of the first frame: upright as EXIF has it, on white where transparent, 16-bit gray as 8.
    UserError, naming the file, for what cannot be read, floating-point pixels, and images that are too large.
    """
    from PIL import Image, ImageOps
    orientation = None
    try:
        with _open(path) as image:
            square = ImageOps.fit(_to_rgba(image), (SIZE, SIZE), Image.Resampling.BILINEAR)
            with suppress(Exception):  # damaged EXIF data turns nothing
                orientation = image.getexif().get(ORIENTATION)  # after decoding, which turns a TIFF and removes this
    except Exception as error:  # Pillow raises many types of errors for damaged images
        if is_out_of_memory(error):
            raise
        raise UserError(f'{path}: not a readable image ({error})') from error
    if orientation in UPRIGHT:
        square = square.transpose(Image.Transpose[UPRIGHT[orientation]])
    rgb = Image.new('RGB', square.size, 'white')
    rgb.paste(square, mask=square)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None].contiguous()


def _open(path):
    """Pillow's image of a file, in which a large JPEG shrinks while it is decoded; ValueError if it is too large."""
    from PIL import Image
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Pillow would count the pixels in the file
    try:
        image = Image.open(path)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    size = image.size
    image.draft(None, (8 * SIZE, 8 * SIZE))
    width, height = size if image.info.get('progressive') else image.size  # in memory
    if width * height > MAX_PIXELS:
        image.close()
        raise ValueError(f'{size[0]} x {size[1]} pixels, make it smaller: expected at most {MAX_PIXELS:,} pixels')
    return image


def _to_rgba(image):
    """Pillow's own way, but for gray of more than 8 bits, which it would clip."""
    from PIL import Image
    if image.mode == 'F':
        raise ValueError('floating-point pixels, expected integers')
    if image.mode.startswith('I'):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f'pixels from {values.min()} to {values.max()}, expected 0 to 65535')
        bits = 12 if getattr(image, 'tag_v2', {}).get(258) == (12,) else 16  # in a TIFF
        values = np.where(values == image.info.get('transparency', -1), 65535, values)  # on white
        image = Image.fromarray((values >> bits - 8).astype(np.uint8))
    return image.convert('RGBA')


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
