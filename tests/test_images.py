"""Image files: whatever the format, one reader gives the same right pixels to a training and to a single photo."""
import re
import struct
import zlib
from pathlib import Path

from net import data
from net.data import SIZE, image_files, load_images, load_photo

import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torchvision.datasets import ImageFolder

RED, GREEN, BLUE, ORANGE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50)


def plain(mode, colour, size=(SIZE, SIZE)):
    return Image.new(mode, size, colour)


def quarters(size=(64, 32)):
    """Red and green above, blue and black below: each turn and each mirror image is another picture."""
    image = Image.new('RGB', size)
    width, height = size[0] // 2, size[1] // 2
    for colour, corner in (RED, (0, 0)), (GREEN, (width, 0)), (BLUE, (0, height)):
        image.paste(colour, (*corner, corner[0] + width, corner[1] + height))
    return image


def as_class(path):
    """The same file as the only training image of a folder -> its pixels."""
    for split in 'train', 'test':
        Path('folder', split, 'a').mkdir(parents=True)
        Path('folder', split, 'a', path).write_bytes(Path(path).read_bytes())
    return load_images('folder').pixels


def with_transparency(image, index):
    image.info['transparency'] = index
    return image


def palette_image():
    image = plain('P', 1)
    image.putpalette([9, 9, 9, *ORANGE])
    return image


# ---- formats and modes -----------------------------------------------------------------------------------------------

LOSSLESS = {'lossless': True}
FILES = [  # name, image, what saving it takes, its pixel
    *((f'x{suffix}', plain('RGB', ORANGE), {}, ORANGE)
      for suffix in ('.png', '.PNG', '.apng', '.bmp', '.gif', '.ico', '.jp2', '.pcx', '.ppm', '.sgi', '.tga', '.tiff')),
    ('x.webp', plain('RGB', ORANGE), LOSSLESS, ORANGE),
    ('x.jpg', plain('RGB', (200, 200, 200)), {}, (200, 200, 200)),
    ('x.jfif', plain('L', 90), {}, (90, 90, 90)),
    ('x.mpo', plain('RGB', (8, 8, 8)), {'save_all': True, 'append_images': [plain('RGB', RED)]}, (8, 8, 8)),
    ('moving.gif', plain('RGB', RED), {'save_all': True, 'append_images': [plain('RGB', BLUE)]}, RED),
    ('moving.webp', plain('RGB', RED), {'save_all': True, 'append_images': [plain('RGB', BLUE)], **LOSSLESS}, RED),
    ('pages.tif', plain('RGB', RED), {'save_all': True, 'append_images': [plain('RGB', BLUE)]}, RED),
    ('one-bit.png', plain('1', 1), {}, (255, 255, 255)),
    ('gray.png', plain('L', 100), {}, (100, 100, 100)),
    ('palette.png', palette_image(), {}, ORANGE),
    ('cmyk.tif', plain('CMYK', (255, 0, 0, 0)), {}, (0, 255, 255)),
    ('lab.tif', plain('LAB', (137, 128, 128)), {}, (128, 128, 128)),  # a lightness of 53.7 %, no colour
    # 16 bits: 257 times what 8 bits hold
    ('deep.png', plain('I;16', 257 * 100), {}, (100, 100, 100)),
    ('white.png', plain('I;16', 65535), {}, (255, 255, 255)),
    ('deep.pgm', plain('I', 257 * 100), {}, (100, 100, 100)),
    ('deep.tif', plain('I;16', 257 * 100), {}, (100, 100, 100)),
    ('deep-big-endian.tif', plain('I;16B', 257 * 100), {}, (100, 100, 100)),
    ('deep-32.tif', plain('I', 257 * 100), {}, (100, 100, 100)),
    # on white: 0.2 of the colour and 0.8 of 255
    ('half.png', plain('RGBA', (200, 100, 50, 51)), {}, (244, 224, 214)),
    ('half.webp', plain('RGBA', (200, 100, 50, 51)), {**LOSSLESS, 'exact': True}, (244, 224, 214)),
    ('half.tif', plain('RGBA', (200, 100, 50, 51)), {}, (244, 224, 214)),
    ('gray-half.png', plain('LA', (100, 51)), {}, (224, 224, 224)),
    ('hidden.png', plain('RGBA', (0, 0, 0, 0)), {}, (255, 255, 255)),
    ('palette-hidden.gif', with_transparency(palette_image(), 1), {'transparency': 1}, (255, 255, 255)),
    ('palette-half.png', palette_image(), {'transparency': bytes([0, 51])}, (244, 224, 214)),
    ('key.png', plain('RGB', ORANGE), {'transparency': ORANGE}, (255, 255, 255)),
    ('gray-key.png', plain('L', 100), {'transparency': 100}, (255, 255, 255)),
]


