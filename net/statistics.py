"""How good the code is: for every stream of an encoded model its symbols, the bits of its code, and its entropy."""
from pathlib import Path
from typing import NamedTuple

from net.huffmancoding import huffman_decode, unpack_bits

import numpy as np

PARTS = 'data', 'indices', 'indptr', 'length'


class Stream(NamedTuple):
    """A stream as it lies on disk."""
    parameter: str  # such as conv1.weight
    part: str  # one of PARTS
    n_symbols: int
    n_distinct: int
    code_bits: int
    entropy_bits: float  # of an ideal code, which gives each symbol -log2 of its frequency (Shannon 1948)
    codebook_bytes: int
    data_bytes: int


def read_streams(model, directory='encodings/'):
    """The streams of an encoded model, in the order of its parameters; UserError if a file is damaged."""
    return [read_stream(Path(directory), name, path.name.removesuffix('_codebook.bin'))
            for name, param in model.named_parameters() if param.dim() > 1
            for part in PARTS
            for path in sorted(Path(directory).glob(f'{name}_cs[cr]_{part}_codebook.bin'))]


def read_stream(directory, parameter, prefix):
    part = prefix.rpartition('_')[2]
    values = huffman_decode(directory, prefix, np.float32 if part == 'data' else np.int32).view(np.uint32)
    counts = np.unique(values, return_counts=True)[1]
    entropy_bits = float(counts @ -np.log2(counts / len(values)))  # without values an empty sum, 0
    codebook, data = (Path(directory, f'{prefix}{end}.bin').read_bytes() for end in ('_codebook', ''))
    return Stream(parameter, part, len(values), len(counts), len(unpack_bits(data)), entropy_bits, len(codebook),
                  len(data))


def entropy_table(streams):
    """The table of all streams: symbols, distinct symbols, bits per symbol of the code and at best, efficiency."""
    lines = [f'{"Stream":<22} | {"symbols":>9} {"distinct":>9} {"bits/symbol":>12} {"entropy":>9} {"efficiency":>11}',
             '-' * 79]
    for stream in streams:
        lines.append(_row(f'{stream.parameter} {stream.part}', stream.n_symbols, stream.n_distinct, stream.code_bits,
                          stream.entropy_bits))
    lines.append(_row('total', sum(stream.n_symbols for stream in streams), '',
                      sum(stream.code_bits for stream in streams), sum(stream.entropy_bits for stream in streams)))
    return '\n'.join(lines)


def _row(name, n, distinct, code_bits, entropy_bits):
    efficiency = f'{100 * entropy_bits / code_bits:.2f}%' if code_bits else '-'
    return (f'{name:<22} | {n:9} {distinct:>9} {code_bits / max(n, 1):12.4f} {entropy_bits / max(n, 1):9.4f} '
            f'{efficiency:>11}')
