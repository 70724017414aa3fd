"""Huffman coding of a pruned, weight-shared model (Han et al. 2016, section 4): a directory of small files and back.

A stream of values becomes two files, `<prefix>.bin` and `<prefix>_codebook.bin`. Each is one byte, the number of
padding bits (0 to 7), and then the bits, most significant first, zero-padded:

    <prefix>.bin            the code of each value, one after the other
    <prefix>_codebook.bin   the tree in pre-order: `1` and 32 bits (float32 or uint32, big-endian) for a leaf,
                            `0` for an inner node, left child (bit 0) before right child (bit 1)

    one distinct value      its leaf on the left, on the right a spare leaf: 32 zero bits (or 1, if the value is 0)
    no values               both files are the single byte 0

This file also works alone, beside any `util.py` that has `log`.
"""
import hashlib
import heapq
import itertools
import os
import re
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csc_matrix, csr_matrix

import util

CHECKSUMS = 'SHA256SUMS'  # beside the encoded files, not needed to decode them, and not counted
STRAYS = {'.DS_Store', 'Thumbs.db', 'desktop.ini'}  # what file managers leave in folders that they show
UserError = getattr(util, 'UserError', ValueError)  # another util.py may not have it
INNER = -1  # marks an inner node in a pre-order list; leaves are numbers of symbols


# ---- codes: counts -> tree -> code words -----------------------------------------------------------------------------

def huffman_tree(counts):
    """Counts of two or more symbols (Python integers) -> the nodes of their Huffman tree in pre-order, a list."""
    n = len(counts)
    heap = [(count, symbol) for symbol, count in enumerate(counts)]
    heapq.heapify(heap)
    children = {}
    for inner in range(n, 2 * n - 1):
        (left_count, left), (right_count, right) = heapq.heappop(heap), heapq.heappop(heap)
        children[inner] = right, left  # the stack below takes the left one first
        heapq.heappush(heap, (left_count + right_count, inner))
    preorder, stack = [], [heap[0][1]]  # a stack, not recursion: skewed counts make trees as deep as n
    while stack:
        node = stack.pop()
        preorder.append(node if node < n else INNER)
        stack += children.get(node, ())
    return preorder


def code_words(preorder):
    """Tree -> the code word of each symbol, as strings of 0 and 1."""
    words, prefixes = {}, ['']
    for symbol in preorder:
        prefix = prefixes.pop()
        if symbol == INNER:
            prefixes += [prefix + '1', prefix + '0']
        else:
            words[symbol] = prefix
    return [words[symbol] for symbol in range(len(words))]


def tree_children(preorder):
    """Tree -> (inner nodes, 2), int32: where bits 0 and 1 lead from each inner node; ~symbol is a leaf, 0 the root."""
    children = np.zeros(len(preorder) - 1, dtype=np.int32)  # every node but the root is a child
    slots, inner = [], 0  # slot 2 * node + bit
    for i, symbol in enumerate(preorder):
        if i > 0:
            children[slots.pop()] = inner if symbol == INNER else ~symbol
        if symbol == INNER:
            slots += [2 * inner + 1, 2 * inner]
            inner += 1
    return children.reshape(-1, 2)


# ---- streams: arrays <-> bits <-> bytes <-> files --------------------------------------------------------------------

def pack_bits(bits):
    """Bits (uint8, each 0 or 1) -> bytes: the number of padding bits, then the padded bits."""
    return bytes([-len(bits) % 8]) + np.packbits(bits).tobytes()


def unpack_bits(data):
    """The inverse of `pack_bits`; ValueError if the header contradicts the rest."""
    if not data or data[0] > 7 or (data[0] and len(data) == 1):
        raise UserError(f'bad header, expected the number of padding bits (0 to 7), got {data[:1].hex() or "nothing"}')
    bits = np.unpackbits(np.frombuffer(data, np.uint8, offset=1))
    n = len(bits) - data[0]
    if bits[n:].any():
        raise UserError('padding bits must be zero')
    return bits[:n]