@pytest.mark.parametrize('name, image, options, pixel', FILES, ids=[name for name, *_ in FILES])
def test_every_format_has_its_colours_in_a_class_folder_and_as_a_photo(name, image, options, pixel):
    image.save(name, **options)
    pixels = load_photo(name)
    assert pixels.shape == (1, 3, SIZE, SIZE) and pixels.dtype == torch.uint8
    assert (pixels.int() - torch.tensor(pixel).reshape(1, 3, 1, 1)).abs().max() <= 1
    assert torch.equal(as_class(name), pixels)


def test_a_format_that_only_some_pillows_know_is_an_image_where_they_do():
    Image.init()
    if '.avif' not in Image.registered_extensions():
        pytest.skip('this Pillow does not read AVIF')
    plain('L', 90).save('x.avif')
    assert (load_photo('x.avif').int() - 90).abs().max() <= 2
    assert torch.equal(as_class('x.avif'), load_photo('x.avif'))


def test_a_gray_of_16_bits_that_stands_for_transparent_is_white():
    plain('I;16', 3000).save('x.png')
    key = b'tRNS' + struct.pack('>H', 3000)  # not all versions of Pillow write it
    chunk = struct.pack('>I', 2) + key + struct.pack('>I', zlib.crc32(key))
    content = Path('x.png').read_bytes()
    start_of_pixels = content.index(b'IDAT') - 4
    Path('x.png').write_bytes(content[:start_of_pixels] + chunk + content[start_of_pixels:])
    assert (load_photo('x.png') == 255).all()


def test_gray_of_12_bits_in_a_tiff_is_scaled():
    tags = [(256, SIZE), (257, SIZE), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, SIZE), (279, 1536)]
    entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags)  # each one 32-bit number
    two_pixels = bytes([0x80, 0x08, 0x00])  # 0x800 and 0x800, half of 12 bits
    Path('x.tif').write_bytes(b'II*\0' + struct.pack('<IH', 8, len(tags)) + entries + bytes(4) + two_pixels * 512)
    assert (load_photo('x.tif') == 128).all()


@pytest.mark.parametrize('image, name, message', [
    (plain('F', 0.5), 'x.tif', 'floating-point pixels, expected integers'),
    (plain('I', 70000), 'x.tif', 'pixels from 70000 to 70000, expected 0 to 65535'),
    (plain('I', -1), 'x.tif', 'pixels from -1 to -1, expected 0 to 65535')])
def test_pixels_that_nothing_says_how_to_scale_are_refused(image, name, message):
    image.save(name)
    with pytest.raises(ValueError, match=f'^{name}: not a readable image .{message}.$'):
        load_photo(name)


@pytest.mark.parametrize('content', [b'', b'no image', b'\x89PNG\r\n\x1a\n cut short'])
def test_an_unreadable_image_is_named(content):
    Path('x.png').write_bytes(content)
    with pytest.raises(ValueError, match='^x.png: not a readable image'):
        load_photo('x.png')


# ---- geometry --------------------------------------------------------------------------------------------------------

def test_an_image_of_32x32_keeps_its_bytes():
    image = Image.effect_noise((SIZE, SIZE), 80).convert('RGB')
    image.save('x.png')
    assert load_photo('x.png')[0].permute(1, 2, 0).numpy().tobytes() == image.tobytes()


@pytest.mark.parametrize('size, box', [((96, 32), (32, 0, 64, 32)), ((32, 96), (0, 32, 32, 64))])
def test_an_image_is_its_middle_square(size, box):
    image = plain('RGB', RED, size)
    image.paste(BLUE, box)
    image.save('x.png')
    assert (load_photo('x.png') == torch.tensor(BLUE).reshape(1, 3, 1, 1)).all()


