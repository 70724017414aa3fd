"""The smallest model of the README: the compact file that comes with the repository."""

import pytest

import huffman_coding
import util
from net.compact import compact_from_model
from net.live import live_network
from net.models import load_model

FILE = huffman_coding.SHIPPED


@pytest.fixture(scope='module')
def model():
    return huffman_coding.load_compact(FILE)


def test_the_rate_is_that_of_the_readme(model):
    n_bytes = FILE.stat().st_size
    rate = sum(4 * param.numel() for param in model.parameters()) / n_bytes
    assert rate > 22_600
    readme = (FILE.parents[2] / 'README.md').read_text(encoding='utf-8')
    assert f'{n_bytes:,} of 81,378,600 | **{rate:,.0f}x**' in readme


def test_encoding_it_again_gives_the_same_file(model):
    assert compact_from_model(model) == FILE.read_bytes()


def test_the_script_decodes_it_to_the_same_model(model):
    huffman_coding.main(['--from-compact', str(FILE), '--save-model-path', 'decoded.ptmodel', '--no-cuda'])
    huffman_coding.check_lossless(model, load_model('decoded.ptmodel'))


def test_it_classifies_at_least_60_percent_of_the_test_images(model, cifar10_test_images):
    assert util.test(live_network(model), images=cifar10_test_images) >= 60
