import zlib
from itertools import pairwise

import numpy as np
import pytest
import small
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from net import compact
from net.compact import (
    SORTED_ROWS,
    Reader,
    Writer,
    canonical_words,
    code_lengths,
    compact_from_model,
    live_network_from_compact,
    model_from_compact,
    stored_units,
)
from net.files import COMPACT_MAGIC
from net.huffmancoding import pack_bits
from net.live import sort_units
from net.models import AlexNet
from net.quantization import apply_weight_sharing


def bits_from(text):
    return np.frombuffer(text.encode(), np.uint8) - ord('0')


def put(part, *args):
    """What a writer makes of one part: a string of 0 and 1."""
    writer = Writer()
    getattr(writer, part)(*args)
    return writer.text


def bits_of(model):
    return {name: param.detach().view(torch.int32) for name, param in model.named_parameters()}


def check_round_trip(model):
    before = {name: value.clone() for name, value in bits_of(model).items()}
    data = compact_from_model(model)
    after = bits_of(model_from_compact(data))
    assert all(torch.equal(before[name], value) for name, value in bits_of(model).items())  # not changed
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    return data


def sparse_model(n_kept=100, n_classes=10, bits=3):
    """About `n_kept` weights in each layer and half of the biases, at random; the weights share 2^bits values."""
    model = AlexNet(n_classes)
    for _, layer in model.layers():
        weight = layer.weight.data
        weight[torch.rand_like(weight) >= n_kept / weight.numel()] = 0
        layer.bias.data[torch.rand_like(layer.bias) < 0.5] = 0
    apply_weight_sharing(model, bits)
    return model


# ---- parts -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('n, text', [(0, '1'), (1, '010'), (2, '011'), (3, '00100'), (7, '0001000'), (8, '0001001')])
def test_a_number_is_a_gamma_code(n, text):
    assert put('number', n) == text and Reader(text).number() == n


def test_canonical_words_by_hand():
    assert canonical_words([2, 1, 3, 3]) == ['10', '0', '110', '111']
    assert canonical_words([0, 1, 0]) == ['', '0', '']


@pytest.mark.parametrize('counts, lengths', [
    ([5], [1]), ([0, 7, 0], [0, 1, 0]), ([3, 3], [1, 1]), ([8, 4, 2, 1, 0], [1, 2, 3, 3, 0])])
def test_lengths_of_code_words_by_hand(counts, lengths):
    assert code_lengths(counts) == lengths


@pytest.mark.parametrize('lengths, message', [
    ([1, 1, 1], 'more code words'), ([2, 1, 2, 2], 'more code words'), ([65, 1], '65 bits, expected at most 64')])
def test_lengths_that_no_prefix_code_has_are_refused(lengths, message):
    with pytest.raises(ValueError, match=message):
        canonical_words(lengths)


def test_numbers_by_hand():
    """1, 1, 5, 2: two numbers with no bit after the first, one with one, one with two; so m = 3, lengths 1, 2, 2."""
    text = '00100' + '010' + '011' + '011' + '0' + '0' + '11' + '10' + '01' + '0'
    assert put('numbers', np.array([1, 1, 5, 2])) == text
    assert Reader(text).numbers(4).tolist() == [1, 1, 5, 2]


@pytest.mark.parametrize('reason, positions, n', [
    ('none', [], 10), ('none of nothing', [], 0), ('the first', [0], 10), ('the last', [9], 10),
    ('the only one', [0], 1), ('all', range(10), 10), ('two far apart', [0, 2**24 - 1], 2**24),
    ('gaps of many lengths', [2**k - 2 for k in range(1, 15)], 2**14)])
def test_sets_come_back(reason, positions, n):
    reader = Reader(put('set', np.array(positions, dtype=np.int64)))
    assert reader.set(n).tolist() == list(positions), reason
    reader.finish()


@given(st.sets(st.integers(0, 5000)), st.integers(0, 40))
def test_any_set_comes_back(positions, spare):
    reader = Reader(put('set', np.array(sorted(positions), dtype=np.int64)))
    assert reader.set(max(positions, default=0) + 1 + spare).tolist() == sorted(positions)


