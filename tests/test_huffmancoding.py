import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from net import huffmancoding
from net.huffmancoding import (
    calc_index_diff,
    code_words,
    decode_symbols,
    decode_tree,
    dump_bias,
    encode_symbols,
    encode_tree,
    huffman_decode,
    huffman_decode_conv,
    huffman_decode_fc,
    huffman_decode_model,
    huffman_encode,
    huffman_encode_conv,
    huffman_encode_fc,
    huffman_encode_model,
    huffman_tree,
    load_bias,
    pack_bits,
    reconstruct_indptr,
    unpack_bits,
)

import numpy as np
import plain_coder
import pytest
import torch
from bitarray.util import huffman_code
from hostile import plant_link
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

few = settings(max_examples=60)


@pytest.fixture(scope='module')
def scratch(tmp_path_factory):
    """One directory for all examples of a property."""
    return tmp_path_factory.mktemp('scratch')


def read_all(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def fibonacci(n):
    numbers = [1, 1]
    while len(numbers) < n:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[:n]


# ---- streams ---------------------------------------------------------------------------------------------------------

def ints(*values):
    return np.array(values, np.int32)


def floats(*values):
    return np.array(values, np.float32)


def repeated(counts):
    """The values 0, 1, 2 ..., as often as the counts say, shuffled."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts), dtype=np.int32), counts))


STREAMS = {
    'no values': floats(),
    'no integers': ints(),
    'one value': floats(1.5),
    'one value repeated, which needs the spare leaf': ints(*[3] * 9),
    'zero repeated, whose spare leaf is another value': ints(*[0] * 9),
    '0.0 repeated': floats(*[0] * 9),
    'two values': floats(-1, 1, 1),
    'two values, one of them zero': ints(0, 5, 0),
    'all distinct': np.random.default_rng(0).permutation(1000).astype(np.float32),
    'counts that are powers of two, codes of 1 to 9 bits': repeated([2 ** i for i in range(9)]),
    'equal counts, codes of one length': repeated([4] * 16),
    'skewed counts, codes of up to 17 bits': repeated(fibonacci(18)),
    **{f'{n} bits of code, {-n % 8} of padding': ints(*[0, 1] * 8)[:n] for n in range(8, 16)},
    'negative zero beside zero': floats(0.0, -0.0, -0.0, 1),
    'denormals': floats(1e-45, -1e-45, 1e-39, 1e-45),
    'infinities and the largest floats': floats(np.inf, -np.inf, 3.4028235e38, -3.4028235e38),
    'NaNs that differ in their payload': np.array([0x7FC00000, 0x7F800001, 0xFFC12345] * 2, np.uint32).view('f4'),
    'the largest integer': ints(2 ** 31 - 1, 0, 2 ** 31 - 1),
    'int64 that fits': np.array([2 ** 31 - 1, 7, 7]),
    'uint8': np.array([200, 7, 7], np.uint8),
    'two dimensions, read row by row': np.arange(6, dtype=np.float32).reshape(2, 3),
    'two dimensions, columns first in memory': np.arange(6, dtype=np.float32).reshape(2, 3).T,
}
streams = pytest.mark.parametrize('arr', STREAMS.values(), ids=STREAMS)


def dtype_of(arr):
    return np.float32 if arr.dtype == np.float32 else np.int32


def assert_same_bits(decoded, arr):
    assert decoded.dtype == dtype_of(arr)
    assert decoded.tobytes() == arr.astype(dtype_of(arr)).tobytes()


def check_round_trip(arr, directory):
    sizes = huffman_encode(arr, 's', directory)
    assert sizes == ((directory / 's_codebook.bin').stat().st_size, (directory / 's.bin').stat().st_size)
    assert_same_bits(huffman_decode(directory, 's', dtype_of(arr), arr.size), arr)
    assert_same_bits(huffman_decode(directory, 's', dtype_of(arr)), arr)  # the scaffold's call


@streams
def test_a_stream_comes_back_bit_for_bit(arr, tmp_path):
    check_round_trip(arr, tmp_path)


@given(words=st.lists(st.integers(0, 2 ** 32 - 1)))
@few
def test_any_bit_patterns_of_floats_come_back(words, scratch):
    check_round_trip(np.array(words, np.uint32).view(np.float32), scratch)


@given(values=st.lists(st.integers(0, 20)) | st.lists(st.integers(0, 2 ** 31 - 1)))
@few
def test_any_integers_come_back(values, scratch):
    check_round_trip(np.array(values, np.int64), scratch)


def test_bytes_of_a_small_stream_are_the_ones_written_out_by_hand(tmp_path):
    assert huffman_encode(ints(7, 7, 7, 5), 's', tmp_path) == (10, 2)
    # 5 is code 0 and 7 is code 1: the bits 1110, and 4 of padding.
    assert (tmp_path / 's.bin').read_bytes() == bytes([4, 0b1110_0000])
    # An inner node 0, a leaf 1 with 5 in 32 bits, a leaf 1 with 7 in 32 bits: 67 bits, and 5 of padding.
    assert (tmp_path / 's_codebook.bin').read_bytes() == bytes(
        [5, 0b01_000000, 0, 0, 0b00000001, 0b01_1_00000, 0, 0, 0, 0b111_00000])


def test_bytes_of_one_repeated_value_have_a_spare_leaf_on_the_right(tmp_path):
    assert huffman_encode(ints(7, 7, 7), 's', tmp_path) == (10, 2)
    assert (tmp_path / 's.bin').read_bytes() == bytes([5, 0b000_00000])
    assert (tmp_path / 's_codebook.bin').read_bytes() == bytes(
        [5, 0b01_000000, 0, 0, 0b00000001, 0b11_1_00000, 0, 0, 0, 0])
    assert huffman_encode(ints(0, 0, 0), 's', tmp_path) == (10, 2)
    assert (tmp_path / 's_codebook.bin').read_bytes() == bytes(
        [5, 0b01_000000, 0, 0, 0, 0b00_1_00000, 0, 0, 0, 0b001_00000])


def test_no_values_are_two_files_of_one_zero_byte(tmp_path):
    assert huffman_encode(floats(), 's', tmp_path) == (1, 1)
    assert read_all(tmp_path) == {'s.bin': b'\0', 's_codebook.bin': b'\0'}


@pytest.mark.parametrize('arr, error, match', [
    (np.array([3, -1]), ValueError, r'must be 0 to 2\^31 - 1, got -1 to 3'),
    (np.array([3, 2 ** 31]), ValueError, r'must be 0 to 2\^31 - 1, got 3 to 2147483648'),
    (np.array([2 ** 32 + 5], np.uint64), ValueError, r'must be 0 to 2\^31 - 1'),
    (np.array([1.5]), TypeError, 'must be float32 or integers, got float64'),
    (np.array([True]), TypeError, 'must be float32 or integers, got bool'),
    (np.array(['a']), TypeError, 'must be float32 or integers, got <U1'),
], ids=['negative', '2^31', '2^32 + 5, which would wrap to 5', 'float64', 'bool', 'text'])
def test_values_that_a_stream_cannot_hold_are_refused(arr, error, match, tmp_path):
    with pytest.raises(error, match=match):
        huffman_encode(arr, 's', tmp_path)
    assert not list(tmp_path.iterdir())


# ---- codes -----------------------------------------------------------------------------------------------------------

COUNTS = {
    'two symbols': [1, 1],
    'equal': [5] * 12,
    'powers of two': [2 ** i for i in range(12)],
    'Fibonacci, the longest codes there are': fibonacci(70),
    'ties between leaves and inner nodes': [1, 1, 2, 2, 4, 4, 8, 8],
    'one rare, one frequent': [1, 10 ** 6],
    'as many as 1/rank': [10 ** 6 // rank for rank in range(1, 300)],
    'rising, then falling': [*range(1, 50), *range(50, 0, -1)],
}


def check_optimal(counts):
    words, other = code_words(huffman_tree(counts)), huffman_code(dict(enumerate(counts)))
    assert (sum(n * len(word) for n, word in zip(counts, words, strict=True))
            == sum(n * len(other[symbol]) for symbol, n in enumerate(counts)))


@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
def test_total_bits_are_those_of_another_implementation(counts):
    check_optimal(counts)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=80))
@few
def test_total_bits_of_any_counts_are_those_of_another_implementation(counts):
    check_optimal(counts)


@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
def test_codes_are_prefix_free_and_complete(counts):
    words = sorted(code_words(huffman_tree(counts)))
    assert not any(after.startswith(before) for before, after in pairwise(words))
    assert sum(Fraction(1, 2 ** len(word)) for word in words) == 1  # Kraft


def check_symbols(counts, symbols, **options):
    tree = huffman_tree(counts)
    bits = encode_symbols(np.array(symbols), code_words(tree))
    assert decode_symbols(bits, tree, **options).tolist() == symbols


@pytest.mark.parametrize('n', [34, 70, 2000], ids=lambda n: f'{n - 1} bits')
def test_codes_longer_than_a_machine_word_and_trees_deeper_than_the_stack_come_back(n):
    counts = fibonacci(n)
    tree = huffman_tree(counts)
    assert max(map(len, code_words(tree))) == n - 1
    check_symbols(counts, [0, n - 1, 1, n - 1, n - 1, n // 2, 0])
    values = np.arange(n, dtype=np.uint32) * 1_000_003
    decoded, leaves = decode_tree(encode_tree(tree, values))
    assert dict(zip(leaves, code_words(decoded), strict=True)) == dict(zip(values, code_words(tree), strict=True))


@pytest.mark.parametrize('n', [2 ** 12, 2 ** 12 + 1, 2 ** 14])
def test_trees_so_large_that_the_decoder_takes_fewer_bits_at_a_time_come_back(n):
    check_symbols([1] * n, [0, n - 1, *range(0, n, 97)])


@pytest.mark.parametrize('reason, counts', [
    ('a block of 840 bits is whole codes of 3 bits', [1] * 8),
    ('a block ends inside a code of 11 bits', [1] * 2 ** 11),
    ('codes of a few bits more or less', list(range(1, 300))),
    ('codes of up to 40 bits', fibonacci(41)),
])
def test_streams_of_many_blocks_come_back(reason, counts):
    check_symbols(counts, np.random.default_rng(0).integers(len(counts), size=5000).tolist(), block=840)


@pytest.mark.parametrize('dtype', [np.float64, np.int64, np.uint32])
def test_streams_are_read_as_float32_or_int32_only(dtype, tmp_path):
    huffman_encode(np.array([1, 2], np.int32), 'stream', tmp_path)
    with pytest.raises(TypeError, match='streams hold float32 or int32, got'):
        huffman_decode(tmp_path, 'stream', dtype)


@given(st.binary(max_size=9), st.integers(0, 7))
@few
def test_bits_come_back_from_bytes(data, n_dropped):
    bits = np.unpackbits(np.frombuffer(data, np.uint8))[n_dropped:]
    assert unpack_bits(pack_bits(bits)).tolist() == bits.tolist()


# ---- the plain coder's files and ours --------------------------------------------------------------------------------

@streams
def test_streams_are_exchanged_with_the_plain_coder(arr, tmp_path):
    ours = huffman_encode(arr, 's', tmp_path)
    assert_same_bits(plain_coder.decode(tmp_path, 's', dtype_of(arr)), arr)
    assert plain_coder.encode(arr, 's', tmp_path) == ours  # ties differ, sizes cannot
    assert_same_bits(huffman_decode(tmp_path, 's', dtype_of(arr), arr.size), arr)


def leaf(value):
    return '1' + f'{value:032b}'


def test_a_tree_of_another_shape_than_ours_is_read(tmp_path):
    # Counts 2, 2, 1, 1: codes of 2 bits each, or of 1, 2, 3 and 3 bits, need 12 bits.
    assert [len(word) for word in code_words(huffman_tree([2, 2, 1, 1]))] == [2, 2, 2, 2]
    plain_coder.dump('0' + leaf(5) + '0' + leaf(6) + '0' + leaf(7) + leaf(8), tmp_path / 's_codebook.bin')
    plain_coder.dump('110' '0' '10' '111' '10' '0', tmp_path / 's.bin')
    assert huffman_decode(tmp_path, 's', np.int32, 6).tolist() == [7, 5, 6, 8, 6, 5]


# ---- layers ----------------------------------------------------------------------------------------------------------

generator = torch.Generator().manual_seed(0)


def sparse(*shape):
    """About a third of the weights, each one of five values; the rest is zero."""
    weights = torch.randint(-2, 3, shape, generator=generator).float() / 4
    return torch.where(torch.rand(shape, generator=generator) < 0.4, weights, torch.tensor(0.0))


def single(*shape):
    weights = torch.zeros(shape)
    weights[(-1,) * len(shape)] = -0.5
    return weights


LAYERS = {
    'conv': sparse(6, 3, 3, 3),
    'conv with kernels wider than high': sparse(2, 3, 2, 5),
    'conv with kernels higher than wide': sparse(2, 3, 5, 2),
    'conv with kernels of one weight': sparse(4, 3, 1, 1),
    'conv of one kernel': sparse(1, 1, 3, 3),
    'conv without a zero': torch.randn(4, 2, 3, 3, generator=generator),
    'conv all zero': torch.zeros(4, 2, 3, 3),
    'conv with one weight': single(4, 2, 3, 3),
    'conv not contiguous': sparse(3, 3, 4, 6).permute(3, 1, 2, 0)[::2],
    'fc wide': sparse(5, 12),
    'fc high': sparse(12, 5),
    'fc square': sparse(7, 7),
    'fc without a zero': torch.randn(5, 12, generator=generator),
    'fc wide, all zero': torch.zeros(3, 4),
    'fc high, all zero': torch.zeros(4, 3),
    'fc with one weight': single(4, 9),
    'fc not contiguous': sparse(12, 5).T,
    'fc with infinities and denormals': torch.tensor([[0, torch.inf, 0], [-torch.inf, 1e-45, -1e-45]]),
    'fc of one weight': single(1, 1),
}
layers = pytest.mark.parametrize('weights', LAYERS.values(), ids=LAYERS)
OURS = {4: (huffman_encode_conv, huffman_decode_conv), 2: (huffman_encode_fc, huffman_decode_fc)}
PLAIN = {4: (plain_coder.encode_conv, plain_coder.decode_conv), 2: (plain_coder.encode_fc, plain_coder.decode_fc)}


@layers
def test_a_layer_comes_back_bit_for_bit_and_its_bytes_are_those_on_disk(weights, tmp_path):
    encode, decode = OURS[weights.dim()]
    before = weights.clone()
    sizes = encode(nn.Parameter(weights), 'w', tmp_path)
    assert sizes == (4 * weights.numel(), sum(map(len, read_all(tmp_path).values())))
    assert torch.equal(weights, before)
    decoded = nn.Parameter(torch.full(weights.shape, 9.0))
    decode(decoded, 'w', tmp_path)
    assert decoded.detach().numpy().tobytes() == weights.numpy().tobytes()


@layers
def test_layers_are_exchanged_with_the_plain_coder(weights, tmp_path):
    (encode, decode), (plain_encode, plain_decode) = OURS[weights.dim()], PLAIN[weights.dim()]
    _, ours = encode(weights, 'w', tmp_path)
    assert np.array_equal(plain_decode(tuple(weights.shape), 'w', tmp_path), weights.numpy())
    assert plain_encode(weights.numpy(), 'w', tmp_path) == ours
    decoded = torch.full(weights.shape, 9.0)
    decode(decoded, 'w', tmp_path)
    assert torch.equal(decoded, weights)


CONV = torch.tensor([[[[1., 0.],
                       [0., 2.]],
                      [[0., 3.],
                       [0., 0.]]]])  # (1, 2, 2, 2): two kernels
WIDE = torch.tensor([[0., 1., 2.],
                     [3., 0., 0.]])
HIGH = torch.tensor([[0., 3.],
                     [1., 0.],
                     [2., 0.]])


@pytest.mark.parametrize('weights, lists', [
    (CONV, {'csr_data': [1, 2, 3], 'csr_indices': [0, 1, 1], 'csr_indptr': [1, 1, 1, 0], 'csr_length': [2, 1]}),
    (WIDE, {'csr_data': [1, 2, 3], 'csr_indices': [1, 2, 0], 'csr_indptr': [2, 1]}),
    (HIGH, {'csc_data': [1, 2, 3], 'csc_indices': [1, 2, 0], 'csc_indptr': [2, 1]}),
], ids=['conv', 'fc wide', 'fc high'])
def test_streams_of_a_small_layer_are_the_ones_written_out_by_hand(weights, lists, tmp_path):
    OURS[weights.dim()][0](weights, 'w', tmp_path)
    assert read_all(tmp_path).keys() == {f'w_{part}{end}' for part in lists for end in ('.bin', '_codebook.bin')}
    for part, values in lists.items():
        dtype = np.float32 if part.endswith('data') else np.int32
        assert huffman_decode(tmp_path, f'w_{part}', dtype).tolist() == values


def test_row_pointers_are_differences_and_back():
    assert calc_index_diff(np.array([0, 2, 2, 5])).tolist() == [2, 0, 3]
    assert reconstruct_indptr(np.array([2, 0, 3])).tolist() == [0, 2, 2, 5]


@pytest.mark.parametrize('value', [-0.0, float('nan')])
@pytest.mark.parametrize('shape', [(2, 2, 3, 3), (2, 3), (3, 2)], ids=str)
def test_weights_that_sparse_storage_would_lose_are_refused(shape, value, tmp_path):
    weights = torch.ones(shape)
    weights[(-1,) * len(shape)] = value
    with pytest.raises(ValueError, match='w holds NaN or -0.0, which sparse storage would lose'):
        OURS[len(shape)][0](weights, 'w', tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('shape', [(2, 2, 3, 3), (2, 3)], ids=str)
def test_weights_of_another_precision_are_refused(shape, tmp_path):
    with pytest.raises(TypeError, match='w must be float32, got float64'):
        OURS[len(shape)][0](torch.ones(shape, dtype=torch.float64), 'w', tmp_path)


def test_a_bias_is_its_raw_floats(tmp_path):
    bias = torch.tensor([1.0, -0.0, -2.0])
    assert dump_bias(nn.Parameter(bias), 'b', tmp_path) == (12, 12)
    assert (tmp_path / 'b').read_bytes() == bytes.fromhex('0000803f 00000080 000000c0')
    decoded = nn.Parameter(torch.ones(3))
    load_bias(decoded, 'b', tmp_path)
    assert decoded.detach().numpy().tobytes() == bias.numpy().tobytes()


# ---- broken files ----------------------------------------------------------------------------------------------------

def packed(bits):
    return pack_bits(np.array(list(bits), np.uint8))


TREE = '0' + leaf(5) + '0' + leaf(6) + leaf(7)  # 5 is 0, 6 is 10, 7 is 11

BROKEN_STREAMS = {  # file -> what it holds instead, or None if it is missing
    'missing codebook': ({'s_codebook.bin': None}, 's_codebook.bin', 'cannot be read'),
    'missing data': ({'s.bin': None}, 's.bin', 'cannot be read'),
    'empty codebook': ({'s_codebook.bin': b''}, 's_codebook.bin', 'bad header.*got nothing'),
    'empty data': ({'s.bin': b''}, 's.bin', 'bad header.*got nothing'),
    'header of 8, codebook': ({'s_codebook.bin': b'\x08' + bytes(9)}, 's_codebook.bin', 'bad header.*got 08'),
    'header of 8, data': ({'s.bin': b'\x08\0\0'}, 's.bin', 'bad header.*got 08'),
    'header without bits, codebook': ({'s_codebook.bin': b'\3'}, 's_codebook.bin', 'bad header.*got 03'),
    'header without bits, data': ({'s.bin': b'\3'}, 's.bin', 'bad header.*got 03'),
    'padding of ones, codebook': ({'s_codebook.bin': packed(TREE)[:-1] + b'\xff'}, 's_codebook.bin', 'padding bits'),
    'padding of ones, data': ({'s.bin': bytes([4, 0b0111_0001])}, 's.bin', 'padding bits'),
    'tree that ends after an inner node': ({'s_codebook.bin': packed('0')}, 's_codebook.bin', 'the tree ends early'),
    'tree that ends after its left half': ({'s_codebook.bin': packed('0' + leaf(5))}, 's_codebook.bin', 'ends early'),
    'tree that ends inside a leaf': ({'s_codebook.bin': packed(TREE[:-1])}, 's_codebook.bin', 'the tree ends early'),
    'tree with a bit left over': ({'s_codebook.bin': packed('0' + leaf(5) + leaf(6) + '0')}, 's_codebook.bin',
                                  '1 bits after the tree'),
    'tree of more values than there are': ({'s_codebook.bin': packed('0' + leaf(4) + TREE)}, 's_codebook.bin',
                                           'a codebook of 135 bits is too long for 3 values'),
    'tree that is only a leaf': ({'s_codebook.bin': packed(leaf(5))}, 's_codebook.bin', 'the tree is only a leaf'),
    'run of zero bits': ({'s_codebook.bin': bytes(10)}, 's_codebook.bin', 'the tree ends early'),
    'long run of zero bits': ({'s_codebook.bin': bytes(10_000)}, 's_codebook.bin', 'too long for 3 values'),
    'integer of 2^31': ({'s_codebook.bin': packed('0' + leaf(5) + leaf(2 ** 31))}, 's_codebook.bin',
                        r'expected values below 2\^31, got 2147483648'),
    'code that stops inside a symbol': ({'s.bin': packed('0' '11' '10' '1')}, 's.bin', 'stop inside a code word'),
    'too few values': ({'s.bin': packed('0' '11')}, 's.bin', 'expected 3 values, got 2'),
    'too many values': ({'s.bin': packed('0' '11' '10' '0')}, 's.bin', 'expected 3 values, got 4'),
    'no values': ({'s.bin': b'\0', 's_codebook.bin': b'\0'}, 's.bin', 'expected 3 values, got 0'),
    'codebook without values': ({'s_codebook.bin': b'\0'}, 's.bin', '5 bits of code, but 0 values in the codebook'),
    'codebook of no code': ({'s.bin': b'\0'}, 's.bin', '0 bits of code, but 3 values in the codebook'),
}


@pytest.mark.parametrize('files, blamed, match', BROKEN_STREAMS.values(), ids=BROKEN_STREAMS)
def test_a_broken_stream_is_refused_by_the_name_of_its_file(files, blamed, match, tmp_path):
    for name, data in {'s_codebook.bin': packed(TREE), 's.bin': packed('0' '11' '10'), **files}.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f'{re.escape(str(tmp_path / blamed))}: .*{match}'):
        huffman_decode(tmp_path, 's', np.int32, 3)


def test_the_stream_that_the_broken_ones_are_made_of_is_whole(tmp_path):
    (tmp_path / 's_codebook.bin').write_bytes(packed(TREE))
    (tmp_path / 's.bin').write_bytes(packed('0' '11' '10'))
    assert huffman_decode(tmp_path, 's', np.int32, 3).tolist() == [5, 7, 6]


BROKEN_LAYERS = {  # part -> its list instead
    'conv, row with 3 of 2 columns': (CONV, {'csr_indptr': ints(3, 0, 0, 0)}, 'indptr', '3 non-zeros in a row of 2'),
    'conv, row missing': (CONV, {'csr_indptr': ints(1, 1, 1)}, 'indptr', 'expected 4 values, got 3'),
    'conv, index too many': (CONV, {'csr_indptr': ints(1, 1, 0, 0)}, 'indices', 'expected 2 values, got 3'),
    'conv, column beyond the row': (CONV, {'csr_indices': ints(0, 2, 1)}, 'indices', 'stay below 2'),
    'conv, huge column': (CONV, {'csr_indices': ints(0, 2 ** 31 - 1, 1)}, 'indices', 'stay below 2'),
    'conv, columns fall': (CONV, {'csr_indptr': ints(2, 0, 1, 0), 'csr_indices': ints(1, 0, 1)}, 'indices', 'rise'),
    'conv, column twice': (CONV, {'csr_indptr': ints(2, 0, 1, 0), 'csr_indices': ints(1, 1, 1)}, 'indices', 'rise'),
    'conv, no weights': (CONV, {'csr_data': floats()}, 'data', 'expected 3 values, got 0'),
    'conv, weight too many': (CONV, {'csr_data': floats(1, 2, 3, 3)}, 'data', 'expected 3 values, got 4'),
    'conv, lengths of other kernels': (CONV, {'csr_length': ints(1, 2)}, 'length', 'contradicts the row pointers'),
    'conv, length missing': (CONV, {'csr_length': ints(3)}, 'length', 'expected 2 values, got 1'),
    'wide, row with 4 of 3 columns': (WIDE, {'csr_indptr': ints(4, 1), 'csr_indices': ints(0, 1, 2, 2, 0),
                                             'csr_data': floats(1, 2, 3, 4, 5)}, 'indptr', '4 non-zeros in a row of 3'),
    'wide, column beyond the row': (WIDE, {'csr_indices': ints(1, 3, 0)}, 'indices', 'stay below 3'),
    'high, column with 4 of 3 rows': (HIGH, {'csc_indptr': ints(4, 1), 'csc_indices': ints(0, 1, 2, 2, 0),
                                             'csc_data': floats(1, 2, 3, 4, 5)}, 'indptr', '4 non-zeros in a row of 3'),
    'high, rows fall': (HIGH, {'csc_indices': ints(2, 1, 0)}, 'indices', 'rise'),
    'high, weight missing': (HIGH, {'csc_data': floats(1, 2)}, 'data', 'expected 3 values, got 2'),
}


@pytest.mark.parametrize('weights, lists, blamed, match', BROKEN_LAYERS.values(), ids=BROKEN_LAYERS)
def test_streams_that_are_no_layer_are_refused_by_the_name_of_the_file(weights, lists, blamed, match, tmp_path):
    encode, decode = OURS[weights.dim()]
    encode(weights, 'w', tmp_path)
    for part, values in lists.items():
        huffman_encode(values, f'w_{part}', tmp_path)
    param = torch.full(weights.shape, 9.0)
    with pytest.raises(ValueError, match=rf'{re.escape(str(tmp_path))}.w_cs[rc]_{blamed}\.bin: .*{match}'):
        decode(param, 'w', tmp_path)
    assert (param == 9).all()


@pytest.mark.parametrize('data, match', [
    (None, 'cannot be read'), (b'', 'expected 3 float32 values, got 0 bytes'), (bytes(11), 'got 11 bytes'),
    (bytes(16), 'got 16 bytes'), (b'\x80\x04\x95' + bytes(60), 'got 63 bytes'),
], ids=['missing', 'empty', 'cut', 'longer', 'a pickle, which older coders wrote'])
def test_a_bias_of_the_wrong_size_is_refused_by_the_name_of_its_file(data, match, tmp_path):
    if data is not None:
        (tmp_path / 'b').write_bytes(data)
    with pytest.raises(ValueError, match=f'{re.escape(str(tmp_path / "b"))}: .*{match}'):
        load_bias(torch.ones(3), 'b', tmp_path)


# ---- models ----------------------------------------------------------------------------------------------------------

class Tiny(nn.Module):
    """Two layers by the names of the homework's, with every weight the same unless it is zero."""

    def __init__(self, weight=1.0, fc_shape=(3, 2)):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, kernel_size=2)
        self.fc1 = nn.Linear(*reversed(fc_shape))
        with torch.no_grad():
            for param in self.parameters():
                param.zero_()
            self.conv1.weight[0, 0] = torch.eye(2) * weight
            self.fc1.weight[0] = weight
            self.fc1.bias.fill_(weight)


