"""The compact file: a whole pruned model whose weights are shared as one small file, bit for bit.

    'DCAN'     4 bytes    what the file is
    1          1 byte     the version of the format
    body                  one byte, the number of padding bits (0 to 7), then the bits below, zero-padded
    CRC-32     4 bytes    of all bytes before it, big-endian

The bits, most significant first, are made of

    number     n >= 0 as Elias's gamma code of n + 1: as many zeros as n + 1 has bits after its first, then n + 1
    code       a canonical Huffman code of m symbols, m known: the length of each code word, a number, 0 if it has none;
               words are numbered upwards by length, then by symbol. If m = 1: nothing, and its words are empty
    numbers    of known count, each at least 1: nothing if the count is 0; else the number m; a code of m symbols, the
               number of bits after the first 1; the code word of each number; then all these bits
    set        ascending positions: the number k of them, then k numbers, the gaps between them, the first from -1
    values     float32, of known count: a bit, 1 if the lower 16 bits of all are zero and left out (bfloat16); the
               number of distinct values, 256 at most; these, ascending as integers; a code of these; the code word
               of each value. If 0 distinct values are announced, the values themselves follow, without a code

and hold, in this order: the number of units of each layer; for each layer but the last the set of its stored units; for
each layer its weights between stored units, and the values of their biases. Stored is a unit that has a weight
that is not zero, or such a bias; so are all input channels and all outputs. "Zero" is +0.0: -0.0 is a value like
others.

The weights of a layer are a matrix with a row for each output and a column for each place in the kernel and input, all
inputs of the first place first. Its non-zeros are given by the number 0 and the set of their positions row by row, by
1 and the same column by column, or, if the first non-zero of no row is left of that of a row above, by 2 and three
lists of numbers: how many each row has, plus 1; by how many columns the first one of each row that has any is right of
that of the last such row (at first, of column 0), plus 1; and the gaps of the others from the one before. Then come
their values, row by row.

The widths and the kernels must be those of AlexNet; only the number of classes is free, 1 to 10,000.
"""
import zlib
from itertools import pairwise

import numpy as np
import torch

from net.errors import UserError
from net.files import COMPACT_MAGIC
from net.huffmancoding import code_words, huffman_tree, pack_bits, unpack_bits
from net.models import WIDTHS, AlexNet

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
    units, writer = stored_units(model), Writer()
    for _, layer in model.layers():
        writer.number(len(layer.bias))
    for hidden in units[1:-1]:
        writer.set(hidden)
    for (name, layer), (inputs, outputs) in zip(model.layers(), pairwise(units), strict=True):
        n_places = layer.weight[0, 0].numel()
        stored = _bits_of(layer.weight)[outputs[:, None], inputs].reshape(len(outputs), len(inputs), n_places)
        matrix = stored.swapaxes(1, 2).reshape(len(outputs), n_places * len(inputs))
        weights, biases = matrix[matrix != 0], _bits_of(layer.bias)[outputs]
        if not np.isfinite(np.append(weights, biases).view(np.float32)).all():
            raise UserError(f'{name} holds values that are not finite')
        n_distinct = len(np.unique(weights))
        if n_distinct > MAX_SHARED:
            raise UserError(f'{name} has {n_distinct} distinct weights, at most {MAX_SHARED} can be kept: share them')
        writer.alive(matrix != 0)
        writer.values(weights)
        writer.values(biases)
    data = COMPACT_MAGIC + bytes([VERSION]) + pack_bits(np.frombuffer(writer.text.encode(), np.uint8) - ord('0'))
    return data + zlib.crc32(data).to_bytes(4, 'big')


def model_from_compact(data):
    """The bytes of a compact file -> AlexNet, on the CPU. Raises UserError if they are anything else; runs no code."""
    units, parts = _read(data)
    model = _empty_model(len(units[-1]), WIDTHS)
    for (_, layer), (inputs, outputs), (weights, biases) in zip(model.layers(), pairwise(units), parts, strict=True):
        _bits_of(layer.weight)[outputs[:, None], inputs] = weights
        _bits_of(layer.bias)[outputs] = biases
    return model