def test_positions_stay_close_to_their_entropy():
    """Gap codes lose least where gaps are long, as in a pruned network."""
    for density, excess in [(0.1, 1.06), (0.01, 1.03), (0.001, 1.03)]:
        n = int(4000 / density)
        positions = np.flatnonzero(np.random.default_rng(0).random(n) < density)
        entropy = n * -(density * np.log2(density) + (1 - density) * np.log2(1 - density))
        assert entropy < len(put('set', positions)) < excess * entropy


@pytest.mark.parametrize('reason, values, codebook', [
    ('none', [], False), ('one', [1.5], False), ('one many times', [1.5] * 9, True),
    ('both zeros', [0.0, -0.0, 0.0, 0.0], True), ('skewed', [2.1] * 50 + [-1.0] * 9 + [3.0], True),
    ('all distinct', [1, 2, 3], False), ('256 values', [*range(256)] * 2, True),
    ('more than a codebook holds', [*range(257)] * 2, False), ('extremes', [3.4e38, -3.4e38, 1e-45] * 2, True)])
def test_values_come_back_bit_for_bit(reason, values, codebook):
    values = np.array(values, dtype=np.float32).view(np.uint32)
    text = put('values', values)
    reader = Reader(text)
    assert np.array_equal(reader.values(len(values)), values), reason
    reader.finish()
    assert Reader(text[1:]).number() == (len(np.unique(values)) if codebook else 0)


def test_bfloat16_values_take_half_of_the_bits():
    halves, wholes = np.array([1.5, -2, 0.25], np.float32), np.array([1.5, -2, 0.1], np.float32)
    assert len(put('values', wholes.view(np.uint32))) - len(put('values', halves.view(np.uint32))) == 3 * 16


