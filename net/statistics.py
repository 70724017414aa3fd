"""How good the code is: for every stream of an encoded model its symbols, their code words, and its entropy."""
from pathlib import Path
from typing import NamedTuple

from net.huffmancoding import code_words, decode_tree, huffman_decode, unpack_bits

import numpy as np

PARTS = 'data', 'indices', 'indptr', 'length'


class Stream(NamedTuple):
    """A stream as it lies on disk."""
    parameter: str  # such as conv1.weight
    part: str  # one of PARTS
    counts: np.ndarray  # (distinct symbols,), int: how often each occurs
    lengths: np.ndarray  # (distinct symbols,), int: bits of its code word
    codebook_bytes: int
    data_bytes: int

    @property
    def n_symbols(self):
        return int(self.counts.sum())

    @property
    def code_bits(self):
        return int(self.counts @ self.lengths)

    @property
    def entropy_bits(self):
        """What an ideal code would take that gives each symbol -log2 of its frequency, in bits (Shannon 1948)."""
        return float(self.counts @ -np.log2(self.counts / self.n_symbols)) if len(self.counts) else 0.0


def read_streams(model, directory='encodings/'):
    """The streams of an encoded model, in the order of its parameters; UserError if a file is damaged."""
    return [read_stream(Path(directory), name, path.name.removesuffix('_codebook.bin'))
            for name, param in model.named_parameters() if param.dim() > 1
            for part in PARTS
            for path in sorted(Path(directory).glob(f'{name}_cs[cr]_{part}_codebook.bin'))]


def read_stream(directory, parameter, prefix):
    part = prefix.rpartition('_')[2]
    codebook_path, data_path = directory / f'{prefix}_codebook.bin', directory / f'{prefix}.bin'
    values = huffman_decode(directory, prefix, np.float32 if part == 'data' else np.int32).view(np.uint32)
    distinct, counts = np.unique(values, return_counts=True)
    lengths = np.empty(0, int)
    if len(distinct):
        tree, leaves = decode_tree(unpack_bits(codebook_path.read_bytes()))
        length_of = dict(zip(leaves.tolist(), map(len, code_words(tree)), strict=True))
        lengths = np.array([length_of[value] for value in distinct.tolist()])
    return Stream(parameter, part, counts, lengths, codebook_path.stat().st_size, data_path.stat().st_size)


def entropy_table(streams):
    """The table of all streams: symbols, distinct symbols, bits per symbol of the code and at best, efficiency."""
    lines = [f'{"Stream":<22} | {"symbols":>9} {"distinct":>9} {"bits/symbol":>12} {"entropy":>9} {"efficiency":>11}',
             '-' * 79]
    for stream in streams:
        lines.append(_row(f'{stream.parameter} {stream.part}', stream.n_symbols, f'{len(stream.counts)}',
                          stream.code_bits, stream.entropy_bits))
    lines.append(_row('total', sum(stream.n_symbols for stream in streams), '',
                      sum(stream.code_bits for stream in streams), sum(stream.entropy_bits for stream in streams)))
    return '\n'.join(lines)


def _row(name, n, distinct, code_bits, entropy_bits):
    efficiency = f'{100 * entropy_bits / code_bits:.2f}%' if code_bits else '-'
    return (f'{name:<22} | {n:9} {distinct:>9} {code_bits / max(n, 1):12.4f} {entropy_bits / max(n, 1):9.4f} '
            f'{efficiency:>11}')
