"""The compact files that come with the code: those of the README's table."""
import zlib

import util
from net.compact.__main__ import SHIPPED, main
from net.compact.format import compact_from_model, live_network_from_compact, model_from_compact
from net.models import check_lossless, load_model

import pytest

AT_LEAST = {'accurate': (900, 77), 'smallest': (27_000, 60)}  # name -> compression rate, accuracy in percent
CRC_32 = {'accurate': 0x925406a0, 'smallest': 0x00dd4219}  # name -> of all parameters, one after the other


@pytest.fixture(scope='module', params=SHIPPED)
def name(request):
    return request.param


@pytest.fixture(scope='module')
def model(name):
    return model_from_compact(SHIPPED[name].read_bytes())


def test_the_rate_is_that_of_the_readme(name, model):
    n_bytes = SHIPPED[name].stat().st_size
    rate = sum(4 * param.numel() for param in model.parameters()) / n_bytes
    assert rate >= AT_LEAST[name][0]
    readme = (SHIPPED[name].parents[2] / 'README.md').read_text(encoding='utf-8')
    assert f'| {n_bytes:,} | **{rate:,.0f}x** |' in readme


def test_it_is_decoded_to_the_same_parameters_as_ever(name, model):
    assert zlib.crc32(b''.join(param.detach().numpy().astype('<f4').tobytes() for param in model.parameters())) == (
        CRC_32[name])


def test_encoding_it_again_gives_the_same_file(name, model):
    assert compact_from_model(model) == SHIPPED[name].read_bytes()


def test_it_is_read_by_its_name(name, model):
    main(['read', name, 'decoded.ptmodel'])
    check_lossless(model, load_model('decoded.ptmodel'))


def test_it_classifies_as_many_test_images_as_the_readme_says(name, cifar10_test_images):
    network = live_network_from_compact(SHIPPED[name].read_bytes())
    assert util.test(network, images=cifar10_test_images) >= AT_LEAST[name][1]
