"""The compact files that come with the scripts: those of the README's table."""
import pytest

import huffman_coding
import util
from net.compact import compact_from_model
from net.live import live_network
from net.models import load_model

FILES = huffman_coding.PRETRAINED
AT_LEAST = {'accurate': (900, 76), 'smallest': (25_000, 60)}  # name -> compression rate, accuracy in percent


@pytest.fixture(scope='module', params=FILES)
def name(request):
    return request.param


@pytest.fixture(scope='module')
def model(name):
    return huffman_coding.load_compact(FILES[name])


def test_the_rate_is_that_of_the_readme(name, model):
    n_bytes = FILES[name].stat().st_size
    rate = sum(4 * param.numel() for param in model.parameters()) / n_bytes
    assert rate >= AT_LEAST[name][0]
    readme = (FILES[name].parents[2] / 'README.md').read_text(encoding='utf-8')
    assert f'{n_bytes:,} of 81,378,600 | **{rate:,.0f}x**' in readme


def test_encoding_it_again_gives_the_same_file(name, model):
    assert compact_from_model(model) == FILES[name].read_bytes()


def test_the_script_decodes_it_by_its_name_to_the_same_model(name, model):
    huffman_coding.main(['--from-compact', name, '--save-model-path', 'decoded.ptmodel', '--no-cuda'])
    huffman_coding.check_lossless(model, load_model('decoded.ptmodel'))


def test_it_classifies_as_many_test_images_as_the_readme_says(name, model, cifar10_test_images):
    assert util.test(live_network(model), images=cifar10_test_images) >= AT_LEAST[name][1]
