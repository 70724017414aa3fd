"""The network that comes with the scripts, decoded and used from the command line."""
import itertools
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from scripts import SMALLEST

import huffman_coding
from net import command_line
from net.data import load_photo, normalize


def photo(name='photo.png', size=(64, 48)):
    Image.effect_noise(size, 80).convert('RGB').save(name)
    return name


def test_a_photo_is_classified_without_any_data(capsys):
    huffman_coding.main(['--classify', photo(), photo('grey.jpg'), '--no-cuda'])
    device, data, decoded, *lines = capsys.readouterr().out.splitlines()
    assert decoded == f'{SMALLEST}: {SMALLEST.stat().st_size} bytes, decoded'
    assert data == "There are no images in 'data' to measure the accuracy on"
    for name, line in zip(['photo.png', 'grey.jpg'], lines, strict=True):
        found = re.findall(r'([a-z]+) ([\d.]+) %', line)
        assert line.startswith(f'{name}: ') and len(found) == 3
        assert {label for label, _ in found} <= set(huffman_coding.CIFAR10_CLASSES)
        shares = [float(share) for _, share in found]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 100.1


def test_the_answer_is_that_of_the_network(capsys):
    huffman_coding.main(['--classify', photo(), '--no-cuda'])
    model = huffman_coding.load_compact(SMALLEST).eval()
    pixels = load_photo('photo.png')
    assert pixels.shape == (1, 3, 32, 32) and pixels.dtype == torch.uint8
    best = model(normalize(pixels)).argmax().item()
    assert f'photo.png: {huffman_coding.CIFAR10_CLASSES[best]} ' in capsys.readouterr().out


def test_the_accuracy_is_measured_where_there_are_images(capsys):
    for split, name in itertools.product(('train', 'test'), huffman_coding.CIFAR10_CLASSES):
        Path('images', split, name).mkdir(parents=True)
        photo(f'images/{split}/{name}/1.png')
    huffman_coding.main(['--classify', '--data', 'images', '--no-cuda'])
    assert re.search(r'^Test set: .* Accuracy: \d/10 ', capsys.readouterr().out, re.M)


def test_images_of_other_classes_are_refused():
    with pytest.raises(ValueError, match='^digits: the network knows airplane, automobile, .*, the images are 0, 1, 2'):
        huffman_coding.main(['--classify', '--data', 'digits', '--no-cuda'])


def test_another_compact_file_is_used_with_the_names_of_its_data(capsys):
    file = str(SMALLEST)
    huffman_coding.main(['--classify', photo(), '--from-compact', file, '--data', 'digits', '--no-cuda'])
    assert re.search(r'^photo.png: \d [\d.]+ %, \d ', capsys.readouterr().out, re.M)


def test_a_photo_is_its_middle_square(tmp_path):
    image = Image.new('RGB', (96, 32), 'red')
    image.paste('blue', (32, 0, 64, 32))
    image.save('flag.png')
    assert load_photo('flag.png')[0, :, 16, 16].tolist() == [0, 0, 255]
    assert (load_photo('flag.png')[0, 0] == 0).all()


@pytest.mark.parametrize('content, message', [
    (None, 'no such image'), (b'', 'not a readable image'), (b'no image', 'not a readable image')])
def test_what_is_no_image_ends_in_one_line_before_anything_is_decoded(content, message, monkeypatch):
    if content is not None:
        Path('x.png').write_bytes(content)
    monkeypatch.setattr(huffman_coding, 'load_compact', None)
    with pytest.raises(SystemExit, match=f'^error: x.png: {message}'):
        command_line.run(lambda: huffman_coding.main(['--classify', 'x.png', '--no-cuda']))
