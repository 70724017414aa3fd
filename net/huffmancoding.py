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
if __name__ == '__main__':  # before the imports, since util.py is not found from here
    raise SystemExit('This is a library: run huffman_coding.py in the folder above.')
import heapq
import os
import re
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

import util

import numpy as np
import torch
from scipy.sparse import csc_matrix, csr_matrix

STRAY = r'\..*|Thumbs\.db|desktop\.ini'  # dot-files, and what file managers leave in folders
UserError = getattr(util, 'UserError', ValueError)  # another util.py may not have it


# ---- codes: counts -> tree -> code words -----------------------------------------------------------------------------
# A tree is (inner nodes, 2), int32: where bits 0 and 1 lead from each. A leaf is ~symbol; the root is node 0, and each
# inner node comes after its parent.

def huffman_tree(counts):
    """Counts of the symbols (Python integers) -> their Huffman tree."""
    n = len(counts)
    heap = [(count, node) for node, count in enumerate(counts)]  # leaves are nodes 0 to n - 1, inner nodes follow
    heapq.heapify(heap)
    children = []
    while len(heap) > 1:
        (left_count, left), (right_count, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (left_count + right_count, n + len(children)))
        children.append((left, right))
    children = [~node if node < n else 2 * n - 2 - node for pair in reversed(children) for node in pair]
    return np.array(children, np.int32).reshape(-1, 2)


def code_words(tree):
    """Tree -> the code word of each symbol, as strings of 0 and 1."""
    words = {0: ''}
    for node, (left, right) in enumerate(tree.tolist()):
        prefix = words.pop(node)
        words[left], words[right] = prefix + '0', prefix + '1'
    return [words[leaf] for leaf in sorted(words, reverse=True)]


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


def _to_bits(text):
    """A string of 0 and 1 -> bits, uint8."""
    return np.frombuffer(text.encode(), np.uint8) - ord('0')


def encode_symbols(symbols, words):
    """Symbol numbers (n,) and their code words -> the bits of the stream, uint8."""
    return _to_bits(''.join(np.array(words, object)[symbols]))


