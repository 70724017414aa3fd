import hashlib
import re
from http.client import BadStatusLine, IncompleteRead, InvalidURL
from pathlib import Path

from net import data
from net.data import ARCHIVE, Images, batches, load_images, normalize, random_crop, random_flip

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from torchvision import transforms


def random_images(n, n_classes=10):
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % n_classes, tuple(map(str, range(n_classes))))


# ---- batches ---------------------------------------------------------------------------------------------------------

def test_normalising_is_what_torchvision_and_the_grader_do():
    pixels = random_images(5).pixels
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    expected = torch.stack([transform(image.permute(1, 2, 0).numpy()) for image in pixels])
    assert torch.allclose(normalize(pixels), expected, atol=1e-6)


def test_every_image_gets_a_crop_and_flip_of_its_own():
    images = random_images(1).pixels.repeat(50, 1, 1, 1)
    padded = np.pad(images[0].numpy(), ((0, 0), (4, 4), (4, 4)))
    crops = {(top, left, flip): padded[:, top:top + 32, left:left + 32][:, :, ::flip]
             for top in range(9) for left in range(9) for flip in (1, -1)}
    drawn = [next(key for key, crop in crops.items() if np.array_equal(crop, image))
             for image in random_flip(random_crop(images)).numpy()]
    assert len(set(drawn)) > 30
    assert {flip for _, _, flip in drawn} == {1, -1}


def test_an_epoch_shows_each_image_once_in_a_new_order_with_its_label():
    images = random_images(10)
    epochs, flips = [list(batches(images, 4, crop=False)) for _ in range(2)], []
    for epoch in epochs:
        assert [len(labels) for _, labels in epoch] == [4, 4, 2]
        for pixels, labels in epoch:
            for image, original in zip(pixels, normalize(images.pixels[labels]), strict=True):
                flips.append([torch.equal(image, original), torch.equal(image, original.flip(2))])
            assert pixels.is_contiguous(memory_format=torch.channels_last)
    orders = [torch.cat([labels for _, labels in epoch]).tolist() for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10)) and orders[0] != orders[1]
    assert {tuple(flip) for flip in flips} == {(True, False), (False, True)}  # as it is, or mirrored: both occur


def test_images_held_out_are_always_the_same_and_no_longer_trained_on():
    images = random_images(50, n_classes=50)
    train, held_out = images.split(10)
    torch.manual_seed(1)
    assert torch.equal(images.split(10)[1].labels, held_out.labels)
    assert len(held_out.labels) == 10
    assert sorted(torch.cat([train.labels, held_out.labels]).tolist()) == list(range(50))


@pytest.mark.parametrize('total, n', [(50, 0), (50, 50), (50, 51), (1, 1), (1, 1000)])
def test_some_images_must_be_held_out_and_some_left_to_train_on(total, n):
    with pytest.raises(ValueError, match=f'^cannot hold out {n} of {total} training images, expected 1 or more, and 1'):
        random_images(total).split(n)


# ---- fingerprints ----------------------------------------------------------------------------------------------------

def changed_pixel(images):
    pixels = images.pixels.clone()
    pixels[7, 2, 31, 30] ^= 1
    return images._replace(pixels=pixels)


CHANGES = [
    changed_pixel,
    lambda images: images._replace(pixels=images.pixels.flip(0)),
    lambda images: images._replace(labels=images.labels.roll(1)),
    lambda images: images._replace(classes=('other', *images.classes[1:])),
    lambda images: images._replace(classes=images.classes[::-1]),
    lambda images: Images(images.pixels[1:], images.labels[1:], images.classes),
]


def test_a_fingerprint_says_how_many_images_and_changes_with_anything_in_them():
    images = random_images(1200)
    assert re.fullmatch('1,200 images of 10 classes, CRC-32 [0-9a-f]{8}', images.fingerprint())
    assert len({images.fingerprint(), *(change(images).fingerprint() for change in CHANGES)}) == 1 + len(CHANGES)


def test_a_fingerprint_is_about_values_wherever_and_however_they_are_stored():
    images = random_images(20)
    turned = images._replace(pixels=images.pixels.contiguous(memory_format=torch.channels_last))
    assert images.fingerprint() == turned.fingerprint() == images.to('cpu').fingerprint()