def live_network_from_compact(data):
    """The same network as `model_from_compact`, of its stored units alone: the whole is never made.

    Raises UserError also if a layer has none, so that no output depends on the images.
    """
    units, parts = _read(data)
    if not all(map(len, units)):
        raise UserError('a network in which no path is left from the images to the outputs')
    network = _empty_model(len(units[-1]), [len(hidden) for hidden in units[1:-1]])
    for (_, layer), (weights, biases) in zip(network.layers(), parts, strict=True):
        _bits_of(layer.weight)[:], _bits_of(layer.bias)[:] = weights, biases
    return network


def _read(data):
    """-> the indices of each layer's stored units, inputs first, and the weights and biases between them, uint32."""
    if data[:4] != COMPACT_MAGIC:
        raise UserError(f'not a compact model: it starts with {data[:4]!r}, expected {COMPACT_MAGIC!r}')
    if data[4:5] != bytes([VERSION]):
        raise UserError(f'version {data[4:5].hex() or "missing"} of the compact format, expected {VERSION:02x}')
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], 'big'):
        raise UserError('the CRC-32 does not fit: the file is damaged or incomplete')
    reader = Reader((unpack_bits(data[5:-4]) + ord('0')).tobytes().decode())
    *widths, n_classes = [reader.number() for _ in range(8)]
    if not 1 <= n_classes <= MAX_CLASSES:
        raise UserError(f'{n_classes} classes, expected 1 to {MAX_CLASSES}')
    if widths != list(WIDTHS):
        raise UserError(f'layers of {widths} units, expected {list(WIDTHS)}')
    units = [np.arange(3), *map(reader.set, WIDTHS), np.arange(n_classes)]
    with torch.device('meta'):  # shapes only
        kernels = [layer.weight.shape[2:] for _, layer in AlexNet().layers()]
    parts = [_read_layer(reader, len(outputs), len(inputs), kernel)
             for kernel, (inputs, outputs) in zip(kernels, pairwise(units), strict=True)]
    reader.finish()
    return units, parts


def _read_layer(reader, n_outputs, n_inputs, kernel):
    matrix = np.zeros((n_outputs, kernel.numel() * n_inputs), np.uint32)
    alive = reader.alive(*matrix.shape)
    matrix[alive] = reader.values(np.count_nonzero(alive))
    if np.count_nonzero(matrix) < np.count_nonzero(alive):
        raise UserError('zeros among the weights that are not zero')
    weights = matrix.reshape(n_outputs, kernel.numel(), n_inputs).swapaxes(1, 2)
    return weights.reshape(n_outputs, n_inputs, *kernel), reader.values(n_outputs)


def stored_units(model):
    """Indices of the input channels, of each layer's units with a weight or bias that is not +0.0, of the outputs."""
    layers = [layer for _, layer in model.layers()]
    alive = [_bits_of(layer.weight).reshape(*layer.weight.shape[:2], -1) != 0 for layer in layers]  # (out, in, places)
    units = [np.arange(alive[0].shape[1])]
    for layer, incoming, outgoing in zip(layers, alive, alive[1:], strict=False):
        units.append(np.flatnonzero(incoming.any((1, 2)) | (_bits_of(layer.bias) != 0) | outgoing.any((0, 2))))
    return [*units, np.arange(len(alive[-1]))]


def _bits_of(param):
    """The bits of a float32 parameter as uint32: a view, if it is on the CPU."""
    return param.detach().cpu().numpy().view(np.uint32)


def _empty_model(n_classes, widths):
    """An AlexNet of zeros."""
    with torch.device('meta'):  # shapes only, and no random numbers
        model = AlexNet(n_classes, widths)
    model = model.to_empty(device='cpu')
    for param in model.parameters():
        param.data.zero_()
    return model


# ---- the parts of the body, written and read as strings of 0 and 1 ---------------------------------------------------