def assert_equal_models(a, b):
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def encoded(directory):
    """The model that a directory decodes to."""
    model = Tiny(weight=9.0)
    huffman_decode_model(model, directory)
    return model


# Every stream has two values or one, a tree of 67 bits and at most 8 bits of code: 12 bytes with both headers.
TABLE = """\
Layer           |       original bytes     compressed bytes improvement percent
----------------------------------------------------------------------
conv1.weight    |                   32                   48       0.67x 150.00%
conv1.bias      |                    8                    8       1.00x 100.00%
fc1.weight      |                   24                   36       0.67x 150.00%
fc1.bias        |                   12                   12       1.00x 100.00%
----------------------------------------------------------------------
total           |                   76                  104       0.73x 136.84%
"""


def test_a_model_comes_back_bit_for_bit_and_the_total_is_the_size_of_the_folder(tmp_path, capsys):
    directory, log = tmp_path / 'encodings', tmp_path / 'log.txt'
    assert huffman_encode_model(Tiny(), directory, log) == (76, 104)
    assert sum(map(len, read_all(directory).values())) == 104
    assert capsys.readouterr().out == log.read_text(encoding='utf-8') == TABLE
    assert_equal_models(encoded(directory), Tiny())


def test_the_table_of_a_model_that_shrinks_tells_by_how_much(tmp_path, capsys):
    model = nn.Sequential(nn.Linear(100, 1000, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()[0] = 1.0
    # Three streams of one value, 100 bits each: trees of 10 bytes, code of 14.
    assert huffman_encode_model(model, tmp_path / 'encodings', tmp_path / 'log.txt') == (400_000, 72)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == '0.weight        |               400000                   72    5555.56x   0.02%'
    assert lines[4] == 'total           |               400000                   72    5555.56x   0.02%'


def test_directories_that_are_missing_are_made(tmp_path):
    huffman_encode_model(Tiny(), f'{tmp_path}/a/b/', tmp_path / 'log.txt')
    assert_equal_models(encoded(tmp_path / 'a/b'), Tiny())


def test_a_directory_that_is_missing_cannot_be_decoded(tmp_path):
    with pytest.raises(ValueError, match=r'encodings: no such directory; run huffman_coding.py \(again, if it was int'):
        encoded(tmp_path / 'encodings')


def test_files_of_an_earlier_model_do_not_survive(tmp_path):
    directory = tmp_path / 'encodings'
    huffman_encode_model(Tiny(fc_shape=(2, 3)), directory, tmp_path / 'log.txt')
    assert (directory / 'fc1.weight_csr_data.bin').exists()
    (directory / 'SHA256SUMS').write_text('of an earlier version', encoding='utf-8')
    for name in 'conv1.weight_kernel_lens.bin', 'conv1.weight_meta.bin', 'conv1.weight.npy':
        (directory / name).write_text("of another solution's encoder", encoding='utf-8')
    huffman_encode_model(Tiny(), directory, tmp_path / 'log.txt')
    assert {name.split('_')[1] for name in read_all(directory) if name.startswith('fc1.weight')} == {'csc'}
    assert not any((directory / name).exists() for name in (
        'SHA256SUMS', 'conv1.weight_kernel_lens.bin', 'conv1.weight_meta.bin', 'conv1.weight.npy'))
    assert sorted(os.listdir(tmp_path)) == ['encodings', 'log.txt']


def test_dot_files_and_what_file_managers_leave_stay_and_are_not_counted(tmp_path):
    directory = tmp_path / 'encodings'
    huffman_encode_model(Tiny(), directory, os.devnull)
    strays = {name: name.encode() for name in ['.gitkeep', '._fc1.bias', '.DS_Store', 'Thumbs.db', 'desktop.ini']}
    for name, data in strays.items():
        (directory / name).write_bytes(data)
    assert huffman_encode_model(Tiny(weight=2.0), directory, os.devnull) == (76, 104)
    assert strays.items() <= read_all(directory).items()
    assert_equal_models(encoded(directory), Tiny(weight=2.0))


def make_foreign_file(directory):
    (directory / 'notes.txt').write_text('mine', encoding='utf-8')


def make_foreign_file_beside_new_ones(directory):
    shutil.copytree(directory, directory.with_name('.encodings.new'))
    make_foreign_file(directory.with_name('.encodings.new'))


def make_foreign_file_in_place_of_old_ones(directory):
    directory.with_name('.encodings.old').mkdir()
    make_foreign_file(directory.with_name('.encodings.old'))


def make_dot_folder(directory):
    (directory / '.git').mkdir()


def make_foreign_folder(directory):
    (directory / 'fc1.bias').unlink()
    (directory / 'fc1.bias').mkdir()


def make_link(directory):
    (directory / 'fc1.bias').unlink()
    plant_link(directory / 'fc1.bias', directory / 'conv1.bias')


@pytest.mark.parametrize('change, match', [
    (make_foreign_file, 'encodings: holds notes.txt, which no encoder wrote; nothing was replaced'),
    (make_foreign_file_beside_new_ones, r'\.encodings\.new: holds notes.txt'),
    (make_foreign_file_in_place_of_old_ones, r'\.encodings\.old: holds notes.txt'),
    (make_dot_folder, 'holds .git'), (make_foreign_folder, 'holds fc1.bias'), (make_link, 'holds fc1.bias')])
def test_a_directory_with_anything_else_inside_is_refused_and_left_as_it_was(change, match, tmp_path):
    directory = tmp_path / 'encodings'
    huffman_encode_model(Tiny(), directory, tmp_path / 'log.txt')
    change(directory)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob('*'))
    with pytest.raises(ValueError, match=match):
        huffman_encode_model(Tiny(weight=2.0), directory, tmp_path / 'log.txt')
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob('*')) == before