# ---- loading ---------------------------------------------------------------------------------------------------------

def test_digits_are_a_fixed_stratified_split_of_real_images():
    train, test = load_images('digits'), load_images('digits', train=False)
    assert train.pixels.shape == (1437, 3, 32, 32) and test.pixels.shape == (360, 3, 32, 32)
    assert train.pixels.dtype == torch.uint8 and train.pixels.min() == 0 and train.pixels.max() == 255
    assert all(35 <= n <= 37 for n in test.labels.bincount())
    assert not {image.tobytes() for image in train.pixels.numpy()} & {image.tobytes() for image in test.pixels.numpy()}
    assert torch.equal(test.pixels, load_images('digits', train=False).pixels)


def make_folder(root='images', classes=('cat', 'dog'), size=(32, 32), splits=('train', 'test')):
    for split in splits:
        for i, name in enumerate(classes):
            folder = Path(root, split, name)
            folder.mkdir(parents=True)
            Image.new('RGB', size, (10 * i, 20, 30)).save(folder / '0.png')


def test_an_image_folder_is_read_in_the_order_of_its_classes():
    make_folder()
    images = load_images('images')
    assert images.classes == ('cat', 'dog') and images.labels.tolist() == [0, 1]
    assert images.pixels[:, :, 5, 5].tolist() == [[0, 20, 30], [10, 20, 30]]


def test_both_splits_must_have_the_same_classes():
    make_folder(classes=('cat', 'dog'), splits=['train'])
    make_folder(classes=('cat', 'eel'), splits=['test'])
    with pytest.raises(ValueError, match='images: .* same classes, only one has dog, eel'):
        load_images('images')


@pytest.mark.parametrize('missing', ['images/test/dog/0.png', 'images/test/dog', 'images/test'])
def test_folders_without_images_are_refused(missing):
    make_folder()
    Path(missing).rename('elsewhere')
    with pytest.raises(ValueError, match='^images: .*(none is in test/dog/|only one has dog|has train/ but no test/)'):
        load_images('images', train=False)


def test_folders_without_classes_are_refused():
    Path('images/train').mkdir(parents=True)
    Path('images/test').mkdir()
    with pytest.raises(ValueError, match='^images: train/ and test/ must hold the same classes, found none$'):
        load_images('images')


# ---- what --data may mean --------------------------------------------------------------------------------------------

@pytest.fixture
def no_network(monkeypatch):
    """Without it, whoever asks for a page has failed."""
    def refuse(request, **_):
        pytest.fail('CIFAR-10 would be downloaded')
    monkeypatch.setattr('urllib.request.urlopen', refuse)


def class_folders():
    for name in 'cat', 'dog', 'eel', 'fox':
        Path('my', name).mkdir(parents=True)


WRONG_DATA = [  # what is there, --data, what the line says
    (class_folders, 'my', 'my: no images there, found cat, dog, eel, ...; expected a folder with'),
    (lambda: Path('my').mkdir(), 'my', 'my: no images there, found nothing; expected a folder with train/<class>/'),
    (lambda: Path('my').touch(), 'my', 'my: no images there, found a file; expected a folder with train/<class>/'),
    (lambda: None, 'digts', r'digts: no such folder \(did you mean digits\?\); expected .*, or the word digits'),
    (lambda: Path('pictures').mkdir(), 'picture', r'picture: no such folder \(did you mean pictures\?\)'),
    (lambda: None, 'elsewhere', 'elsewhere: no such folder; .* without --data, CIFAR-10 is downloaded into data/$'),
    (lambda: None, 'train', '^train: no such folder; expected'),
    (lambda: None, '~nobody-of-this-name', 'nobody-of-this-name: no such folder; expected'),
    (lambda: make_folder('half', splits=['train']), 'half', '^half: has train/ but no test/, expected images in both$'),
    (lambda: make_folder('half', splits=['test']), 'half', '^half: has test/ but no train/, expected images in both$'),
    (make_folder, 'images/train', r'^images/train: no .*, found cat, dog \(did you mean \S+[\\/]images\?\); expected'),
    (make_folder, 'images/test/', r'^images/test/: no .*, found cat, dog \(did you mean \S+[\\/]images\?\); expected'),
    (make_folder, 'images/train/cat', r'^images/train/cat: .*, found 0.png \(did you mean \S+[\\/]images\?\); '),
    (make_folder, 'images/valid', r'^images/valid: no such folder \(did you mean \S+[\\/]images\?\); expected'),
    (lambda: make_folder('zip/images'), 'zip', r'^zip: .*, found images \(did you mean \S+[\\/]zip[\\/]images\?\); '),
    (lambda: make_folder('half', splits=['train']), 'half/train', r'found cat, dog \(did you mean \S+[\\/]half\?\)'),
]


