"""The compact file: a whole pruned model whose weights are shared as one small file, bit for bit.

    'DCAN'     4 bytes    what the file is
    1          1 byte     the version of the format
    body                  one byte, the number of padding bits (0 to 7), then the bits, zero-padded
    CRC-32     4 bytes    of all bytes before it, big-endian

What the bits say is written in net/README.md, "The bytes of the compact file". The functions `put_...` write the parts
it names, and `Reader` has a method for each.
"""
import zlib
from itertools import pairwise

from net.errors import UserError
from net.files import COMPACT_MAGIC
from net.huffmancoding import code_words, huffman_tree, pack_bits, unpack_bits
from net.models import WIDTHS, AlexNet

import numpy as np
import torch

VERSION = 1
ROWS, COLUMNS, SORTED_ROWS = range(3)  # how the non-zeros of a matrix are given
MAX_CLASSES = 10_000
MAX_SHARED = 256  # distinct values in a codebook
MAX_BITS = 32  # of a number
MAX_LENGTH = 64  # bits of a code word


# ---- model <-> bytes -------------------------------------------------------------------------------------------------

def compact_from_model(model):
    """AlexNet with shared weights -> the bytes of its compact file.

    Raises UserError if a layer has more than 256 distinct non-zero weights, or one that is not finite.
    """
    units = stored_units(model)
    parts = [put_number(len(layer.bias)) for _, layer in model.layers()]
    parts += map(put_set, units[1:-1])
    for (name, layer), (inputs, outputs) in zip(model.layers(), pairwise(units), strict=True):
        stored = _bits_of(layer.weight)[outputs[:, None], inputs]  # (out, in, height, width), or (out, in)
        matrix = np.moveaxis(stored, 1, -1).reshape(len(outputs), layer.weight[0, 0].numel() * len(inputs))
        weights, biases = matrix[matrix != 0], _bits_of(layer.bias)[outputs]
        expect(np.isfinite(np.append(weights, biases).view(np.float32)).all(),
               f'{name} holds values that are not finite')
        n_distinct = len(np.unique(weights))
        expect(n_distinct <= MAX_SHARED, f'{name} has {n_distinct} distinct weights, at most {MAX_SHARED} can be kept: '
               'share them with weight_share.py --compact')
        parts += [put_alive(matrix != 0), put_values(weights), put_values(biases)]
    data = COMPACT_MAGIC + bytes([VERSION]) + pack_bits(np.frombuffer(''.join(parts).encode(), np.uint8) - ord('0'))
    return data + zlib.crc32(data).to_bytes(4, 'big')


def model_from_compact(data):
    """The bytes of a compact file -> AlexNet, on the CPU. Raises UserError if they are anything else; runs no code."""
    units, parts = _read(data)
    return _model_of(parts, units, WIDTHS)


def live_network_from_compact(data):
    """The same network as `model_from_compact`, of its stored units alone: the whole is never made.

    Raises UserError also if a layer has none, so that no output depends on the images.
    """
    units, parts = _read(data)
    expect(all(map(len, units)), 'a network in which no path is left from the images to the outputs')
    renumbered = [np.arange(len(layer)) for layer in units]
    return _model_of(parts, renumbered, [len(hidden) for hidden in units[1:-1]])


def _model_of(parts, units, widths):
    """An AlexNet with these weights and biases between these units, and zeros; float32 whatever the default type is."""
    with torch.device('meta'):  # shapes only, and no random numbers
        model = AlexNet(len(units[-1]), widths).float()
    model = model.to_empty(device='cpu')
    for (_, layer), (inputs, outputs), (weights, biases) in zip(model.layers(), pairwise(units), parts, strict=True):
        for param in layer.parameters():
            param.data.zero_()
        _bits_of(layer.weight)[outputs[:, None], inputs] = weights
        _bits_of(layer.bias)[outputs] = biases
    return model


def _read(data):
    """-> the indices of each layer's stored units, inputs first, and the weights and biases between them, uint32."""
    magic, version, crc = data[:4], data[4:5], int.from_bytes(data[-4:], 'big')
    expect(magic == COMPACT_MAGIC, f'no compact file: it starts with {magic!r}, expected {COMPACT_MAGIC!r}')
    expect(version == bytes([VERSION]), f'version {version.hex() or "missing"} of the format, expected {VERSION:02x}')
    expect(zlib.crc32(data[:-4]) == crc, 'the CRC-32 does not fit: the file is damaged or incomplete')
    reader = Reader((unpack_bits(data[5:-4]) + ord('0')).tobytes().decode())
    *widths, n_classes = [reader.number() for _ in range(8)]
    expect(1 <= n_classes <= MAX_CLASSES, f'{n_classes} classes, expected 1 to {MAX_CLASSES}')
    expect(widths == list(WIDTHS), f'layers of {widths} units, expected {list(WIDTHS)}')
    units = [np.arange(3), *map(reader.set, WIDTHS), np.arange(n_classes)]
    with torch.device('meta'):  # shapes only
        kernels = [layer.weight.shape[2:] for _, layer in AlexNet().layers()]
    parts = [_read_layer(reader, len(outputs), len(inputs), kernel)
             for kernel, (inputs, outputs) in zip(kernels, pairwise(units), strict=True)]
    expect(reader.position == len(reader.text), 'bits after the model')
    return units, parts