def test_a_file_or_a_link_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / 'file').write_text('mine', encoding='utf-8')
    (tmp_path / 'folder').mkdir()
    plant_link(tmp_path / 'link', 'folder')
    plant_link(tmp_path / 'dangling', 'nowhere')
    for name in ('file', 'link', 'dangling'):
        with pytest.raises(ValueError, match=f'{name}: expected a directory of encoded files, or nothing'):
            huffman_encode_model(Tiny(), tmp_path / name, tmp_path / 'log.txt')
    assert sorted(os.listdir(tmp_path)) == ['dangling', 'file', 'folder', 'link']
    assert (tmp_path / 'file').read_text(encoding='utf-8') == 'mine'
    assert not os.listdir(tmp_path / 'folder')


def test_an_error_while_encoding_leaves_the_old_files_and_nothing_else(tmp_path):
    directory, log = tmp_path / 'encodings', tmp_path / 'log.txt'
    huffman_encode_model(Tiny(), directory, log)
    before, refused = read_all(directory), Tiny(weight=2.0)
    refused.fc1.weight.data[2, 1] = -0.0
    with pytest.raises(ValueError, match='fc1.weight holds NaN or -0.0'):
        huffman_encode_model(refused, directory, log)
    assert read_all(directory) == before
    assert sorted(os.listdir(tmp_path)) == ['encodings', 'log.txt']
    assert log.read_text(encoding='utf-8') == TABLE