@pytest.mark.parametrize('make, root, message', WRONG_DATA)
def test_data_that_is_not_what_was_meant_is_named_and_nothing_is_downloaded(make, root, message, no_network):
    make()
    before = set(Path().rglob('*'))
    with pytest.raises(ValueError, match=message) as error:
        load_images(root)
    assert '\n' not in str(error.value)
    assert set(Path().rglob('*')) == before


def test_a_path_object_is_as_good_as_text():
    with pytest.raises(ValueError, match='^nowhere: no such folder'):
        load_images(Path('nowhere'))


def test_the_sign_for_the_home_folder_is_understood(monkeypatch):
    make_folder('home/images')
    monkeypatch.setenv('HOME', str(Path('home').absolute()))
    monkeypatch.setenv('USERPROFILE', str(Path('home').absolute()))
    assert load_images('~/images').classes == ('cat', 'dog')


def test_the_word_digits_means_a_folder_of_that_name_if_it_has_images(capsys, monkeypatch):
    monkeypatch.setattr(data, '_load_digits', lambda train: 'those of scikit-learn')
    assert load_images('digits') == 'those of scikit-learn'
    assert capsys.readouterr().out == ''
    Path('digits').mkdir()
    assert load_images('digits') == 'those of scikit-learn'
    assert capsys.readouterr().out == "Images for train: scikit-learn's: digits/ has no train/ and test/ inside\n"
    make_folder('digits')
    assert load_images('digits', train=False).classes == ('cat', 'dog')
    assert capsys.readouterr().out == 'Images for test: those in digits/\n'


# ---- CIFAR-10 --------------------------------------------------------------------------------------------------------

class FakeCIFAR10:
    """Stands for torchvision's."""
    def __init__(self, root, train, download):
        assert download
        self.data, self.targets = np.full((2 if train else 1, 32, 32, 3), (1, 2, 3), np.uint8), [3] * (1 + train)
        self.classes = ['a', 'b', 'c', 'd', root]


@pytest.mark.parametrize('root, part', [('data', ''), ('elsewhere', ARCHIVE), ('elsewhere', 'cifar-10-batches-py')])
def test_torchvisions_cifar10_is_read_where_it_is_or_may_be_downloaded(root, part, monkeypatch):
    Path(root, part).mkdir(parents=True)
    monkeypatch.setattr(torchvision.datasets, 'CIFAR10', FakeCIFAR10)
    images = load_images(root)
    assert images.labels.tolist() == [3, 3] and images.pixels[0, :, 7, 7].tolist() == [1, 2, 3]
    assert images.pixels.shape == (2, 3, 32, 32) and images.classes == ('a', 'b', 'c', 'd', root)


class Reply:
    """What a server answers, in parts, the last of which may be an error."""
    def __init__(self, *parts):
        self.url, self.length, self.parts = None, None, iter(parts)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, _):
        part = next(self.parts, b'')
        if isinstance(part, BaseException):
            raise part
        return part


def replying(*parts):
    return lambda *_, **__: Reply(*parts)


def raising(error):
    def urlopen(*_, **__):
        raise error
    return urlopen


DOWNLOADS = [  # what a request meets, what the line says of it
    (raising(OSError('no route to host')), 'no route to host'),
    (raising(OSError('two\nlines')), 'two lines'),
    (raising(InvalidURL("nonnumeric port: 'none'")), "nonnumeric port: 'none'"),
    (raising(ValueError('Invalid IPv6 URL')), 'Invalid IPv6 URL'),
    (raising(UnicodeError('label too long')), 'label too long'),
    (raising(BadStatusLine('SSH-2.0\r\n')), r"BadStatusLine('SSH-2.0\r\n')"),
    (replying(b'half of it', IncompleteRead(b'', 99)), 'IncompleteRead(0 bytes read, 99 more expected)'),
    (replying(b'half of it', ConnectionResetError('reset by peer')), 'reset by peer'),
    (replying(b'<html>Please log in'), 'File not found or corrupted.'),
]


