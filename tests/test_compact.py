import zlib
from itertools import pairwise

from net.compact import format as compact_format
from net.compact.format import (
    Reader,
    canonical_words,
    code_lengths,
    compact_from_model,
    live_network_from_compact,
    model_from_compact,
    put_alive,
    put_number,
    put_numbers,
    put_set,
    put_values,
    stored_units,
)
from net.data import normalize
from net.errors import UserError
from net.files import COMPACT_MAGIC
from net.huffmancoding import pack_bits
from net.live import sort_units
from net.models import AlexNet, load_model, save_model
from net.quantization import apply_weight_sharing

import numpy as np
import pytest
import small
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st


def bits_from(text):
    return np.frombuffer(text.encode(), np.uint8) - ord('0')


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
    assert put_number(n) == text and Reader(text).number() == n


def test_canonical_words_by_hand():
    assert canonical_words([2, 1, 3, 3]) == ['10', '0', '110', '111']
    assert canonical_words([0, 1, 0]) == ['', '0', '']
    assert canonical_words([64, *range(1, 65)])[0] == '1' * 63 + '0'  # the longest words


@pytest.mark.parametrize('counts, lengths', [
    ([5], [1]), ([0, 7, 0], [0, 1, 0]), ([3, 3], [1, 1]), ([8, 4, 2, 1, 0], [1, 2, 3, 3, 0])])
def test_lengths_of_code_words_by_hand(counts, lengths):
    assert code_lengths(counts) == lengths


@pytest.mark.parametrize('lengths, message', [
    ([1, 1, 1], 'more code words'), ([2, 1, 2, 2], 'more code words'), ([65, 1], '65 bits, expected at most 64'),
    ([1, 0, 2], 'fewer code words'), ([2, 2, 2], 'fewer code words'), ([0, 2, 0], 'fewer code words'),
    ([0, 0], 'fewer code words')])
def test_lengths_that_no_complete_prefix_code_has_are_refused(lengths, message):
    with pytest.raises(UserError, match=message):
        canonical_words(lengths)


def test_numbers_by_hand():
    """1, 1, 5, 2: two numbers with no bit after the first, one with one, one with two; so m = 3, lengths 1, 2, 2."""
    text = '00100' + '010' + '011' + '011' + '0' + '0' + '11' + '10' + '01' + '0'
    assert put_numbers(np.array([1, 1, 5, 2])) == text
    assert Reader(text).numbers(4).tolist() == [1, 1, 5, 2]


@pytest.mark.parametrize('reason, positions, n', [
    ('none', [], 10), ('none of nothing', [], 0), ('the first', [0], 10), ('the last', [9], 10),
    ('the only one', [0], 1), ('all', range(10), 10), ('two far apart', [0, 2**24 - 1], 2**24),
    ('gaps of many lengths', [2**k - 2 for k in range(1, 15)], 2**14)])
def test_sets_come_back(reason, positions, n):
    reader = Reader(put_set(np.array(positions, dtype=np.int64)))
    assert reader.set(n).tolist() == list(positions), reason
    assert reader.position == len(reader.text)


@given(st.sets(st.integers(0, 5000)), st.integers(0, 40))
def test_any_set_comes_back(positions, spare):
    reader = Reader(put_set(np.array(sorted(positions), dtype=np.int64)))
    assert reader.set(max(positions, default=0) + 1 + spare).tolist() == sorted(positions)


def test_positions_stay_close_to_their_entropy():
    """Gap codes lose least where gaps are long, as in a pruned network."""
    for density, excess in [(0.1, 1.06), (0.01, 1.03), (0.001, 1.03)]:
        n = int(4000 / density)
        positions = np.flatnonzero(np.random.default_rng(0).random(n) < density)
        entropy = n * -(density * np.log2(density) + (1 - density) * np.log2(1 - density))
        assert entropy < len(put_set(positions)) < excess * entropy


@pytest.mark.parametrize('reason, values, codebook', [
    ('none', [], False), ('one', [1.5], False), ('one many times', [1.5] * 9, True),
    ('both zeros', [0.0, -0.0, 0.0, 0.0], True), ('skewed', [2.1] * 50 + [-1.0] * 9 + [3.0], True),
    ('all distinct', [1, 2, 3], False), ('256 values', [*range(256)] * 2, True),
    ('more than a codebook holds', [*range(257)] * 2, False), ('extremes', [3.4e38, -3.4e38, 1e-45] * 2, True)])
def test_values_come_back_bit_for_bit(reason, values, codebook):
    values = np.array(values, dtype=np.float32).view(np.uint32)
    text = put_values(values)
    reader = Reader(text)
    assert np.array_equal(reader.values(len(values)), values), reason
    assert reader.position == len(reader.text)
    assert Reader(text[1:]).number() == (len(np.unique(values)) if codebook else 0)


