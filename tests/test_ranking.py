"""The model of the README's table, made by the three scripts with their default arguments, as its encoded files."""
from pathlib import Path

import huffman_coding
import util
from net.huffmancoding import huffman_decode_model, huffman_encode_model
from net.live import live_network
from net.models import AlexNet

import pytest

ENCODINGS = Path(__file__).parent / 'data' / 'ranking'


@pytest.fixture(scope='module')
def model():
    model = AlexNet()
    huffman_decode_model(model, ENCODINGS)
    return model


def test_the_rate_is_that_of_the_readme(model):
    n_bytes = sum(path.stat().st_size for path in ENCODINGS.iterdir())
    rate = sum(4 * param.numel() for param in model.parameters()) / n_bytes
    assert rate > 478
    readme = (ENCODINGS.parents[2] / 'README.md').read_text(encoding='utf-8')
    assert f'| {n_bytes:,} | **{rate:.1f}x** |' in readme


def test_encoding_it_again_gives_the_same_files(model):
    huffman_encode_model(model, 'again')
    assert {path.name: path.read_bytes() for path in Path('again').iterdir()} == {
        path.name: path.read_bytes() for path in ENCODINGS.iterdir()}


def test_the_grader_would_accept_it(model):
    checks = huffman_coding.submission_checks(model, 60., 60.)  # the accuracy is looked at below
    assert all(check.passed for check in checks) and len(checks) == 5
    assert checks[2].found == '33, 33, 33, 33, 33'


def test_it_classifies_at_least_60_percent_of_the_test_images(model, cifar10_test_images):
    assert util.test(live_network(model), images=cifar10_test_images) >= 60