@pytest.mark.parametrize('size', [(1, 1), (8, 8), (1, 500), (33, 31), (640, 480)])
def test_an_image_of_any_size_becomes_32x32(size):
    plain('RGB', ORANGE, size).save('x.png')
    assert (load_photo('x.png') == torch.tensor(ORANGE).reshape(1, 3, 1, 1)).all()


@pytest.mark.parametrize('name, options', [
    ('x.png', {}), ('x.jpg', {'quality': 100, 'subsampling': 0}), ('x.webp', LOSSLESS), ('x.tif', {}),
    ('packed.tif', {'compression': 'tiff_lzw'})])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_an_image_stands_upright(orientation, name, options):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    quarters().save(name, exif=exif, **options)
    with Image.open(name) as image:
        ImageOps.exif_transpose(image).save('upright.png')
    assert (load_photo(name).int() - load_photo('upright.png').int()).abs().max() <= 2
    assert torch.equal(as_class(name), load_photo(name))


HEADER = b'II*\0' + struct.pack('<IH', 8, 2)
TURNED = struct.pack('<HHIHH', ExifTags.Base.Orientation, 3, 1, 6, 0)  # by a quarter, as one 16-bit number
NO_RESOLUTION = struct.pack('<HHI4s', ExifTags.Base.XResolution, 2, 4, b'abc')  # text in place of a fraction


@pytest.mark.parametrize('exif, upright', [
    (HEADER + TURNED + NO_RESOLUTION + bytes(4), Image.Transpose.ROTATE_270),
    (HEADER + TURNED[:5], None),
    (b'no header', None)])
@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')
def test_damaged_exif_data_costs_no_image(exif, upright):
    (quarters() if upright is None else quarters().transpose(upright)).save('upright.png')
    for name in 'x.jpg', 'x.png':
        quarters().save(name, exif=b'Exif\0\0' + exif, quality=100, subsampling=0)
        assert (load_photo(name).int() - load_photo('upright.png').int()).abs().max() <= 2


# ---- large images ----------------------------------------------------------------------------------------------------

def test_a_photo_of_200_megapixels_is_shrunk_while_it_is_decoded():
    plain('L', 90, (20000, 10000)).save('x.jpg')
    assert (load_photo('x.jpg').int() - 90).abs().max() <= 1


def test_a_large_photo_looks_as_it_does_decoded_in_full():
    image = Image.effect_noise((64, 64), 80).resize((1024, 1024), Image.Resampling.BICUBIC)
    image.save('x.jpg', quality=95)
    with Image.open('x.jpg') as image:
        image.save('whole.png')
    assert (load_photo('x.jpg').int() - load_photo('whole.png').int()).abs().max() <= 4


@pytest.mark.parametrize('name, options', [('x.png', {}), ('x.jpg', {'progressive': True})])
def test_an_image_that_takes_too_much_memory_is_to_be_made_smaller(name, options, monkeypatch):
    plain('L', 90, (1200, 600)).save(name, **options)
    monkeypatch.setattr(data, 'MAX_PIXELS', 1200 * 600 - 1)
    with pytest.raises(ValueError, match=f'^{name}: not a readable image .1200 x 600 pixels, make it smaller'):
        load_photo(name)
    monkeypatch.setattr(data, 'MAX_PIXELS', 1200 * 600)
    assert (load_photo(name).int() - 90).abs().max() <= 1


