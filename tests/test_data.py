from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from torchvision import transforms

from net.data import Images, batches, load_images, normalize, random_crop, random_flip


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
    epochs = [list(batches(images, 4, crop=False)) for _ in range(2)]
    for epoch in epochs:
        assert [len(labels) for _, labels in epoch] == [4, 4, 2]
        for pixels, labels in epoch:
            for image, original in zip(pixels, normalize(images.pixels[labels]), strict=True):
                assert torch.equal(image, original) or torch.equal(image, original.flip(2))
            assert pixels.is_contiguous(memory_format=torch.channels_last)
    orders = [torch.cat([labels for _, labels in epoch]).tolist() for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10)) and orders[0] != orders[1]


def test_images_held_out_are_always_the_same_and_no_longer_trained_on():
    images = random_images(50, n_classes=50)
    train, held_out = images.split(10)
    torch.manual_seed(1)
    assert torch.equal(images.split(10)[1].labels, held_out.labels)
    assert len(held_out.labels) == 10
    assert sorted(torch.cat([train.labels, held_out.labels]).tolist()) == list(range(50))


@pytest.mark.parametrize('n', [0, 50, 51])
def test_some_images_must_be_left_to_train_on(n):
    with pytest.raises(ValueError, match=f'hold out 1 to 49 .* got {n}'):
        random_images(50).split(n)


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


def test_images_of_other_sizes_and_modes_become_32x32_rgb():
    make_folder(size=(50, 20))
    Image.new('L', (8, 8), 200).save('images/train/dog/1.png')
    images = load_images('images')
    assert images.pixels.shape == (3, 3, 32, 32)
    assert (images.pixels[2] == 200).all()


def test_both_splits_must_have_the_same_classes():
    make_folder(classes=('cat', 'dog'), splits=['train'])
    make_folder(classes=('cat', 'eel'), splits=['test'])
    with pytest.raises(ValueError, match='images: .* same classes, only one has dog, eel'):
        load_images('images')


@pytest.mark.parametrize('content', [b'', b'no image', b'\x89PNG\r\n\x1a\n cut short'])
def test_an_unreadable_image_is_named(content):
    make_folder()
    Path('images/train/dog/1.png').write_bytes(content)
    with pytest.raises(ValueError, match='images/train/dog/1.png: not a readable image'):
        load_images('images')


def test_a_path_object_is_as_good_as_text():
    with pytest.raises(ValueError, match='^nowhere: no such folder'):
        load_images(Path('nowhere'))


@pytest.mark.parametrize('missing', ['images/test/dog/0.png', 'images/test/dog'])
def test_folders_without_images_are_refused(missing):
    make_folder()
    for path in (Path(missing), *Path(missing).glob('*')):
        path.rename('elsewhere-' + path.name)
        break
    with pytest.raises((ValueError, FileNotFoundError), match='images'):
        load_images('images', train=False)


def test_a_folder_with_only_one_split_is_not_taken_for_a_place_to_download_to():
    make_folder(splits=['train'])
    with pytest.raises(ValueError, match='^images: has train/ but no test/, expected images in both$'):
        load_images('images')


def test_without_network_one_line_names_the_three_ways_out(monkeypatch):
    def no_network(root, **_):
        Path(root).mkdir()
        raise OSError('no route to host')
    monkeypatch.setattr(torchvision.datasets, 'CIFAR10', no_network)
    with pytest.raises(FileNotFoundError) as error:
        load_images()
    message = str(error.value)
    assert all(words in message for words in ('data', 'no route', 'cifar-10-python.tar.gz', 'train/', 'digits'))
    assert '\n' not in message
    assert not Path('data').exists()


def test_torchvisions_cifar10_is_read_where_there_are_no_train_and_test_folders(monkeypatch):
    class FakeCIFAR10:
        def __init__(self, root, train, download):
            assert (root, download) == ('data', True)
            self.data, self.targets = np.full((2 if train else 1, 32, 32, 3), (1, 2, 3), np.uint8), [3] * (1 + train)
            self.classes = ['a', 'b', 'c', 'd']
    monkeypatch.setattr(torchvision.datasets, 'CIFAR10', FakeCIFAR10)
    images = load_images()
    assert images.labels.tolist() == [3, 3] and images.pixels[0, :, 7, 7].tolist() == [1, 2, 3]
    assert images.pixels.shape == (2, 3, 32, 32) and images.classes == ('a', 'b', 'c', 'd')


@pytest.mark.slow
def test_cifar10_as_an_image_folder_has_its_ten_classes(cifar10_test_images):
    assert cifar10_test_images.classes == tuple('airplane automobile bird cat deer dog frog horse ship truck'.split())
    assert cifar10_test_images.labels.bincount().tolist() == [1000] * 10