OLD, NEW, UNFINISHED = Tiny(weight=1.0), Tiny(weight=2.0), None

INTERRUPTIONS = {  # folder -> what it holds when the encoder stops; the model that the next one must not lose
    'while writing the first files': ({'.encodings.new': UNFINISHED}, None),
    'while writing other files': ({'encodings': OLD, '.encodings.new': UNFINISHED}, OLD),
    'before the first rename': ({'encodings': OLD, '.encodings.new': NEW}, OLD),
    'between the renames': ({'.encodings.old': OLD, '.encodings.new': NEW}, OLD),
    'between the renames, and the new files were lost': ({'.encodings.old': OLD}, OLD),
    'while deleting the old files': ({'encodings': NEW, '.encodings.old': UNFINISHED}, NEW),
}
interruptions = pytest.mark.parametrize('folders, expected', INTERRUPTIONS.values(), ids=INTERRUPTIONS)


def make_interrupted(folders, tmp_path):
    """Write these folders and return the directory of the encoder."""
    for name, model in folders.items():
        huffman_encode_model(NEW if model is UNFINISHED else model, tmp_path / 'made', os.devnull)
        if model is UNFINISHED:
            (tmp_path / 'made/fc1.bias').unlink()
            (tmp_path / 'made/conv1.weight_csr_data.bin').write_bytes(b'')
        (tmp_path / 'made').rename(tmp_path / name)
    return tmp_path / 'encodings'