def _read_layer(reader, n_outputs, n_inputs, kernel):
    matrix = np.zeros((n_outputs, kernel.numel() * n_inputs), np.uint32)
    alive = reader.alive(*matrix.shape)
    matrix[alive] = reader.values(np.count_nonzero(alive))
    expect((matrix[alive] != 0).all(), 'zeros among the weights that are not zero')
    return np.moveaxis(matrix.reshape(n_outputs, *kernel, n_inputs), -1, 1), reader.values(n_outputs)


def stored_units(model):
    """Indices of the input channels, of each layer's units with a weight or bias that is not +0.0, of the outputs."""
    layers = [layer for _, layer in model.layers()]
    alive = [_bits_of(layer.weight).reshape(*layer.weight.shape[:2], -1) != 0 for layer in layers]  # (out, in, places)
    units = [np.arange(alive[0].shape[1])]
    for layer, incoming, outgoing in zip(layers, alive, alive[1:], strict=False):
        units.append(np.flatnonzero(incoming.any((1, 2)) | (_bits_of(layer.bias) != 0) | outgoing.any((0, 2))))
    return [*units, np.arange(len(alive[-1]))]


def expect(is_so, message):
    """Raise UserError unless it is so."""
    if not is_so:
        raise UserError(message)


def _bits_of(param):
    """The bits of a float32 parameter as uint32: a view, if it is on the CPU."""
    if param.dtype != torch.float32:
        raise TypeError(f'a compact file holds float32, got {param.dtype}')
    return param.detach().cpu().numpy().view(np.uint32)


# ---- the parts of the body as strings of 0 and 1 ---------------------------------------------------------------------

def put_number(n):
    digits = f'{n + 1:b}'
    return '0' * (len(digits) - 1) + digits


def put_symbols(symbols, m):
    """A code for integers below m, and the code word of each of `symbols`."""
    if m == 1:
        return ''
    lengths = code_lengths(np.bincount(symbols, minlength=m).tolist())
    words = canonical_words(lengths)
    return ''.join([*map(put_number, lengths), *(words[symbol] for symbol in symbols.tolist())])


def put_numbers(numbers):
    if len(numbers) == 0:
        return ''
    digits = [f'{number:b}'[1:] for number in numbers.tolist()]
    n_digits = np.array([len(text) for text in digits])
    m = int(n_digits.max()) + 1
    return put_number(m) + put_symbols(n_digits, m) + ''.join(digits)


def put_set(positions):
    return put_number(len(positions)) + put_numbers(np.diff(positions, prepend=-1))