def decode_symbols(bits, tree, count=None, block=840 * 1024):
    """Bits of a stream, one or more, and the tree -> symbol numbers, int32.

    Raises ValueError if the bits stop inside a code word, or if there are not `count` symbols, where that is known.

    The tree is an automaton whose states are its inner nodes. It takes a group of `width` bits at a time, by a table;
    the leaves among the nodes passed are the symbols. A block is whole groups of any width up to 8, and fits the cache.
    """
    n_cells = min(len(bits), 2 ** 18)  # of the table: one larger than the stream does not pay
    width = min(8, max(1, (n_cells // len(tree)).bit_length() - 1))
    nodes_passed, next_state = _automaton_table(tree, width)
    powers = 2 ** np.arange(width, dtype=np.uint8)[::-1]
    symbols, state = [], 0
    for part in np.split(bits, range(block, len(bits), block)):
        groups = np.pad(part, (0, -len(part) % width)).reshape(-1, width) @ powers
        states = []
        for group in groups.tolist():
            states.append(state)
            state = next_state[state][group]
        cells = (np.array(states, np.int32) << width) + groups
        nodes = nodes_passed.take(cells, axis=0).ravel()[:len(part)]  # one for each bit
        symbols.append(~nodes[nodes < 0])
    if nodes[-1] >= 0:
        raise UserError('the bits stop inside a code word')
    n = sum(map(len, symbols))
    if count is not None and n != count:
        raise UserError(f'expected {count} values, got {n}')
    return np.concatenate(symbols)


def _automaton_table(tree, width):
    """-> the nodes passed, (cells, width), int32, and the state after them, a list [state][group].

    The cell of a state and a group of bits is number (state << width) + group.
    """
    groups = np.arange(2 ** width)
    node, nodes = np.arange(len(tree))[:, None], []
    for shift in reversed(range(width)):
        nodes.append(tree[node, groups >> shift & 1])  # (states, groups)
        node = np.maximum(nodes[-1], 0)  # from a leaf on to the root
    states = np.arange(len(tree), dtype=object)  # one object for each, so that they fit the cache
    return np.stack(nodes, axis=2).reshape(-1, width), states[node].tolist()


def encode_tree(tree, values):
    """Tree, and the value of each symbol (uint32) -> bits, uint8."""
    children, values = tree.tolist(), values.tolist()
    text, stack = [], [0] if children else []  # a stack, not recursion: skewed counts make trees as deep as n
    while stack:
        node = stack.pop()
        text.append('0' if node >= 0 else f'1{values[~node]:032b}')
        stack += reversed(children[node]) if node >= 0 else []
    return _to_bits(''.join(text))


def decode_tree(bits):
    """The inverse of `encode_tree`, symbols numbered in pre-order; ValueError unless the bits are one whole tree."""
    flat, position, leaves = bits.tobytes(), 0, []  # leaves: where their values start
    nodes, missing = [None], [0]  # the root, then the children of each inner node; missing: which come next, last first
    while missing:
        if position + 33 * len(missing) > len(flat):  # so that a run of zero bits takes no memory
            raise UserError('the tree ends early')
        if flat[position]:
            nodes[missing.pop()] = ~len(leaves)
            leaves.append(position + 1)
            position += 33
        else:
            nodes[missing.pop()] = len(nodes) // 2
            missing += [len(nodes) + 1, len(nodes)]
            nodes += [None, None]
            position += 1
    if position < len(flat):
        raise UserError(f'{len(flat) - position} bits after the tree')
    if len(leaves) == 1:
        raise UserError('the tree is only a leaf, expected two leaves or more')
    values = np.lib.stride_tricks.sliding_window_view(bits, 32)[leaves]  # (leaves, 32)
    values = np.packbits(values, axis=1).view('>u4').ravel().astype(np.uint32)
    return np.array(nodes[1:], np.int32).reshape(-1, 2), values


def huffman_encode(arr, prefix, save_dir='./'):
    """Write the values of `arr` to `<prefix>_codebook.bin` and `<prefix>.bin`; return the bytes of each.

    `arr` is float32, every bit of which is kept, or integers from 0 to 2^31 - 1; ValueError or TypeError otherwise.
    """
    arr = _to_uint32(arr)
    values = np.unique(arr)
    symbols = np.searchsorted(values, arr)  # much faster than np.unique's own inverse
    tree = huffman_tree(np.bincount(symbols).tolist())
    if len(values) == 1:  # a spare leaf on the right, so that each value costs one bit
        tree, values = np.array([[~0, ~1]]), np.append(values, values == 0)
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    return (_write(_path(save_dir, f'{prefix}_codebook.bin'), pack_bits(encode_tree(tree, values))),
            _write(_path(save_dir, f'{prefix}.bin'), pack_bits(encode_symbols(symbols, code_words(tree)))))


def huffman_decode(directory, prefix, dtype, count=None):
    """Read the array (float32 or int32) that `huffman_encode` wrote; ValueError naming the file if that is not one.

    `count` is the number of values to expect, where it is known.
    """
    if np.dtype(dtype) not in (np.float32, np.int32):
        raise TypeError(f'streams hold float32 or int32, got {dtype}')
    codebook_path, data_path = _path(directory, f'{prefix}_codebook.bin'), _path(directory, f'{prefix}.bin')
    with naming(codebook_path):
        tree_bits = unpack_bits(codebook_path.read_bytes())
        if count is not None and len(tree_bits) > 34 * max(count, 2) - 1:  # before memory is taken for them
            raise UserError(f'a codebook of {len(tree_bits)} bits is too long for {count} values')
        tree, values = decode_tree(tree_bits) if len(tree_bits) else (None, np.empty(0, np.uint32))
        if np.dtype(dtype) == np.int32 and (values > np.iinfo(np.int32).max).any():
            raise UserError(f'expected values below 2^31, got {values.max()}')
    with naming(data_path):
        code_bits = unpack_bits(data_path.read_bytes())
        if (len(code_bits) == 0) != (len(values) == 0):
            raise UserError(f'{len(code_bits)} bits of code, but {len(values)} values in the codebook')
        if len(values):
            values = values[decode_symbols(code_bits, tree, count)]
        elif count:
            raise UserError(f'expected {count} values, got 0')
    return values.view(dtype)


def _path(directory, name):
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
    """Write a file, down to the disk, and return its size in bytes; OSError, naming the file, if that fails."""
    try:
        path.unlink(missing_ok=True)  # if it is a link, its target stays as it is
        with open(path, 'xb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f'{path}: cannot be written ({error.strerror})') from error
    return len(data)


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

    `huffman_encode_model` prints the row of the table. Raises ValueError if a weight is -0.0 or NaN.
    """
    weight = _checked_weight(param, name)
    shape = weight.shape
    form = 'csr' if shape[0] < shape[1] else 'csc'
    mat = csr_matrix(weight) if shape[0] < shape[1] else csc_matrix(weight)
    # Encode
    t0, d0 = huffman_encode(mat.data, f'{name}_{form}_data', directory)  # bytes of the tree, of the data
    t1, d1 = huffman_encode(mat.indices, f'{name}_{form}_indices', directory)
    t2, d2 = huffman_encode(calc_index_diff(mat.indptr), f'{name}_{form}_indptr', directory)
    return weight.nbytes, t0 + t1 + t2 + d0 + d1 + d2


def huffman_encode_conv(param, name, directory):
    """Encode a convolution (Kn, Ch, W, H), each (W, H) kernel as CSR; return the bytes before and after.

    The slides' hint makes one csr_matrix of each kernel and concatenates their lists. One csr_matrix of the rows of all
    kernels has the same lists: CSR goes through the rows one after the other and tells the column within the row. Only
    `indptr` would begin anew in each kernel; its differences, which are what is stored, are the same. The hint taken
    literally is `encode_conv` in tests/plain_coder.py. Raises ValueError if a weight is -0.0 or NaN.
    """
    weight = _checked_weight(param, name)
    kn, ch, w, h = weight.shape
    # 1. Call "csr_matrix" for all (Kn * Ch) matrices (W, H), and 2. concatenate the 4 parts of all into 4 lists
    mat = csr_matrix(weight.reshape(kn * ch * w, h))  # "data", "indices", "indptr"
    length = np.count_nonzero(weight, axis=(2, 3))  # "length of data", (Kn, Ch)
    # 3. Do huffman coding on these 4 lists individually
    t0, d0 = huffman_encode(mat.data, f'{name}_csr_data', directory)
    t1, d1 = huffman_encode(length, f'{name}_csr_length', directory)
    t2, d2 = huffman_encode(mat.indices, f'{name}_csr_indices', directory)
    t3, d3 = huffman_encode(calc_index_diff(mat.indptr), f'{name}_csr_indptr', directory)
    return weight.nbytes, t0 + t1 + t2 + t3 + d0 + d1 + d2 + d3


def huffman_decode_fc(param, name, directory):
    """Fill `param`, in place, with the weights that `huffman_encode_fc` wrote."""
    shape = param.shape
    form = 'csr' if shape[0] < shape[1] else 'csc'
    matrix = csr_matrix if shape[0] < shape[1] else csc_matrix
    # Decode data: "indptr" first, which tells how many values the others have
    indptr = reconstruct_indptr(huffman_decode(directory, f'{name}_{form}_indptr', 'int32', min(shape)))
    indices = huffman_decode(directory, f'{name}_{form}_indices', 'int32', indptr[-1])
    data = huffman_decode(directory, f'{name}_{form}_data', 'float32', indptr[-1])
    _check_lists(data, indices, indptr, max(shape), Path(directory, f'{name}_{form}'))
    # Construct matrix
    mat = matrix((data, indices, indptr), shape)
    # Insert to model
    param.data.copy_(torch.from_numpy(mat.toarray()))


def huffman_decode_conv(param, name, directory):
    """Fill `param`, in place, with the weights that `huffman_encode_conv` wrote, by its steps in reverse."""
    kn, ch, w, h = param.shape
    # 3. Decode the 4 lists: "indptr" first, which tells how many values the others have
    indptr = reconstruct_indptr(huffman_decode(directory, f'{name}_csr_indptr', 'int32', kn * ch * w))
    indices = huffman_decode(directory, f'{name}_csr_indices', 'int32', indptr[-1])
    length = huffman_decode(directory, f'{name}_csr_length', 'int32', kn * ch)
    data = huffman_decode(directory, f'{name}_csr_data', 'float32', indptr[-1])
    _check_lists(data, indices, indptr, h, Path(directory, f'{name}_csr'))
    # 2. and 1. One csr_matrix of the rows of all kernels, as encoded; "length of data" repeats what "indptr" says
    mat = csr_matrix((data, indices, indptr), (kn * ch * w, h))
    if not np.array_equal(length, calc_index_diff(indptr[::w])):
        raise UserError(f'{Path(directory, name)}_csr_length.bin: contradicts the row pointers')
    # Insert to model
    param.data.copy_(torch.from_numpy(mat.toarray().reshape(kn, ch, w, h)))


def dump_bias(param, name, directory):
    """Write a bias as raw float32, little-endian; return the bytes before and after."""
    bias = param.detach().cpu().numpy()
    if bias.dtype != np.float32:
        raise TypeError(f'{name} must be float32, got {bias.dtype}')
    return bias.nbytes, _write(_path(directory, name), bias.astype('<f4').tobytes())


def load_bias(param, name, directory):
    """Fill `param`, in place, with the bias that `dump_bias` wrote; ValueError if it has another length."""
    path = _path(directory, name)
    with naming(path):
        data = path.read_bytes()
        if len(data) != 4 * param.numel():
            raise UserError(f'expected {param.numel()} float32 values, got {len(data)} bytes')
    param.data.copy_(torch.from_numpy(np.frombuffer(data, '<f4').astype(np.float32)).reshape(param.shape))


def _checked_weight(param, name):
    """A weight tensor as a float32 array; ValueError for what sparse storage would lose."""
    weight = param.detach().cpu().numpy()
    if weight.dtype != np.float32:
        raise TypeError(f'{name} must be float32, got {weight.dtype}')
    if np.isnan(weight).any() or np.signbit(weight[weight == 0]).any():
        raise UserError(f'{name} holds NaN or -0.0, which sparse storage would lose')
    return weight


def _check_lists(data, indices, indptr, n_columns, prefix):
    """ValueError, naming the file, unless these are the lists of a CSR matrix (of CSC, with columns for rows)."""
    row_lengths = calc_index_diff(indptr)
    with naming(f'{prefix}_indptr.bin'):
        if (row_lengths > n_columns).any():
            raise UserError(f'{row_lengths.max()} non-zeros in a row of {n_columns}')
    places = np.repeat(np.arange(len(row_lengths)), row_lengths) * n_columns + indices
    with naming(f'{prefix}_indices.bin'):
        if (indices >= n_columns).any() or (np.diff(places) <= 0).any():
            raise UserError(f'indices must rise within a row and stay below {n_columns}')
    with naming(f'{prefix}_data.bin'):
        if np.isnan(data).any() or (data == 0).any():
            raise UserError('holds zeros or NaN, expected non-zero weights')


# ---- model: all layers <-> one directory -----------------------------------------------------------------------------

def huffman_encode_model(model, directory='encodings/', filename='log.txt'):
    """Write all parameters into `directory`, print and log a table of bytes; return (original, compressed) bytes.

    Raises ValueError, and leaves `directory` as it was, if it holds anything but files named after parameters, or
    if a weight cannot be stored. Dot-files and what file managers leave may lie in it, and stay.
    """
    lines, original_sum, compressed_sum = [], 0, 0

    def tell(line):
        print(line)
        lines.append(line)

    with _replacing(Path(os.path.abspath(directory)), model) as new:
        tell(f'{"Layer":<15} | {"original bytes":>20} {"compressed bytes":>20} improvement percent')
        tell('-' * 70)
        for name, param in model.named_parameters():
            if param.dim() == 4:  # 'weight' of a 'conv'
                original, compressed = huffman_encode_conv(param, name, new)
            elif param.dim() == 2:  # 'weight' of an 'fc'
                original, compressed = huffman_encode_fc(param, name, new)
            else:  # bias
                original, compressed = dump_bias(param, name, new)
            tell(_table_row(name, original, compressed))
            original_sum += original
            compressed_sum += compressed
        tell('-' * 70)
        tell(_table_row('total', original_sum, compressed_sum))
    util.log('\n'.join(lines), filename)
    return original_sum, compressed_sum


def huffman_decode_model(model, directory='encodings/'):
    """Fill every parameter of `model`, in place, from `directory`, which stays as it is.

    Raises ValueError naming the first file whose contents are wrong; the parameters before it have been filled by then.
    """
    if not Path(directory).is_dir():
        raise UserError(f'{Path(directory)}: no such directory; run huffman_coding.py (again, if it was interrupted)')
    for name, param in model.named_parameters():
        if param.dim() == 4:  # 'weight' of a 'conv'
            huffman_decode_conv(param, name, directory)
        elif param.dim() == 2:  # 'weight' of an 'fc'
            huffman_decode_fc(param, name, directory)
        else:  # bias
            load_bias(param, name, directory)


def _table_row(name, original, compressed):
    return (f'{name:<15} | {original:20} {compressed:20} {original / compressed:>10.2f}x '
            f'{100 * compressed / original:>6.2f}%')


@contextmanager
def _replacing(target, model):
    """Yield a new directory beside `target`, which takes its place if all goes well, by two renames.

    Whenever the program is stopped, the old files or the new ones are there, whole. If that is between the renames, the
    old ones wait in `.<name>.old` until the next encoder puts them back: whoever reads changes nothing.
    """
    new, old = (target.with_name(f'.{target.name}.{age}') for age in ('new', 'old'))
    for directory in target, new, old:
        _strays(directory, model)  # refuses what is not the encoder's
    if old.exists() and not target.exists():
        os.rename(old, target)
    for leftover in new, old:
        if leftover.exists():
            shutil.rmtree(leftover)
    new.mkdir(parents=True)
    try:
        yield new
        for path in _strays(target, model):
            _write(new / path.name, path.read_bytes())
        _flush_directory(new)
    except BaseException:
        shutil.rmtree(new)
        raise
    if target.exists():
        os.rename(target, old)
    os.rename(new, target)
    _flush_directory(target.parent)
    if old.exists():
        shutil.rmtree(old)


def _strays(directory, model):
    """Dot-files, and what file managers leave, among encoded files; ValueError if there is anything else."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise UserError(f'{directory}: expected a directory of encoded files, or nothing')
    names = '|'.join(re.escape(name) for name, _ in model.named_parameters())
    encoded = rf'({names})([._].*)?|SHA256SUMS'  # of any encoder: a grader may run several in one directory
    entries = sorted(directory.iterdir()) if directory.exists() else []
    for entry in entries:
        if not re.fullmatch(f'{encoded}|{STRAY}', entry.name) or entry.is_symlink() or not entry.is_file():
            raise UserError(f'{directory}: holds {entry.name}, which no encoder wrote; nothing was replaced')
    return [entry for entry in entries if re.fullmatch(STRAY, entry.name)]


def _flush_directory(directory):
    """Have the operating system put the names of the files in it on the disk."""
    with suppress(OSError):  # Windows opens no folders, and some network file systems cannot flush them
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