def encode_symbols(symbols, words, block=2 ** 16):
    """Symbol numbers (n,) and their code words -> the bits of the stream, uint8."""
    word_bits = np.frombuffer(''.join(words).encode(), np.uint8) - ord('0')
    lengths = np.array([len(word) for word in words])
    starts = np.cumsum(lengths) - lengths  # of each word in word_bits
    bits = [np.empty(0, np.uint8)]
    for part in np.split(symbols, range(block, len(symbols), block)):  # blocks that fit the cache
        bits.append(word_bits[_ranges(starts[part], lengths[part])])
    return np.concatenate(bits)


def decode_symbols(bits, children, count=None, block=800 * 2520):
    """Bits of a stream and the tree -> symbol numbers, int32.

    Raises ValueError if the bits stop inside a code word, or if there are not `count` symbols, where that is known.

    The tree is an automaton whose states are its inner nodes. It takes `width` bits at a time from a table; a cell of
    the table, one for each state and group of bits, tells the next state and the symbols that come out on the way.
    """
    width = min(8, max(1, 18 - len(children).bit_length()))  # bits; 2^18 cells at most, unless the tree is larger
    row_of_next, n_out, out = _automaton_table(children, width)
    first_out = np.cumsum(n_out) - n_out
    whole = len(bits) - len(bits) % width
    symbols, n, state = [], 0, 0
    for part in np.split(bits[:whole], range(block, whole, block)):  # blocks, so that little memory is taken at a time
        groups = np.packbits(part.reshape(-1, width), axis=1).ravel() >> (8 - width)
        cells = _run_automaton(row_of_next, groups, width, state)
        state = row_of_next[cells[-1]] if len(cells) else state
        n += int(n_out[cells].sum())
        if count is None or n <= count:
            symbols.append(out[_ranges(first_out[cells], n_out[cells])])
    node, last = state >> width, []
    for bit in bits[whole:]:  # fewer than `width`
        node = children[node, bit]
        if node < 0:
            last.append(~node)
            node = 0
    if node != 0:
        raise UserError('the bits stop inside a code word')
    if count is not None and n + len(last) != count:
        raise UserError(f'expected {count} values, got {n + len(last)}')
    return np.concatenate([*symbols, last]).astype(np.int32)


def _automaton_table(children, width):
    """-> the row offset of the next state and the number of symbols out of each cell, and all these symbols in a row.

    The cell of a state and a group of bits is number (state << width) + group.
    """
    patterns = np.unpackbits(np.arange(2 ** width, dtype=np.uint8)[:, None], axis=1)[:, -width:]
    node, nodes = np.arange(len(children))[:, None], np.empty((len(children), *patterns.shape), np.int32)
    for i in range(width):
        nodes[:, :, i] = children[node, patterns[:, i]]
        node = np.maximum(nodes[:, :, i], 0)  # from a leaf on to the root
    is_leaf = nodes < 0
    return (node << width).ravel(), is_leaf.sum(2).ravel(), ~nodes[is_leaf]