@pytest.mark.parametrize('way, alive', [
    (0, [[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]),
    (1, [[0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 0], [0, 1, 0, 0]]),
    (2, np.eye(60)),
    (2, np.vstack([np.eye(60), np.zeros((3, 60))])),
    (0, np.zeros((0, 3))), (0, np.zeros((3, 0))), (0, np.zeros((4, 4)))])
def test_positions_are_given_in_the_shortest_way(way, alive):
    alive = np.array(alive, dtype=bool)
    reader = Reader(put('alive', alive))
    assert Reader(reader.text).number() == way
    assert np.array_equal(reader.alive(*alive.shape), alive)
    reader.finish()


@given(st.integers(0, 5), st.integers(1, 40), st.randoms(use_true_random=False))
def test_any_sorted_rows_come_back(n_rows, n_columns, random):
    alive = np.array([[random.random() < 0.2 for _ in range(n_columns)] for _ in range(n_rows)], bool)
    alive = alive.reshape(n_rows, n_columns)
    first = np.where(alive.any(1), alive.argmax(1), n_columns)
    alive = alive[np.argsort(first, kind='stable')]
    reader = Reader(put('number', SORTED_ROWS) + put('sorted_rows', alive))
    assert np.array_equal(reader.alive(n_rows, n_columns), alive)
    reader.finish()


# ---- models ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def small_format(small_runs, monkeypatch):
    """Files of a network with fewer units."""
    monkeypatch.setattr(compact, 'WIDTHS', small.WIDTHS)


def test_a_model_of_nothing_but_zeros_comes_back():
    model = sparse_model()
    for param in model.parameters():
        param.data.zero_()
    assert len(check_round_trip(model)) == 37


@pytest.mark.parametrize('n_kept, n_classes, bits', [(0, 10, 5), (1, 10, 5), (100, 10, 3), (100, 1, 5), (3000, 7, 8)])
def test_models_come_back_bit_for_bit(n_kept, n_classes, bits, small_format):
    check_round_trip(sparse_model(n_kept, n_classes, bits))


def test_negative_zeros_come_back(small_format):
    model = sparse_model()
    model.fc2.weight.data[77, 99] = -0.0
    model.conv3.bias.data[5] = -0.0
    check_round_trip(model)


def test_sorted_units_shared_biases_and_bfloat16_make_the_file_smaller():
    model, sizes = sparse_model(n_kept=300), []
    for _, layer in model.layers():
        layer.bias.data[(layer.weight == 0).flatten(1).all(1)] = 0
    sizes.append(len(check_round_trip(model)))
    sort_units(model)
    sizes.append(len(check_round_trip(model)))
    apply_weight_sharing(model, bits=8, bias_bits=3)  # the weights have fewer values already
    sizes.append(len(check_round_trip(model)))
    for param in model.parameters():
        param.data = param.data.bfloat16().float()
    sizes.append(len(check_round_trip(model)))
    assert all(a > b for a, b in pairwise(sizes)) and sizes[-1] < 0.6 * sizes[0]


def test_weights_that_are_not_shared_are_refused(small_format):
    model = sparse_model(n_kept=1000)
    model.conv4.weight.data.view(-1)[:257] = torch.rand(257)
    with pytest.raises(ValueError, match=r'conv4 has \d+ distinct weights, at most 256 can be kept: share them'):
        compact_from_model(model)


@pytest.mark.parametrize('parameter', ['conv1.weight', 'fc3.bias'])
def test_values_that_are_not_finite_are_refused(parameter, small_format):
    model = sparse_model()
    model.get_parameter(parameter).data.view(-1)[3] = float('nan')
    with pytest.raises(ValueError, match=f'{parameter.split(".")[0]} holds values that are not finite'):
        compact_from_model(model)


def test_the_stored_units_alone_are_a_network_that_computes_the_same(small_format):
    model = sparse_model(n_kept=3000)
    data, pixels = compact_from_model(model), torch.randn(4, 3, 32, 32)
    network = live_network_from_compact(data)
    assert [len(layer.bias) for _, layer in network.layers()] == [len(units) for units in stored_units(model)[1:]]
    assert torch.allclose(network.eval()(pixels), model.eval()(pixels), atol=1e-5)


def test_a_network_of_nothing_but_zeros_has_no_live_units(small_format):
    model = sparse_model()
    for param in model.parameters():
        param.data.zero_()
    with pytest.raises(ValueError, match='no path is left from the images to the outputs'):
        live_network_from_compact(compact_from_model(model))


# ---- damaged files ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def data():
    torch.manual_seed(0)
    return compact_from_model(sparse_model())


def sealed(data):
    """With the CRC-32 that belongs to it: what a file says that is wrong on purpose."""
    return data + zlib.crc32(data).to_bytes(4, 'big')


WIDTHS = ''.join(put('number', n) for n in [64, 192, 384, 256, 256, 4096, 4096, 10])


def file_of(text):
    return sealed(COMPACT_MAGIC + b'\x01' + pack_bits(bits_from(text)))


@pytest.mark.parametrize('change, message', [
    (lambda data: b'', "starts with b'', expected b'DCAN'"),
    (lambda data: b'PK' + data[2:], "starts with b'PKAN'"),
    (lambda data: data[:4], 'version missing'),
    (lambda data: data[:4] + b'\x02' + data[5:], 'version 02 of the compact format, expected 01'),
    (lambda data: data[:8], 'CRC-32'),
    (lambda data: data[:-1], 'CRC-32'),
    (lambda data: data + b'x', 'CRC-32'),
    (lambda data: sealed(data[:5]), 'bad header'),
    (lambda data: sealed(data[:5] + b'\0' + data[6:-8]), 'bits are left where|where one is expected'),
    (lambda data: sealed(data[:-4] + b'\0'), '8 bits after the model'),
    (lambda data: file_of('000'), 'no number of up to 32 bits where one is expected'),
    (lambda data: file_of('0001'), '4 bits are left where 7 are expected'),
    (lambda data: file_of('1' * 8), '0 classes, expected 1 to 10000'),
    (lambda data: file_of('1' * 7 + put('number', 10_001)), '10001 classes, expected 1 to 10000'),
    (lambda data: file_of('1' * 7 + put('number', 10)), r'layers of \[0, 0, .*0\] units, expected \[64, 192, '),
    (lambda data: file_of(WIDTHS + put('number', 65)), '65 positions out of 64'),
    (lambda data: file_of(WIDTHS + put('number', 64) + put('number', 33)), 'numbers of up to 33 bits, expected 1 to'),
    (lambda data: file_of(WIDTHS + put('number', 64) + put('number', 2)), 'no number of up to 32 bits'),
    (lambda data: file_of(WIDTHS + put('set', np.array([64]))), 'position 64 of 64'),
    (lambda data: file_of(WIDTHS + '1' * 7 + put('number', 3)), 'way 3 to give positions, expected 0 to 2'),
    (lambda data: file_of(WIDTHS + '1' * 7 + '11' + '0' + put('number', 257)), '257 values in a codebook'),
])
def test_what_is_no_compact_model_is_refused(data, change, message):
    with pytest.raises(ValueError, match=message):
        model_from_compact(change(data))


def test_values_in_a_file_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match='not finite'):
        Reader('0' + put('number', 0) + f'{0x7f800000:032b}').values(1)