def put_values(values):
    """Values (uint32, the bits of float32), through a codebook if at least every other is a repetition."""
    n_left_out = 0 if (values & 0xffff).any() else 16  # bits
    distinct, symbols = np.unique(values, return_inverse=True)
    shared = 0 < len(distinct) <= min(MAX_SHARED, len(values) // 2)
    told = distinct if shared else values
    text = str(n_left_out // 16) + put_number(len(distinct) if shared else 0)
    text += ''.join(f'{value >> n_left_out:0{32 - n_left_out}b}' for value in told.tolist())
    return text + put_symbols(symbols, len(distinct)) if shared else text


def put_alive(alive):
    """Where a matrix is not zero, (rows, columns), bool, in the shortest of the three ways."""
    ways = {ROWS: put_set(np.flatnonzero(alive)), COLUMNS: put_set(np.flatnonzero(alive.T))}
    rows, columns = np.nonzero(alive)
    is_first = np.diff(rows, prepend=-1) > 0
    steps, gaps = np.diff(columns[is_first], prepend=0), np.diff(columns)[~is_first[1:]]
    if (steps >= 0).all():
        ways[SORTED_ROWS] = put_numbers(alive.sum(1) + 1) + put_numbers(steps + 1) + put_numbers(gaps)
    return min((put_number(way) + text for way, text in ways.items()), key=len)


class Reader:
    """Takes what the functions above have put, in the same order; UserError if it is not there or contradicts itself.

    Nothing is allocated for more numbers than the bits left can hold, or than the matrix has places.
    """

    def __init__(self, text):
        self.text, self.position = text, 0

    def bits(self, n):
        expect(self.position + n <= len(self.text), f'the bits end where {n} more are expected')
        self.position += n
        return self.text[self.position - n:self.position]

    def number(self):
        n_zeros = self.text.find('1', self.position, self.position + MAX_BITS) - self.position
        expect(n_zeros >= 0, f'no number of up to {MAX_BITS} bits where one is expected')
        return int(self.bits(2 * n_zeros + 1), 2) - 1

    def symbols(self, m, count):
        """-> (count,), int64, each below m."""
        if m == 1:
            return np.zeros(count, np.int64)
        words = canonical_words([self.number() for _ in range(m)])
        symbol_of, symbols = {word: symbol for symbol, word in enumerate(words) if word}, []
        for _ in range(count):
            word = self.bits(1)
            while word not in symbol_of:
                expect(len(word) < MAX_LENGTH, 'no code word where one is expected')
                word += self.bits(1)
            symbols.append(symbol_of[word])
        return np.array(symbols, np.int64)

    def numbers(self, count):
        """-> (count,), int64, each at least 1."""
        if count == 0:
            return np.empty(0, np.int64)
        m = self.number()
        expect(1 <= m <= MAX_BITS, f'numbers of up to {m} bits, expected 1 to {MAX_BITS}')
        n_digits = self.symbols(m, count)
        numbers = 1 << n_digits
        for i in np.flatnonzero(n_digits):
            numbers[i] += int(self.bits(n_digits[i]), 2)
        return numbers

    def set(self, n):
        """-> ascending positions below n, int64."""
        count = self.number()
        expect(count <= n, f'{count} positions out of {n}')
        positions = np.cumsum(self.numbers(count)) - 1
        expect((positions < n).all(), f'position {positions.max(initial=0)} of {n}')
        return positions

    def values(self, count):
        """-> (count,), uint32, the bits of finite float32."""
        n_left_out, n_distinct = 16 * int(self.bits(1)), self.number()
        expect(n_distinct <= MAX_SHARED, f'{n_distinct} values in a codebook, expected at most {MAX_SHARED}')
        size = 32 - n_left_out  # bits
        text = self.bits(size * (n_distinct or count))
        values = np.array([int(text[i:i + size], 2) << n_left_out for i in range(0, len(text), size)], np.uint32)
        expect(np.isfinite(values.view(np.float32)).all(), 'values that are not finite')
        if n_distinct == 0:
            return values
        expect((values[1:] > values[:-1]).all(), 'a codebook that is not ascending')
        return values[self.symbols(n_distinct, count)]

    def alive(self, n_rows, n_columns):
        """-> where a matrix is not zero, (n_rows, n_columns), bool."""
        alive, way = np.zeros((n_rows, n_columns), bool), self.number()
        if way == ROWS:
            alive.flat[self.set(alive.size)] = True
        elif way == COLUMNS:
            alive.T.flat[self.set(alive.size)] = True
        else:
            expect(way == SORTED_ROWS, f'way {way} to give positions, expected {ROWS} to {SORTED_ROWS}')
            self.sorted_rows(alive)
        return alive

    def sorted_rows(self, alive):
        """Fill `alive`, in place."""
        counts = self.numbers(len(alive)) - 1
        n_columns = alive.shape[1]
        expect((counts <= n_columns).all(), f'more than {n_columns} weights in a row')
        rows = np.flatnonzero(counts)
        firsts = np.cumsum(self.numbers(len(rows)) - 1)
        ends = np.cumsum(counts[rows] - 1)  # of the gaps of each row
        gaps = np.split(self.numbers((counts[rows] - 1).sum()), ends)  # and an empty rest
        for row, first, gaps_of_row in zip(rows, firsts, gaps, strict=False):
            columns = first + np.cumsum([0, *gaps_of_row])
            expect(columns[-1] < n_columns, f'column {columns[-1]} of {n_columns}')
            alive[row, columns] = True


# ---- canonical Huffman codes -----------------------------------------------------------------------------------------

def code_lengths(counts):
    """How often each symbol occurs -> the length of its code word in bits, a list; 0 for those that never do."""
    used = [symbol for symbol, count in enumerate(counts) if count]
    lengths = [0] * len(counts)
    for symbol, word in zip(used, code_words(huffman_tree([counts[symbol] for symbol in used])), strict=True):
        lengths[symbol] = max(len(word), 1)  # also of a symbol that is alone, since 0 means that it has no word
    return lengths


def canonical_words(lengths):
    """Lengths in bits -> code words, numbered upwards by length, then by symbol; '' if the length is 0.

        [2, 1, 3, 3] -> ['10', '0', '110', '111']
        [0, 1, 0] -> ['', '0', '']

    Raises UserError if no complete prefix code has these lengths, one that gives a meaning to all bits. Only a symbol
    that is alone has a code word of one bit, and the other bit means nothing.
    """
    words, word, last = [''] * len(lengths), 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
        expect(length <= MAX_LENGTH, f'code word of {length} bits, expected at most {MAX_LENGTH}')
        word <<= length - last
        words[symbol], last = f'{word:0{length}b}', length
        expect(len(words[symbol]) == length, 'more code words than a prefix code has')
        word += 1
    is_alone = len(lengths) - words.count('') == last == 1
    expect(word == 1 << last or is_alone, 'fewer code words than a complete code has')
    return words