@interruptions
def test_whoever_reads_after_an_interruption_changes_nothing(folders, expected, tmp_path):
    directory = make_interrupted(folders, tmp_path)
    before = {folder: read_all(tmp_path / folder) for folder in folders}
    if directory.exists():
        assert_equal_models(encoded(directory), expected)
    else:
        with pytest.raises(ValueError, match='encodings: no such directory; run huffman_coding.py'):
            encoded(directory)
    assert {path.name: read_all(path) for path in tmp_path.iterdir()} == before


@interruptions
def test_the_encoder_after_an_interruption_starts_afresh(folders, expected, tmp_path):
    directory = make_interrupted(folders, tmp_path)
    huffman_encode_model(Tiny(weight=3.0), directory, os.devnull)
    assert os.listdir(tmp_path) == ['encodings']
    assert_equal_models(encoded(directory), Tiny(weight=3.0))


def fail_to_encode(directory):
    with pytest.raises(ValueError, match='-0.0'):
        huffman_encode_model(Tiny(weight=-0.0), directory, os.devnull)


@interruptions
def test_an_encoder_that_fails_after_an_interruption_loses_nothing(folders, expected, tmp_path):
    directory = make_interrupted(folders, tmp_path)
    fail_to_encode(directory)
    assert os.listdir(tmp_path) == ['encodings'] * (expected is not None)
    if expected is not None:
        assert_equal_models(encoded(directory), expected)