def test_a_codebook_that_is_not_ascending_is_refused():
    with pytest.raises(ValueError, match='not ascending'):
        Reader('0' + put('number', 2) + f'{5:032b}' + f'{5:032b}' + put('number', 1) * 2 + '01').values(2)


def test_a_weight_of_zero_is_refused():
    first = put('set', np.array([0]))  # of the units of conv1, and of its weights
    with pytest.raises(ValueError, match='zeros among the weights'):
        model_from_compact(file_of(WIDTHS + first + '1' * 6 + '1' + first + '11' + '0' * 16))


def test_bits_that_are_no_code_word_are_refused():
    text = put('number', 3) + put('number', 1) + put('number', 0) + put('number', 2) + '11'  # the words are 0 and 10
    with pytest.raises(ValueError, match='no code word where one is expected'):
        Reader(text).numbers(1)


@pytest.mark.parametrize('text, message', [
    (put('numbers', np.array([2, 5, 1])), '4 weights in a row of 3'),
    (put('numbers', np.array([2, 2, 1])) + put('numbers', np.array([1, 4])), 'column 3 of 3'),
    (put('numbers', np.array([3, 1, 1])) + put('numbers', np.array([2])) + put('numbers', np.array([3])),
     'column 4 of 3')])
def test_sorted_rows_that_leave_the_matrix_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Reader(put('number', 2) + text).alive(3, 3)


def test_a_few_bytes_cannot_ask_for_much_memory():
    """All positions of a huge set cost no bits, so a set is bounded by its matrix, and other lists by the bits left."""
    with pytest.raises(ValueError, match=f'{10**9} positions out of {10**6}'):
        Reader(put('number', 10**9) + put('number', 1)).set(10**6)
    with pytest.raises(ValueError, match='0 bits are left where 1000000 are expected'):
        Reader(put('number', 10**6) + put('number', 2) + put('number', 1) * 2).set(10**6)
    with pytest.raises(ValueError, match=f'0 bits are left where {32 * 10**9} are expected'):
        Reader('0' + put('number', 0)).values(10**9)


@pytest.fixture(scope='module')
def small_file():
    """Where the fuzz test starts: small, so that most bits that it changes mean something."""
    torch.manual_seed(0)
    return compact_from_model(sparse_model(n_kept=8))


@pytest.mark.slow
@settings(max_examples=300)
@given(changes=st.lists(st.tuples(st.sampled_from(['flip', 'drop', 'insert', 'cut']), st.integers(0, 10**6),
                                  st.integers(0, 7)), min_size=1, max_size=3))
@example(changes=[('flip', 5, 0)])
def test_whatever_happens_to_a_file_it_is_a_model_or_a_value_error(small_file, changes):
    """The CRC-32 is made right again, so that it is not what finds the damage."""
    body = bytearray(small_file[5:-4])
    for change, place, bit in changes:
        place = place % len(body) if body else 0
        if change == 'flip' and body:
            body[place] ^= 1 << bit
        elif change == 'drop':
            del body[place:place + 1]
        elif change == 'insert':
            body.insert(place, 1 << bit)
        elif change == 'cut':
            del body[place:]
    try:
        model = model_from_compact(sealed(small_file[:5] + bytes(body)))
    except ValueError:
        return
    with torch.device('meta'):
        expected = AlexNet(model.n_classes)
    assert [param.shape for param in model.parameters()] == [param.shape for param in expected.parameters()]
    assert all(torch.isfinite(param).all() for param in model.parameters())