def _run_automaton(row_of_next, groups, width, start, n_runs=8):
    """Groups of bits -> the cells that the automaton passes from a state on, given as the offset of its row.

    The groups are cut into lanes that run side by side, each from a guessed state: the root. Huffman codes find back
    into step, so nearly all lanes end in the right state all the same. Where a lane's end is not what the next one
    started from, all run again from these ends, until they agree. Some codes never find into step, such as one of
    words of equal length: after `n_runs` the groups are taken one by one.
    """
    length = 2520 // width  # of a lane, in groups; 2520 bits are whole code words of any equal length up to 10 bits
    length *= max(1, len(groups) // (1024 * length))
    length = min(length, max(1, len(groups)))  # a short stream is one lane, no longer than itself
    lanes = np.pad(groups, (0, -len(groups) % length)).reshape(-1, length).T.astype(np.int32, order='C')
    cells, starts = np.empty_like(lanes), np.zeros(lanes.shape[1], np.int32)
    starts[:1] = start
    for _ in range(n_runs):
        state = starts
        for i, group in enumerate(lanes):
            cells[i] = state + group
            state = row_of_next[cells[i]]
        ends = np.append(start, state)[:-1]
        if np.array_equal(starts, ends):
            return cells.T.ravel()[:len(groups)]
        starts = ends
    return np.fromiter(_walk(row_of_next.tolist(), groups.tobytes(), start), np.int32, len(groups))


def _walk(row_of_next, groups, state):
    """The cells that the automaton passes, one by one."""
    for group in groups:
        yield state + group
        state = row_of_next[state + group]


def _ranges(starts, lengths):
    """start, start + 1, ... for each pair of start and length, one range after the other."""
    ends = np.cumsum(lengths)
    shift = np.repeat(starts - ends + lengths, lengths)
    return np.arange(len(shift)) + shift


def encode_tree(preorder, values):
    """Tree, and the value of each symbol (uint32) -> bits, uint8."""
    is_leaf = np.array(preorder) != INNER
    bits = np.zeros((len(preorder), 33), np.uint8)
    bits[:, 0] = is_leaf
    leaves = values[np.array(preorder)[is_leaf]].astype('>u4')
    bits[is_leaf, 1:] = np.unpackbits(leaves.view(np.uint8).reshape(-1, 4), axis=1)
    keep = np.ones(bits.shape, bool)
    keep[~is_leaf, 1:] = False
    return bits[keep]


def decode_tree(bits):
    """The inverse of `encode_tree`, symbols numbered in pre-order; ValueError unless the bits are one whole tree."""
    flat, position, missing = bits.tobytes(), 0, 1
    preorder, leaves = [], []  # leaves: where their values start
    while missing:
        if position + 33 * missing > len(flat):  # so that a run of zero bits takes no memory
            raise UserError('the tree ends early')
        if flat[position]:
            preorder.append(len(leaves))
            leaves.append(position + 1)
            position, missing = position + 33, missing - 1
        else:
            preorder.append(INNER)
            position, missing = position + 1, missing + 1
    if position < len(flat):
        raise UserError(f'{len(flat) - position} bits after the tree')
    if len(preorder) == 1:
        raise UserError('the tree is only a leaf, expected two leaves or more')
    values = np.lib.stride_tricks.sliding_window_view(bits, 32)[leaves]  # (leaves, 32)
    return preorder, np.packbits(values, axis=1).view('>u4').ravel().astype(np.uint32)


def huffman_encode(arr, prefix, save_dir='./'):
    """Write the values of `arr` to `<prefix>_codebook.bin` and `<prefix>.bin`; return the bytes of each.

    `arr` is float32, every bit of which is kept, or integers from 0 to 2^31 - 1; ValueError or TypeError otherwise.
    """
    arr = _to_uint32(arr)
    values = np.unique(arr)
    symbols = np.searchsorted(values, arr)  # much faster than np.unique's own inverse
    if len(values) == 0:
        tree_bits = code_bits = np.empty(0, np.uint8)
    else:
        if len(values) == 1:  # a spare leaf on the right, so that each value costs one bit
            preorder, values = [INNER, 0, 1], np.append(values, values == 0).astype(np.uint32)
        else:
            preorder = huffman_tree(np.bincount(symbols).tolist())
        tree_bits = encode_tree(preorder, values)
        code_bits = encode_symbols(symbols, code_words(preorder))
    paths = _stream_paths(save_dir, prefix)
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    return tuple(_write(path, pack_bits(bits)) for path, bits in zip(paths, (tree_bits, code_bits), strict=True))


def huffman_decode(directory, prefix, dtype, count=None):
    """Read the array (float32 or int32) that `huffman_encode` wrote; ValueError naming the file if that is not one.

    `count` is the number of values to expect, where it is known.
    """
    if np.dtype(dtype) not in (np.float32, np.int32):
        raise TypeError(f'streams hold float32 or int32, got {dtype}')
    codebook_path, data_path = _stream_paths(directory, prefix)
    with naming(codebook_path):
        tree_bits = unpack_bits(codebook_path.read_bytes())
        if count is not None and len(tree_bits) > 34 * max(count, 2) - 1:  # before memory is taken for them
            raise UserError(f'a codebook of {len(tree_bits)} bits is too long for {count} values')
        preorder, values = decode_tree(tree_bits) if len(tree_bits) else ([], np.empty(0, np.uint32))
        if np.dtype(dtype) == np.int32 and (values > np.iinfo(np.int32).max).any():
            raise UserError(f'expected values below 2^31, got {values.max()}')
    with naming(data_path):
        code_bits = unpack_bits(data_path.read_bytes())
        if (len(code_bits) == 0) != (len(values) == 0):
            raise UserError(f'{len(code_bits)} bits of code, but {len(values)} values in the codebook')
        if not len(values) and count:
            raise UserError(f'expected {count} values, got 0')
        symbols = decode_symbols(code_bits, tree_children(preorder), count) if len(values) else np.empty(0, np.int32)
    return values[symbols].view(dtype)


def _stream_paths(directory, prefix):
    return _inside(directory, f'{prefix}_codebook.bin'), _inside(directory, f'{prefix}.bin')


def _inside(directory, name):
    """The path of a file in the directory; ValueError if the name would lead out of it."""
    if Path(name).name != name:
        raise UserError(f'must be a plain file name, got {name!r}')
    return Path(directory, name)


def _to_uint32(arr):
    """The bits of float32 values, or non-negative integers as they are: (n,), uint32."""
    arr = np.ascontiguousarray(arr).ravel()
    if arr.dtype == np.float32:
        return arr.view(np.uint32)
    if arr.dtype.kind not in 'iu':
        raise TypeError(f'values to encode must be float32 or integers, got {arr.dtype}')
    if len(arr) and not 0 <= arr.min() <= arr.max() <= np.iinfo(np.int32).max:
        raise UserError(f'integers to encode must be 0 to 2^31 - 1, got {arr.min()} to {arr.max()}')
    return arr.astype(np.uint32)


def _write(path, data):
    """Write a file and return its size in bytes; OSError, naming the file, if that fails."""
    try:
        path.unlink(missing_ok=True)  # if it is a link, its target stays as it is
        with open(path, 'xb') as file:
            return file.write(data)
    except OSError as error:
        raise OSError(f'{path}: cannot be written ({error.strerror})') from error


@contextmanager
def naming(path):
    """Put the name of the file before the message of an error in its contents."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from error


# ---- layers: a weight tensor <-> its sparse streams ------------------------------------------------------------------

def calc_index_diff(indptr):
    """Row (or column) pointers (n + 1,) -> the number of non-zeros in each row, (n,)."""
    return indptr[1:] - indptr[:-1]


def reconstruct_indptr(diff):
    """The inverse of `calc_index_diff`."""
    return np.concatenate([[0], np.cumsum(diff)])


def huffman_encode_fc(param, name, directory):
    """Encode a fully connected layer (out, in), as CSR if it is wider than high, else CSC; return bytes before, after.

    Raises ValueError if a weight is -0.0 or NaN.
    """
    weights = _checked_weights(param, name)
    form, matrix = ('csr', csr_matrix(weights)) if _is_csr(weights.shape) else ('csc', csc_matrix(weights))
    return weights.nbytes, _encode_sparse(matrix, f'{name}_{form}', directory)


def huffman_decode_fc(param, name, directory):
    """Fill `param`, in place, with the weights that `huffman_encode_fc` wrote."""
    if _is_csr(param.shape):
        weights = _decode_sparse(tuple(param.shape), f'{name}_csr', directory)
    else:
        weights = _decode_sparse(tuple(param.shape)[::-1], f'{name}_csc', directory).T
    param.data.copy_(torch.from_numpy(weights))


def huffman_encode_conv(param, name, directory):
    """Encode a convolution (Kn, Ch, W, H), each (W, H) kernel as CSR; return the bytes before and after.

    The rows of all kernels together are one CSR matrix, whose lists are those of the kernels, concatenated. Raises
    ValueError if a weight is -0.0 or NaN.
    """
    weights = _checked_weights(param, name)
    compressed = _encode_sparse(csr_matrix(weights.reshape(-1, weights.shape[3])), f'{name}_csr', directory)
    lengths = np.count_nonzero(weights, axis=(2, 3))
    return weights.nbytes, compressed + sum(huffman_encode(lengths, f'{name}_csr_length', directory))


def huffman_decode_conv(param, name, directory):
    """Fill `param`, in place, with the weights that `huffman_encode_conv` wrote."""
    kn, ch, w, h = param.shape
    weights = _decode_sparse((kn * ch * w, h), f'{name}_csr', directory).reshape(kn, ch, w, h)
    lengths = huffman_decode(directory, f'{name}_csr_length', np.int32, kn * ch)
    if not np.array_equal(lengths, np.count_nonzero(weights, axis=(2, 3)).ravel()):
        raise UserError(f'{Path(directory, name)}_csr_length.bin: contradicts the row pointers')
    param.data.copy_(torch.from_numpy(weights))


def dump_bias(param, name, directory):
    """Write a bias as raw float32, little-endian; return the bytes before and after."""
    bias = param.detach().cpu().numpy()
    if bias.dtype != np.float32:
        raise TypeError(f'{name} must be float32, got {bias.dtype}')
    return bias.nbytes, _write(_inside(directory, name), bias.astype('<f4').tobytes())


def load_bias(param, name, directory):
    """Fill `param`, in place, with the bias that `dump_bias` wrote; ValueError if it has another length."""
    path = _inside(directory, name)
    with naming(path):
        data = path.read_bytes()
        if len(data) != 4 * param.numel():
            raise UserError(f'expected {param.numel()} float32 values, got {len(data)} bytes')
    param.data.copy_(torch.from_numpy(np.frombuffer(data, '<f4').astype(np.float32)).reshape(param.shape))


def _is_csr(shape):
    return shape[0] < shape[1]


def _checked_weights(param, name):
    """A weight tensor as a float32 array; ValueError for what sparse storage would lose."""
    weights = param.detach().cpu().numpy()
    if weights.dtype != np.float32:
        raise TypeError(f'{name} must be float32, got {weights.dtype}')
    if np.isnan(weights).any() or np.signbit(weights[weights == 0]).any():
        raise UserError(f'{name} holds NaN or -0.0, which sparse storage would lose')
    return weights


def _encode_sparse(matrix, prefix, directory):
    """Encode the three lists of a CSR or CSC matrix; return the bytes."""
    return sum(sum(huffman_encode(values, f'{prefix}_{part}', directory)) for part, values in [
        ('data', matrix.data), ('indices', matrix.indices), ('indptr', calc_index_diff(matrix.indptr))])


def _decode_sparse(shape, prefix, directory):
    """Read the three lists of a CSR matrix (or of a CSC matrix, transposed) and return it dense, float32."""
    n_rows, n_columns = shape
    diff = huffman_decode(directory, f'{prefix}_indptr', np.int32, n_rows)
    with naming(Path(directory, f'{prefix}_indptr.bin')):
        if (diff > n_columns).any():
            raise UserError(f'{diff.max()} non-zeros in a row of {n_columns}')
    n = int(reconstruct_indptr(diff)[-1])
    indices = huffman_decode(directory, f'{prefix}_indices', np.int32, n)
    places = np.repeat(np.arange(n_rows), diff) * n_columns + indices
    with naming(Path(directory, f'{prefix}_indices.bin')):
        if (indices >= n_columns).any() or (np.diff(places) <= 0).any():
            raise UserError(f'indices must rise within a row and stay below {n_columns}')
    data = huffman_decode(directory, f'{prefix}_data', np.float32, n)
    with naming(Path(directory, f'{prefix}_data.bin')):
        if np.isnan(data).any() or (data == 0).any():
            raise UserError('holds zeros or NaN, expected non-zero weights')
    dense = np.zeros(n_rows * n_columns, np.float32)
    dense[places] = data
    return dense.reshape(shape)


# ---- model: all layers <-> one directory -----------------------------------------------------------------------------

def huffman_encode_model(model, directory='encodings/', filename='log.txt'):
    """Write all parameters into `directory`, print and log a table of bytes; return (original, compressed) bytes.

    The new files are written beside the directory, which is then swapped in by two renames, so that an interruption
    leaves the old files or the new ones, whole. Raises ValueError, and leaves `directory` as it was, if it holds
    files of somebody else or if a weight cannot be stored.
    """
    target, new, old = _swap_paths(directory)
    _finish_swap(target, new, old)
    _refuse_foreign(target, model)
    new.mkdir(parents=True)
    try:
        totals, table = _encode_parameters(model, new)
        _write_checksums(new)
        _flush(new)
    except BaseException:
        shutil.rmtree(new)
        raise
    if target.exists():
        os.rename(target, old)
    os.rename(new, target)
    _flush_folder(target.parent)
    if old.exists():
        shutil.rmtree(old)
    util.log(table, filename)
    return totals


def huffman_decode_model(model, directory='encodings/'):
    """Fill every parameter of `model`, in place, from `directory`.

    Raises ValueError naming the file that does not fit: the first one that differs from its checksum, if there are
    checksums, and nothing has been filled; else the first one whose contents are wrong, and the parameters before it
    have been filled by then.
    """
    _finish_swap(*_swap_paths(directory))
    _verify_checksums(Path(directory))
    decoders = {4: huffman_decode_conv, 2: huffman_decode_fc, 1: load_bias}
    for name, param in model.named_parameters():
        decoders[param.dim()](param, name, directory)


def _encode_parameters(model, directory):
    """Write all parameters and print the table row by row; return (original, compressed) bytes and the table."""
    encoders = {4: huffman_encode_conv, 2: huffman_encode_fc, 1: dump_bias}
    lines = [f'{"Layer":<15} | {"original bytes":>20} {"compressed bytes":>20} improvement percent', '-' * 70]
    print('\n'.join(lines))
    totals = np.zeros(2, int)
    for name, param in model.named_parameters():
        sizes = encoders[param.dim()](param, name, directory)
        lines.append(_table_row(name, *sizes))
        print(lines[-1])
        totals += sizes
    lines.append(_table_row('total', *totals))
    print(lines[-1])
    return tuple(totals.tolist()), '\n'.join(lines)


def _flush(directory):
    """Have the operating system put the files of the directory, and their names, on the disk."""
    for path in directory.iterdir():
        try:
            with open(path, 'r+b') as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(f'{path}: cannot be written ({error.strerror})') from error
    _flush_folder(directory)


def _flush_folder(directory):
    """As in net/files.py, which this file does without."""
    if os.name == 'nt':  # Windows opens no folders, and keeps names in order by itself
        return
    folder = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(folder)
    finally:
        os.close(folder)


def _write_checksums(directory):
    """Write SHA256SUMS, for `sha256sum -c` and `_verify_checksums`."""
    lines = [f'{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n' for path in sorted(directory.iterdir())]
    _write(directory / CHECKSUMS, ''.join(lines).encode())


def _verify_checksums(directory):
    """Compare the files with SHA256SUMS, if it is there; ValueError names the first that is missing or differs."""
    path = directory / CHECKSUMS
    if not path.exists():
        return
    sums = {}
    with naming(path):
        for line in path.read_text('ascii', 'replace').splitlines():
            match = re.fullmatch(r'([0-9a-f]{64}) [ *]([^/\s]+)', line)
            if not match:
                raise UserError(f'expected lines of a checksum and a file name, got {line!r}')
            sums[match[2]] = match[1]
        unlisted = sorted({entry.name for entry in directory.iterdir()} - sums.keys() - STRAYS - {CHECKSUMS})
        if unlisted:
            raise UserError(f'does not list {unlisted[0]}')
    for name, expected in sums.items():
        with naming(directory / name):
            if hashlib.sha256((directory / name).read_bytes()).hexdigest() != expected:
                raise UserError(f'differs from its checksum in {CHECKSUMS}')


def _table_row(name, original, compressed):
    return (f'{name:<15} | {original:20} {compressed:20} {original / compressed:>10.2f}x '
            f'{100 * compressed / original:>6.2f}%')


def _swap_paths(directory):
    """The directory, and the two that stand beside it while it is replaced: the new files and the old ones."""
    target = Path(os.path.abspath(directory))
    return target, target.with_name(f'.{target.name}.new'), target.with_name(f'.{target.name}.old')


def _finish_swap(target, new, old):
    """After an interruption: finish the swap if it had begun, else drop the unfinished new files."""
    for path in new, old:
        if path.is_symlink():
            raise UserError(f'{path}: expected a directory of the encoder or nothing, got a link')
    if old.exists() and not target.exists():  # stopped between the two renames, so the new files are complete
        os.rename(new if new.exists() else old, target)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def _refuse_foreign(directory, model):
    """Raise ValueError if `directory` is no directory, or holds anything but the files of an encoded model."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise UserError(f'{directory}: expected a directory to write encoded files into')
    names = dict(model.named_parameters())
    streams = itertools.product(names, ('csr', 'csc'), ('data', 'indices', 'indptr', 'length'))
    known = {path.name for parts in streams for path in _stream_paths('', '_'.join(parts))} | names.keys() | {CHECKSUMS}
    for entry in sorted(directory.iterdir()) if directory.exists() else []:
        if entry.name not in known | STRAYS or entry.is_symlink() or not entry.is_file():
            raise UserError(f'{directory}: holds {entry.name}, which the encoder did not write; nothing was replaced')
