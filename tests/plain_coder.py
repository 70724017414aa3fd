"""The homework's coder written plainly: code words as strings, trees as nodes, one sparse matrix per kernel.

A second, independent reading of the format that the docstring of net/huffmancoding.py describes: the tests let each
read the files of the other, and it is what the fast one is measured against.
"""
import heapq
import struct
from collections import Counter, namedtuple
from itertools import count, islice
from pathlib import Path

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

# A leaf has a word (the 32 bits of its value, as an integer), an inner node has two children.
Node = namedtuple('Node', 'word left right', defaults=(None, None, None))


# ---- trees -----------------------------------------------------------------------------------------------------------

def build_tree(counts):
    """Counts by word, of one word or more -> root of the Huffman tree."""
    if len(counts) == 1:
        (word,) = counts
        return Node(left=Node(word), right=Node(1 if word == 0 else 0))
    age = count()  # breaks ties, so that nodes are never compared
    heap = [(n, next(age), Node(word)) for word, n in counts.items()]
    heapq.heapify(heap)
    while len(heap) > 1:
        (n_left, _, left), (n_right, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (n_left + n_right, next(age), Node(left=left, right=right)))
    return heap[0][2]


def code_words(node, prefix=''):
    """Root -> code by word, strings of 0 and 1."""
    if node.word is not None:
        return {node.word: prefix}
    return {**code_words(node.left, prefix + '0'), **code_words(node.right, prefix + '1')}


def tree_to_bits(node):
    if node.word is not None:
        return '1' + ''.join(f'{byte:08b}' for byte in struct.pack('>I', node.word))
    return '0' + tree_to_bits(node.left) + tree_to_bits(node.right)


def bits_to_tree(bits):
    """Iterator over the characters of a tree in pre-order -> its root."""
    if next(bits) == '1':
        return Node(int(''.join(islice(bits, 32)), 2))
    left = bits_to_tree(bits)
    return Node(left=left, right=bits_to_tree(bits))


# ---- files -----------------------------------------------------------------------------------------------------------

def dump(bits, path):
    """Write a string of 0 and 1 with its header byte; return the bytes written."""
    padding = -len(bits) % 8
    bits += '0' * padding
    return Path(path).write_bytes(bytes([padding, *(int(bits[i:i + 8], 2) for i in range(0, len(bits), 8))]))


def load(path):
    """The inverse of `dump`."""
    padding, *data = Path(path).read_bytes()
    return ''.join([f'{byte:08b}' for byte in data])[:8 * len(data) - padding]


# ---- streams ---------------------------------------------------------------------------------------------------------

def encode(arr, prefix, directory):
    """Write a float32 or integer array as a stream; return the bytes of its codebook and of its data."""
    data = np.ravel(arr).astype('>f4' if arr.dtype == np.float32 else '>i4').tobytes()
    words = struct.unpack(f'>{len(data) // 4}I', data)
    tree_bits = data_bits = ''
    if words:
        tree = build_tree(Counter(words))
        codes = code_words(tree)
        tree_bits, data_bits = tree_to_bits(tree), ''.join([codes[word] for word in words])
    return dump(tree_bits, Path(directory, f'{prefix}_codebook.bin')), dump(data_bits, Path(directory, f'{prefix}.bin'))


def decode(directory, prefix, dtype):
    """Read the stream that `encode` wrote: an array of float32 or int32."""
    words = []
    tree_bits = load(Path(directory, f'{prefix}_codebook.bin'))
    if tree_bits:
        node = root = bits_to_tree(iter(tree_bits))
        for bit in load(Path(directory, f'{prefix}.bin')):
            node = node.left if bit == '0' else node.right
            if node.word is not None:
                words.append(node.word)
                node = root
    return np.array(words, np.uint32).view(dtype)


# ---- layers ----------------------------------------------------------------------------------------------------------

def encode_conv(weights, name, directory):
    """Write a convolution (Kn, Ch, W, H), float32, by the hint on the slides, literally; return the bytes written."""
    data, indices, indptr, length = [], [], [], []
    # 1. Call "csr_matrix" for all (Kn * Ch) matrices (W, H), and get "data", "length of data", "indices", "indptr"
    for kernel in weights.reshape(-1, *weights.shape[2:]):
        matrix = csr_matrix(kernel)
        data.append(matrix.data)
        indices.append(matrix.indices)
        indptr.append(np.diff(matrix.indptr))
        length.append(matrix.nnz)
    # 2. Concatenate each of these 4 parts into a one-dimensional list
    lists = {'data': np.concatenate(data), 'indices': np.concatenate(indices), 'indptr': np.concatenate(indptr),
             'length': np.array(length)}
    # 3. Do huffman coding on these 4 lists individually
    return sum(sum(encode(values, f'{name}_csr_{part}', directory)) for part, values in lists.items())


def decode_conv(shape, name, directory):
    """Read the weights that `encode_conv` wrote."""
    data = decode(directory, f'{name}_csr_data', np.float32)
    indices, indptr, length = (decode(directory, f'{name}_csr_{part}', np.int32)
                               for part in ('indices', 'indptr', 'length'))
    kernels, start = [], 0
    for rows, n in zip(indptr.reshape(-1, shape[2]), length.tolist(), strict=True):
        pointers = np.concatenate([[0], np.cumsum(rows)])
        lists = data[start:start + n], indices[start:start + n], pointers
        kernels.append(csr_matrix(lists, shape=shape[2:]).toarray())
        start += n
    return np.array(kernels).reshape(shape)


def encode_fc(weights, name, directory):
    """Write a fully connected layer (out, in), float32; return the bytes written."""
    form, matrix = ('csr', csr_matrix(weights)) if weights.shape[0] < weights.shape[1] else ('csc', csc_matrix(weights))
    lists = {'data': matrix.data, 'indices': matrix.indices, 'indptr': np.diff(matrix.indptr)}
    return sum(sum(encode(values, f'{name}_{form}_{part}', directory)) for part, values in lists.items())


def decode_fc(shape, name, directory):
    """Read the weights that `encode_fc` wrote."""
    form, matrix = ('csr', csr_matrix) if shape[0] < shape[1] else ('csc', csc_matrix)
    data = decode(directory, f'{name}_{form}_data', np.float32)
    indices, rows = (decode(directory, f'{name}_{form}_{part}', np.int32) for part in ('indices', 'indptr'))
    return matrix((data, indices, np.concatenate([[0], np.cumsum(rows)])), shape=shape).toarray()