@pytest.mark.parametrize('content', [b'no image', None])
def test_pillows_own_limit_stays_what_it_was(content, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    plain('L', 90, (64, 64)).save('x.png')  # more than twice as many: Pillow would refuse it
    if content:
        Path('x.png').write_bytes(content)
        with pytest.raises(ValueError, match='not a readable image'):
            load_photo('x.png')
    else:
        assert (load_photo('x.png') == 90).all()
    assert Image.MAX_IMAGE_PIXELS == 1000


# ---- class folders ---------------------------------------------------------------------------------------------------

def write(*paths):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        plain('RGB', ORANGE).save(path, format='png')


def test_images_come_in_the_order_of_torchvisions_image_folder():
    names = ['b/2.png', 'b/10.png', 'a-b/1.png', 'a/x/2.png', 'a/x-y/1.png', 'a/z.png', 'a/x/y/3.png', 'C/1.png']
    for i, name in enumerate(names):
        write(f'images/train/{name}', f'images/test/{name}')
        plain('RGB', (i, i, i)).save(f'images/train/{name}')
    images, expected = load_images('images'), ImageFolder('images/train')
    assert images.classes == tuple(expected.classes) and images.labels.tolist() == expected.targets
    order = [names.index(Path(path).relative_to('images/train').as_posix()) for path, _ in expected.samples]
    assert images.pixels[:, 0, 0, 0].tolist() == order and images.pixels.is_contiguous()


@pytest.mark.parametrize('left', ['.DS_Store', '._1.png', 'Thumbs.db', 'desktop.ini', '.ipynb_checkpoints/1.png',
                                  '__MACOSX/1.png', '__MACOSX/cat/._1.png', '@eaDir/1.png/SYNOPHOTO.jpg'])
@pytest.mark.parametrize('where', ['images', 'images/train', 'images/test', 'images/train/cat', 'images/train/cat/x'])
def test_what_systems_leave_is_no_class_and_no_image_wherever_it_lies(left, where, capsys):
    write('images/train/cat/1.png', 'images/test/cat/1.png', f'{where}/{left}')
    images = load_images('images')
    assert images.classes == ('cat',) and len(images.pixels) == 1
    assert capsys.readouterr().out == ''


def test_files_that_are_no_images_by_name_are_passed_over_in_one_line(capsys):
    write('images/train/cat/1.png', 'images/train/dog/1.png', 'images/test/cat/1.png', 'images/test/dog/1.png')
    for name in 'train/dog/notes.txt', 'train/cat/2.heic', 'train/cat/a.pdf', 'test/dog/film.mp4', 'test/dog/film.mpg':
        Path('images', name).touch()
    assert len(load_images('images').pixels) == len(load_images('images', train=False).pixels) == 2
    assert capsys.readouterr().out == (
        f'{Path("images/train")}: passed over {Path("images/train/cat/2.heic")} and 2 more, no images by name\n'
        f'{Path("images/test")}: passed over {Path("images/test/dog/film.mp4")} and 1 more, no images by name\n')


def test_a_class_without_images_is_named(capsys):
    write('images/train/cat/1.png', 'images/test/cat/1.png', 'images/train/dog/1.heic', 'images/test/dog/1.png')
    with pytest.raises(ValueError, match='^images: expected images in .*, none is in train/dog/$'):
        load_images('images')
    assert '1.heic, no images by name' in capsys.readouterr().out


# ---- images to classify ----------------------------------------------------------------------------------------------

def test_files_folders_and_patterns_become_paths(capsys, monkeypatch):
    write('2.png', '1.png', '4.png', '3.png', 'album/b.png', 'album/a.jpg', 'album/.hidden.png', 'album/below/c.png',
          'home/d.png')
    Path('album/notes.txt').touch()
    monkeypatch.setenv('HOME', str(Path('home').absolute()))
    monkeypatch.setenv('USERPROFILE', str(Path('home').absolute()))
    paths = image_files(['album', '?.png', '2.png', 'album/notes.txt', '~/d.png'])
    assert list(map(Path, paths)) == [*map(Path, ('album/a.jpg', 'album/b.png', '1.png', '2.png', '3.png', '4.png',
                                                  '2.png', 'album/notes.txt')), Path('home/d.png').absolute()]
    assert capsys.readouterr().out == f'album: passed over {Path("album/notes.txt")}, no images by name\n'


def test_a_name_with_brackets_is_a_name_before_it_is_a_pattern():
    write('[1].png', '1.png', 'a[1]/x.png')
    assert list(map(Path, image_files(['[1].png', 'a[1]']))) == [Path('[1].png'), Path('a[1]/x.png')]


@pytest.mark.parametrize('name, message', [
    ('x.png', 'x.png: no such image or folder'), ('*.png', '*.png: no such image or folder'),
    ('empty', 'empty: no images there, found nothing'),
    ('folders', 'folders: no images there, found below'),
    ('texts', 'texts: no images there, found 1.txt, 2.txt, 3.txt, ...')])
def test_where_no_image_is_one_line_says_so(name, message):
    Path('empty').mkdir()
    write('folders/below/1.png', *(f'texts/{i}.txt' for i in range(1, 5)))
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        image_files([name])