def test_bfloat16_values_take_half_of_the_bits():
    halves, wholes = np.array([1.5, -2, 0.25], np.float32), np.array([1.5, -2, 0.1], np.float32)
    assert len(put_values(wholes.view(np.uint32))) - len(put_values(halves.view(np.uint32))) == 3 * 16


@pytest.mark.parametrize('way, alive', [
    (0, [[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]),
    (1, [[0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 0], [0, 1, 0, 0]]),
    (2, np.eye(60)),
    (2, np.vstack([np.eye(60), np.zeros((3, 60))])),
    (0, np.zeros((0, 3))), (0, np.zeros((3, 0))), (0, np.zeros((4, 4)))])
def test_positions_are_given_in_the_shortest_way(way, alive):
    alive = np.array(alive, dtype=bool)
    reader = Reader(put_alive(alive))
    assert Reader(reader.text).number() == way
    assert np.array_equal(reader.alive(*alive.shape), alive)
    assert reader.position == len(reader.text)


def way_2(counts, steps, gaps):
    return put_number(2) + ''.join(put_numbers(np.array(numbers, np.int64)) for numbers in (counts, steps, gaps))


def test_sorted_rows_by_hand():
    """The example in the description of the format."""
    alive = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]], bool)
    assert np.array_equal(Reader(way_2([3, 1, 2], [2, 2], [2])).alive(3, 4), alive)


@given(st.integers(0, 5), st.integers(1, 40), st.randoms(use_true_random=False))
def test_any_sorted_rows_come_back(n_rows, n_columns, random):
    rows = sorted([[i for i in range(n_columns) if random.random() < 0.2] for _ in range(n_rows)],
                  key=lambda row: min(row, default=n_columns))
    steps = [b - a + 1 for a, b in pairwise([0, *(row[0] for row in rows if row)])]
    text = way_2([len(row) + 1 for row in rows], steps, [b - a for row in rows for a, b in pairwise(row)])
    reader = Reader(text)
    alive = reader.alive(n_rows, n_columns)
    assert [np.flatnonzero(row).tolist() for row in alive] == rows
    assert reader.position == len(text)
    written = put_alive(alive)
    assert written == text or len(written) <= len(text) and Reader(written).number() != 2


# ---- models ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def small_format(small_runs, monkeypatch):
    """Files of a network with fewer units."""
    monkeypatch.setattr(compact_format, 'WIDTHS', small.WIDTHS)


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
    with pytest.raises(UserError, match=r'conv4 has \d+ distinct weights, at most 256 can be kept: share them '
                       r'with weight_share.py --compact$'):
        compact_from_model(model)


@pytest.mark.parametrize('parameter', ['conv1.weight', 'fc3.bias'])
def test_values_that_are_not_finite_are_refused(parameter, small_format):
    model = sparse_model()
    model.get_parameter(parameter).data.view(-1)[3] = float('nan')
    with pytest.raises(UserError, match=f'{parameter.split(".")[0]} holds values that are not finite'):
        compact_from_model(model)


def test_the_stored_units_alone_are_a_network_that_computes_the_same(small_format):
    model = sparse_model(n_kept=3000)
    data, pixels = compact_from_model(model), torch.randn(4, 3, 32, 32)
    network = live_network_from_compact(data)
    assert [len(layer.bias) for _, layer in network.layers()] == [len(units) for units in stored_units(model)[1:]]
    assert torch.allclose(network.eval()(pixels), model.eval()(pixels), atol=1e-5)