class Writer:
    """Puts the parts of the body one after the other; `text` is what there is so far."""

    def __init__(self):
        self.text = ''

    def bits(self, text):
        self.text += text

    def number(self, n):
        digits = f'{n + 1:b}'
        self.bits('0' * (len(digits) - 1) + digits)

    def symbols(self, symbols, m):
        """A code for integers below m, and the code word of each of `symbols`."""
        if m == 1:
            return
        lengths = code_lengths(np.bincount(symbols, minlength=m).tolist())
        words = canonical_words(lengths)
        for length in lengths:
            self.number(length)
        self.bits(''.join(words[symbol] for symbol in symbols.tolist()))

    def numbers(self, numbers):
        if len(numbers) == 0:
            return
        digits = [f'{number:b}'[1:] for number in numbers.tolist()]
        n_digits = np.array([len(text) for text in digits])
        m = int(n_digits.max()) + 1
        self.number(m)
        self.symbols(n_digits, m)
        self.bits(''.join(digits))

    def set(self, positions):
        self.number(len(positions))
        self.numbers(np.diff(positions, prepend=-1))

    def values(self, values):
        """Values (uint32, the bits of float32), through a codebook if at least every other is a repetition."""
        n_left_out = 0 if (values & 0xffff).any() else 16  # bits
        distinct, symbols = np.unique(values, return_inverse=True)
        shared = 0 < len(distinct) <= min(MAX_SHARED, len(values) // 2)
        self.bits(str(n_left_out // 16))
        self.number(len(distinct) if shared else 0)
        self.bits(''.join(f'{value >> n_left_out:0{32 - n_left_out}b}'
                          for value in (distinct if shared else values).tolist()))
        if shared:
            self.symbols(symbols, len(distinct))

    def alive(self, alive):
        """Where a matrix is not zero, (rows, columns), bool, in the shortest of three ways."""
        ways = []
        for way, put in (ROWS, Writer.rows), (COLUMNS, Writer.columns), (SORTED_ROWS, Writer.sorted_rows):
            writer = Writer()
            writer.number(way)
            if put(writer, alive):
                ways.append(writer.text)
        self.bits(min(ways, key=len))

    def rows(self, alive):
        self.set(np.flatnonzero(alive))
        return True

    def columns(self, alive):
        return self.rows(alive.T)

    def sorted_rows(self, alive):
        """Row by row, by the columns of the non-zeros; False, and nothing written, if the rows are not sorted."""
        rows, columns = np.nonzero(alive)
        is_first = np.diff(rows, prepend=-1) > 0
        firsts = columns[is_first]
        if (np.diff(firsts) < 0).any():
            return False
        self.numbers(alive.sum(1) + 1)
        self.numbers(np.diff(firsts, prepend=0) + 1)
        self.numbers(np.diff(columns)[~is_first[1:]])
        return True


class Reader:
    """Takes what `Writer` has put, in the same order; UserError if it is not there or contradicts itself.

    Nothing is allocated for more numbers than the bits left can hold, or than the matrix has places.
    """

    def __init__(self, text):
        self.text, self.position = text, 0

    def bits(self, n):
        self.expect(n)
        self.position += n
        return self.text[self.position - n:self.position]

    def expect(self, n):
        if n > len(self.text) - self.position:
            raise UserError(f'{len(self.text) - self.position} bits are left where {n} are expected')

    def number(self):
        n_zeros = self.text.find('1', self.position, self.position + MAX_BITS) - self.position
        if n_zeros < 0:
            raise UserError(f'no number of up to {MAX_BITS} bits where one is expected')
        return int(self.bits(2 * n_zeros + 1), 2) - 1

    def symbols(self, m, count):
        """-> (count,), int64, each below m."""
        if m == 1:
            return np.zeros(count, np.int64)
        words = canonical_words([self.number() for _ in range(m)])
        symbol_of = {word: symbol for symbol, word in enumerate(words) if word}
        lengths = sorted({len(word) for word in symbol_of})
        self.expect(count)
        symbols = []
        for _ in range(count):
            ends = (self.position + length for length in lengths)
            word = next((word for end in ends if (word := self.text[self.position:end]) in symbol_of), None)
            if word is None:
                raise UserError('no code word where one is expected')
            symbols.append(symbol_of[word])
            self.position += len(word)
        return np.array(symbols, np.int64)

    def numbers(self, count):
        """-> (count,), int64, each at least 1."""
        if count == 0:
            return np.empty(0, np.int64)
        m = self.number()
        if not 1 <= m <= MAX_BITS:
            raise UserError(f'numbers of up to {m} bits, expected 1 to {MAX_BITS}')
        n_digits = self.symbols(m, count)
        self.expect(n_digits.sum())
        numbers = 1 << n_digits
        for i in np.flatnonzero(n_digits):
            numbers[i] += int(self.bits(n_digits[i]), 2)
        return numbers

    def set(self, n):
        """-> ascending positions below n, int64."""
        count = self.number()
        if count > n:
            raise UserError(f'{count} positions out of {n}')
        positions = np.cumsum(self.numbers(count)) - 1
        if count and positions[-1] >= n:
            raise UserError(f'position {positions[-1]} of {n}')
        return positions

    def values(self, count):
        """-> (count,), uint32, the bits of finite float32."""
        n_left_out = 16 * int(self.bits(1))  # bits
        n_distinct = self.number()
        if n_distinct > MAX_SHARED:
            raise UserError(f'{n_distinct} values in a codebook, expected at most {MAX_SHARED}')
        size = 32 - n_left_out  # bits
        text = self.bits(size * (n_distinct or count))
        values = np.array([int(text[i:i + size], 2) << n_left_out for i in range(0, len(text), size)], np.uint32)
        if not np.isfinite(values.view(np.float32)).all():
            raise UserError('values that are not finite')
        if n_distinct and (values[1:] <= values[:-1]).any():
            raise UserError('a codebook that is not ascending')
        return values[self.symbols(n_distinct, count)] if n_distinct else values

    def alive(self, n_rows, n_columns):
        """-> where a matrix is not zero, (n_rows, n_columns), bool."""
        alive, way = np.zeros((n_rows, n_columns), bool), self.number()
        if way == ROWS:
            alive.flat[self.set(alive.size)] = True
        elif way == COLUMNS:
            alive.T.flat[self.set(alive.size)] = True
        elif way == SORTED_ROWS:
            alive[self.sorted_rows(n_rows, n_columns)] = True
        else:
            raise UserError(f'way {way} to give positions, expected {ROWS} to {SORTED_ROWS}')
        return alive

    def sorted_rows(self, n_rows, n_columns):
        """-> rows and columns of the non-zeros, each (n,), int64."""
        counts = self.numbers(n_rows) - 1
        if (counts > n_columns).any():
            raise UserError(f'{counts.max()} weights in a row of {n_columns}')
        firsts = np.cumsum(self.numbers(np.count_nonzero(counts)) - 1)
        rows = np.repeat(np.arange(n_rows), counts)
        is_first = np.diff(rows, prepend=-1) > 0
        steps = np.empty_like(rows)
        steps[is_first], steps[~is_first] = firsts, self.numbers(np.count_nonzero(~is_first))
        columns = np.cumsum(steps)  # over all rows; then each row is set right
        columns -= np.repeat(columns[is_first] - firsts, counts[counts > 0])
        if (columns >= n_columns).any():
            raise UserError(f'column {columns.max()} of {n_columns}')
        return rows, columns

    def finish(self):
        if self.position < len(self.text):
            raise UserError(f'{len(self.text) - self.position} bits after the model')


# ---- canonical Huffman codes -----------------------------------------------------------------------------------------

def code_lengths(counts):
    """How often each symbol occurs -> the length of its code word in bits, a list; 0 for those that never do."""
    used = [symbol for symbol, count in enumerate(counts) if count]
    if len(used) == 1:  # one bit, since 0 means that a symbol has no word
        return [int(count > 0) for count in counts]
    lengths = [0] * len(counts)
    for symbol, word in zip(used, code_words(huffman_tree([counts[symbol] for symbol in used])), strict=True):
        lengths[symbol] = len(word)
    return lengths


def canonical_words(lengths):
    """Lengths in bits -> code words, strings of 0 and 1, numbered upwards by length, then by symbol; '' if it is 0.

    Raises UserError if no prefix code has these lengths.
    """
    words, word, last = [''] * len(lengths), 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
        if length > MAX_LENGTH:
            raise UserError(f'code word of {length} bits, expected at most {MAX_LENGTH}')
        word <<= length - last
        words[symbol], last = f'{word:0{length}b}', length
        if len(words[symbol]) > length:
            raise UserError('more code words than a prefix code has')
        word += 1
    return words