@pytest.mark.parametrize('urlopen, reason', DOWNLOADS)
@pytest.mark.parametrize('was_there', [False, True])
def test_a_failed_download_is_told_in_one_line_and_leaves_nothing(was_there, urlopen, reason, monkeypatch):
    monkeypatch.setattr('urllib.request.urlopen', urlopen)
    if was_there:
        Path('data').mkdir()
    with pytest.raises(FileNotFoundError) as error:
        load_images()
    message = str(error.value)
    assert message.startswith("CIFAR-10 is not in 'data' and cannot be downloaded (")
    assert all(words in message for words in (reason, 'cifar-10-python.tar.gz', 'train/', 'digits'))
    assert '\n' not in message
    assert list(Path().rglob('*')) == [Path('data')] * was_there


def test_ctrl_c_leaves_no_half_of_a_download(monkeypatch):
    monkeypatch.setattr('urllib.request.urlopen', replying(b'half of it', KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        load_images()
    assert not list(Path().iterdir())


@pytest.mark.parametrize('download, reason', [
    (True, ' and cannot be downloaded (no route to host)'), (False, '')])
def test_a_damaged_archive_is_called_so_and_stays(download, reason, monkeypatch):
    monkeypatch.setattr('urllib.request.urlopen', raising(OSError('no route to host')))
    Path('data').mkdir()
    Path('data', ARCHIVE).write_bytes(bytes(12_345))
    with pytest.raises(FileNotFoundError) as error:
        load_images(download=download)
    assert str(error.value).startswith(
        f'{Path("data", ARCHIVE)} is damaged (12,345 bytes, expected 170,498,071 with the MD5 '
        f'c58f30108f718f92721af3b95e74349a){reason}: put ')
    assert Path('data', ARCHIVE).stat().st_size == 12_345


def test_a_whole_archive_is_not_called_damaged_and_stays_when_it_cannot_be_unpacked(monkeypatch):
    def disk_full(root, **_):
        Path(root, ARCHIVE).write_bytes(b'whole')
        raise OSError('no space left')
    monkeypatch.setattr(torchvision.datasets, 'CIFAR10', disk_full)
    monkeypatch.setattr(data, 'ARCHIVE_BYTES', len(b'whole'))
    monkeypatch.setattr(data, 'ARCHIVE_MD5', hashlib.md5(b'whole').hexdigest())
    Path('data').mkdir()
    for _ in 'downloaded now', 'there already':
        with pytest.raises(FileNotFoundError, match="^CIFAR-10 is not in 'data' and cannot be downloaded .no space"):
            load_images()
        assert Path('data', ARCHIVE).read_bytes() == b'whole'


def test_a_whole_archive_is_unpacked_where_nothing_may_be_downloaded(monkeypatch):
    asked = []
    monkeypatch.setattr(torchvision.datasets, 'CIFAR10', lambda root, train, download: asked.append(download))
    monkeypatch.setattr(data, 'ARCHIVE_MD5', hashlib.md5(b'whole').hexdigest())
    Path('data').mkdir()
    for content in b'whole', b'half':
        Path('data', ARCHIVE).write_bytes(content)
        with pytest.raises(AttributeError):  # None is no data set
            load_images(download=False)
    assert asked == [True, False]


def test_what_is_expected_of_the_archive_is_what_torchvision_expects():
    assert torchvision.datasets.CIFAR10.filename == ARCHIVE
    assert torchvision.datasets.CIFAR10.tgz_md5 == data.ARCHIVE_MD5


@pytest.mark.slow
def test_cifar10_as_an_image_folder_has_its_ten_classes(cifar10_test_images):
    assert cifar10_test_images.classes == tuple('airplane automobile bird cat deer dog frog horse ship truck'.split())
    assert cifar10_test_images.labels.bincount().tolist() == [1000] * 10
