"""The code lengths and the entropy of encoded streams."""
from net.huffmancoding import huffman_encode, huffman_encode_model
from net.models import AlexNet
from net.statistics import Stream, entropy_table, read_stream, read_streams

import numpy as np
import pytest
import torch
from small import WIDTHS


@pytest.mark.parametrize('values, n_distinct, code_bits, entropy_bits', [
    ([7, 7, 7, 5], 2, 4, 4 * 0.8112781),  # 1/4 log2 4 + 3/4 log2 4/3
    ([1, 1, 1, 1, 2, 2, 3, 4], 4, 14, 14),  # 4 * 1 + 2 * 2 + 2 * 3; powers of two: the code is ideal
    ([9, 9, 9], 1, 3, 0),  # one symbol tells nothing, but its code takes a bit
    ([], 0, 0, 0),
])
def test_a_stream_is_read_back_with_the_bits_of_its_code_and_its_entropy(values, n_distinct, code_bits, entropy_bits,
                                                                         tmp_path):
    sizes = huffman_encode(np.array(values, np.int32), 'w_csr_indices', tmp_path)
    stream = read_stream(tmp_path, 'w', 'w_csr_indices')
    assert (stream.parameter, stream.part) == ('w', 'indices')
    assert (stream.n_symbols, stream.n_distinct, stream.code_bits) == (len(values), n_distinct, code_bits)
    assert (stream.codebook_bytes, stream.data_bytes) == sizes
    assert stream.entropy_bits == pytest.approx(entropy_bits)


def test_the_streams_of_a_model_are_those_on_disk_and_no_code_beats_the_entropy():
    model = AlexNet(widths=WIDTHS)
    for param in model.parameters():
        param.data = (torch.arange(param.numel()) % 5003 % 4).mul(torch.arange(param.numel()) % 997 == 0).float()\
            .reshape(param.shape)
    _, compressed = huffman_encode_model(model, 'encodings')
    streams = read_streams(model, 'encodings')
    assert [stream.part for stream in streams] == ['data', 'indices', 'indptr', 'length'] * 5 + [
        'data', 'indices', 'indptr'] * 3
    biases = sum(4 * layer.bias.numel() for _, layer in model.layers())
    assert sum(stream.codebook_bytes + stream.data_bytes for stream in streams) + biases == compressed
    for stream in streams:
        assert stream.data_bytes == 1 + -(-stream.code_bits // 8)  # a header byte, and whole bytes
        assert stream.entropy_bits <= stream.code_bits < stream.entropy_bits + stream.n_symbols


def test_the_table_tells_symbols_bits_entropy_and_efficiency():
    streams = [Stream('conv1.weight', 'data', 4, 2, 4, 4 * 0.8112781, 10, 2),
               Stream('conv1.weight', 'length', 0, 0, 0, 0.0, 1, 1)]
    assert entropy_table(streams) == '''\
Stream                 |   symbols  distinct  bits/symbol   entropy  efficiency
-------------------------------------------------------------------------------
conv1.weight data      |         4         2       1.0000    0.8113      81.13%
conv1.weight length    |         0         0       0.0000    0.0000           -
total                  |         4                 1.0000    0.8113      81.13%'''