@pytest.mark.parametrize('stop_at', [1, 2], ids=['first rename', 'second rename'])
def test_an_encoder_that_is_stopped_at_a_rename_loses_nothing(stop_at, tmp_path, monkeypatch):
    huffman_encode_model(OLD, tmp_path / 'encodings', os.devnull)
    rename, calls = os.rename, []

    def stopped(*paths):
        calls.append(paths)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        rename(*paths)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(huffmancoding.os, 'rename', stopped)
        huffman_encode_model(NEW, tmp_path / 'encodings', os.devnull)
    fail_to_encode(tmp_path / 'encodings')
    assert_equal_models(encoded(tmp_path / 'encodings'), OLD)


# ---- alone -----------------------------------------------------------------------------------------------------------

ALONE = """
import torch
from torch import nn
import students_coder as coder

a, b = (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(5, 4)) for _ in range(2))
coder.huffman_encode_model(a)
coder.huffman_decode_model(b)
assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
"""


@pytest.mark.slow
def test_the_module_works_alone_and_under_another_name(tmp_path):
    shutil.copy(huffmancoding.__file__, tmp_path / 'students_coder.py')
    (tmp_path / 'util.py').write_text(
        "def log(content, filename='log.txt'):\n    open(filename, 'a', encoding='utf-8').write(content + '\\n')\n",
        encoding='utf-8')
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    done = subprocess.run([sys.executable, '-c', ALONE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'log.txt').read_text(encoding='utf-8') == done.stdout