@pytest.fixture
def float64_by_default():
    """As some programs ask for."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_networks_are_float32_whatever_the_default_type_is(small_format, float64_by_default):
    model = AlexNet().float()
    model.prune_to_budget(2000)
    apply_weight_sharing(model)
    data, pixels = compact_from_model(model), torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    save_model(model, 'x.ptmodel')
    for network in model_from_compact(data), live_network_from_compact(data), load_model('x.ptmodel'):
        assert all(param.dtype == torch.float32 for param in network.parameters())
        assert torch.allclose(network(normalize(pixels)), model(normalize(pixels)), atol=1e-5)


def test_a_network_of_another_type_is_refused(small_format):
    with pytest.raises(TypeError, match='a compact file holds float32, got torch.float64'):
        compact_from_model(AlexNet().double())


def test_a_network_of_nothing_but_zeros_has_no_live_units(small_format):
    model = sparse_model()
    for param in model.parameters():
        param.data.zero_()
    with pytest.raises(UserError, match='no path is left from the images to the outputs'):
        live_network_from_compact(compact_from_model(model))


# ---- damaged files ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def data():
    torch.manual_seed(0)
    return compact_from_model(sparse_model())


def sealed(data):
    """With the CRC-32 that belongs to it: what a file says that is wrong on purpose."""
    return data + zlib.crc32(data).to_bytes(4, 'big')


WIDTHS = ''.join(put_number(n) for n in [64, 192, 384, 256, 256, 4096, 4096, 10])


def file_of(text):
    return sealed(COMPACT_MAGIC + b'\x01' + pack_bits(bits_from(text)))


@pytest.mark.parametrize('change, message', [
    (lambda data: b'', "no compact file: it starts with b'', expected b'DCAN'"),
    (lambda data: b'PK' + data[2:], "starts with b'PKAN'"),
    (lambda data: data[:4], 'version missing'),
    (lambda data: data[:4] + b'\x02' + data[5:], 'version 02 of the format, expected 01'),
    (lambda data: data[:8], 'CRC-32'),
    (lambda data: data[:-1], 'CRC-32'),
    (lambda data: data + b'x', 'CRC-32'),
    (lambda data: sealed(data[:5]), 'bad header'),
    (lambda data: sealed(data[:5] + b'\0' + data[6:-8]), 'the bits end where|where one is expected'),
    (lambda data: sealed(data[:-4] + b'\0'), 'bits after the model'),
    (lambda data: file_of('000'), 'no number of up to 32 bits where one is expected'),
    (lambda data: file_of('0001'), 'the bits end where 7 more are expected'),
    (lambda data: file_of('1' * 8), '0 classes, expected 1 to 10000'),
    (lambda data: file_of('1' * 7 + put_number(10_001)), '10001 classes, expected 1 to 10000'),
    (lambda data: file_of('1' * 7 + put_number(10)), r'layers of \[0, 0, .*0\] units, expected \[64, 192, '),
    (lambda data: file_of(WIDTHS + put_number(65)), '65 positions out of 64'),
    (lambda data: file_of(WIDTHS + put_number(64) + put_number(33)), 'numbers of up to 33 bits, expected 1 to'),
    (lambda data: file_of(WIDTHS + put_number(64) + put_number(2)), 'no number of up to 32 bits'),
    (lambda data: file_of(WIDTHS + put_set(np.array([64]))), 'position 64 of 64'),
    (lambda data: file_of(WIDTHS + '1' * 7 + put_number(3)), 'way 3 to give positions, expected 0 to 2'),
    (lambda data: file_of(WIDTHS + '1' * 7 + '11' + '0' + put_number(257)), '257 values in a codebook'),
])
def test_what_is_no_compact_model_is_refused(data, change, message):
    with pytest.raises(UserError, match=message):
        model_from_compact(change(data))


def test_values_in_a_file_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match='not finite'):
        Reader('0' + put_number(0) + f'{0x7f800000:032b}').values(1)


def test_a_codebook_that_is_not_ascending_is_refused():
    with pytest.raises(UserError, match='not ascending'):
        Reader('0' + put_number(2) + f'{5:032b}' + f'{5:032b}' + put_number(1) * 2 + '01').values(2)


def test_a_weight_of_zero_is_refused():
    first = put_set(np.array([0]))  # of the units of conv1, and of its weights
    with pytest.raises(UserError, match='zeros among the weights'):
        model_from_compact(file_of(WIDTHS + first + '1' * 6 + '1' + first + '11' + '0' * 16))


def test_bits_that_are_no_code_word_are_refused():
    """A symbol that is alone has the word 0: a bit 1 begins none, and is not looked at for ever."""
    text = put_number(2) + put_number(1) + put_number(0)
    assert Reader(text + '0').numbers(1).tolist() == [1]
    with pytest.raises(UserError, match='no code word where one is expected'):
        Reader(text + '1' * 65).numbers(1)


@pytest.mark.parametrize('text, message', [
    (put_numbers(np.array([2, 5, 1])), 'more than 3 weights in a row'),
    (put_numbers(np.array([2, 2, 1])) + put_numbers(np.array([1, 4])), 'column 3 of 3'),
    (put_numbers(np.array([3, 1, 1])) + put_numbers(np.array([2])) + put_numbers(np.array([3])),
     'column 4 of 3')])
def test_sorted_rows_that_leave_the_matrix_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        Reader(put_number(2) + text).alive(3, 3)


def test_a_few_bytes_cannot_ask_for_much_memory():
    """All positions of a huge set cost no bits, so a set is bounded by its matrix, and other lists by the bits left."""
    with pytest.raises(UserError, match=f'{10**9} positions out of {10**6}'):
        Reader(put_number(10**9) + put_number(1)).set(10**6)
    with pytest.raises(UserError, match='the bits end where 1 more are expected'):
        Reader(put_number(10**6) + put_number(2) + put_number(1) * 2).set(10**6)
    with pytest.raises(UserError, match=f'the bits end where {32 * 10**9} more are expected'):
        Reader('0' + put_number(0)).values(10**9)


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
    except UserError:
        return
    with torch.device('meta'):
        expected = AlexNet(model.n_classes)
    assert [param.shape for param in model.parameters()] == [param.shape for param in expected.parameters()]
    assert all(torch.isfinite(param).all() for param in model.parameters())
