"""Encoded files that were damaged or made by somebody hostile: refused by name, or decoded to a model of its shape."""
import os
import pickle
import re
import tracemalloc
from pathlib import Path

from net.huffmancoding import (
    dump_bias,
    huffman_decode,
    huffman_decode_model,
    huffman_encode,
    huffman_encode_model,
    pack_bits,
)

import numpy as np
import pytest
import torch
from hostile import RunsCommand, plant_link
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn


class Small(nn.Module):
    """A layer of each layout, by the names of the homework's: kernels, rows (csr) and columns (csc)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.fc1, self.fc2 = nn.Conv2d(2, 3, kernel_size=(2, 3)), nn.Linear(9, 4), nn.Linear(4, 9)
        values = torch.tensor([0, 0, 0.5, -1.25, 0, 3, 0.5, -2, 1e-3])
        for param in self.parameters():
            param.data = values[torch.arange(param.numel()) * 5 % 9 * (torch.arange(param.numel()) % 4 != 3)]\
                .reshape(param.shape)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """The encoded files of a small model: name -> bytes; and the folder, to put damaged ones in."""
    folder = tmp_path_factory.mktemp('damage') / 'encodings'
    huffman_encode_model(Small(), folder, os.devnull)
    return folder, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope='module')
def decoded():
    """A model to decode into, again and again, and the shapes of its parameters."""
    model = Small()
    return model, [param.shape for param in model.parameters()]


# ---- damage ----------------------------------------------------------------------------------------------------------

def flip(data, position, bit, _):
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1:]


def drop(data, position, _, run):
    return data[:position] + data[position + 1 + len(run):]


def insert(data, position, _, run):
    return data[:position] + run + data[position:]


def truncate(data, position, _, run):
    return data[:position]


def append(data, _, __, run):
    return data + run


CASES = 2000
changes = st.tuples(st.sampled_from([flip, drop, insert, truncate, append]), st.integers(0, 10 ** 6), st.integers(0, 7),
                    st.one_of(st.binary(min_size=1, max_size=9), st.integers(1, 4000).map(bytes)))  # zeros: deep trees


@pytest.mark.slow
@given(which=st.integers(0, 22), damages=st.lists(changes, min_size=1, max_size=3))
@settings(max_examples=CASES)
def test_any_damage_is_refused_by_file_or_gives_a_model_of_the_right_shape(which, damages, files, decoded):
    (directory, whole), (model, shapes) = files, decoded
    name = list(whole)[which]
    data = whole[name]
    for change, position, bit, run in damages:
        data = change(data, position % max(len(data), 1), bit, run) if data else run
    for param in model.parameters():
        param.data.fill_(9)
    (directory / name).write_bytes(data)
    tracemalloc.start()
    try:
        huffman_decode_model(model, directory)
    except ValueError as error:
        blamed = re.match(rf'{re.escape(str(directory))}.(\S+): \S', str(error))
        assert blamed[1] in whole and blamed[1].split('_')[0] == name.split('_')[0] and '\n' not in str(error)
    else:
        assert not any((param == 9).any() for param in model.parameters())
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        (directory / name).write_bytes(whole[name])
    assert [param.shape for param in model.parameters()] == shapes
    assert peak < allowed_bytes(len(data) + sum(map(len, whole.values())), sum(map(torch.numel, model.parameters())))


def test_the_fuzz_test_reaches_every_file(files):
    kinds = {re.sub(r'^(conv|fc)\d', r'\1', name) for name in files[1]}
    assert len(files[1]) == 23 and len(kinds) == 8 + 6 + 6 + 2


def allowed_bytes(file_bytes, n_values):
    """The memory that decoding may take: what the README says."""
    return 32e6 + 48 * (file_bytes + 4 * n_values)


def leaf(value):
    return f'1{value:032b}'


def tree(bits):
    return pack_bits(np.frombuffer(bits.encode(), np.uint8) - ord('0'))


def balanced(depth, first=0):
    if depth == 0:
        return leaf(first)
    return f'0{balanced(depth - 1, first)}{balanced(depth - 1, first + 2 ** (depth - 1))}'


ONES, MANY_ONES = (pack_bits(np.ones(n, np.uint8)) for n in (1_000_000, 16_000_000))
HUGE = {  # makes the codebook; code, and how many values there should be
    'nothing but inner nodes': (lambda: bytes(1_000_000), bytes(2), 10 ** 6),
    'a codebook of more values than there are': (lambda: tree(balanced(17)), ONES, 100),
    'millions of values of one bit': (lambda: tree('0' + leaf(0) + leaf(1)), MANY_ONES, 100),
    'a deep tree': (lambda: tree(''.join('0' + leaf(i) for i in range(20_000)) + leaf(0)), ONES, 20_001),
    'a tree that takes the largest table': (lambda: tree(balanced(11)), ONES, 2 ** 11),
    'a tree too large for a table of several bits': (lambda: tree(balanced(17)), ONES, 2 ** 17),
}


@pytest.mark.slow
@pytest.mark.parametrize('make_codebook, code, count', HUGE.values(), ids=HUGE)
def test_a_stream_that_is_far_too_long_takes_little_memory(make_codebook, code, count):
    codebook = make_codebook()
    Path('s_codebook.bin').write_bytes(codebook)
    Path('s.bin').write_bytes(code)
    tracemalloc.start()
    with pytest.raises(ValueError, match='ends early|too long for 100 values|expected .* values, got|bits stop'):
        huffman_decode('.', 's', np.int32, count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < allowed_bytes(len(codebook) + len(code), count)


# ---- hostile files ---------------------------------------------------------------------------------------------------

def test_a_plain_load_of_the_hostile_pickle_would_run_its_command():
    pickle.loads(pickle.dumps(RunsCommand()))
    assert Path('command-ran').exists()


@pytest.mark.parametrize('name', ['conv1.bias', 'conv1.weight_csr_data.bin', 'fc2.weight_csc_indptr_codebook.bin'])
@pytest.mark.parametrize('content', [np.ones(3, np.float32), RunsCommand()], ids=['array', 'command'])
def test_pickles_of_older_coders_are_refused_and_not_run(name, content):
    """Public versions of the homework write biases with `ndarray.dump`, and decode whatever such a file says."""
    huffman_encode_model(Small(), 'encodings')
    Path('encodings', name).write_bytes(content.dumps() if hasattr(content, 'dumps') else pickle.dumps(content))
    with pytest.raises(ValueError, match=f'^encodings.{name}: '):
        huffman_decode_model(Small(), 'encodings')
    assert not Path('command-ran').exists()


@pytest.mark.parametrize('planted', ['.encodings.new', '.encodings.old', 'encodings', 'encodings/fc1.bias',
                                     'encodings/.gitkeep'])
def test_encoding_never_follows_a_planted_link(planted):
    Path('elsewhere').mkdir()
    Path('elsewhere/precious').write_text('mine', encoding='utf-8')
    Path('encodings').mkdir()
    if planted == 'encodings':
        Path(planted).rmdir()
    plant_link(planted, Path('elsewhere' if '/' not in planted else 'elsewhere/precious').absolute())
    with pytest.raises(ValueError, match='holds|expected a directory'):
        huffman_encode_model(Small(), 'encodings')
    assert os.listdir('elsewhere') == ['precious'] and Path('elsewhere/precious').read_text(encoding='utf-8') == 'mine'


def test_a_stream_replaces_a_planted_link_and_leaves_its_target():
    Path('precious').write_text('mine', encoding='utf-8')
    for name in 'w.bin', 'w_codebook.bin', 'b':
        plant_link(name, 'precious')
    huffman_encode(np.array([1, 2], np.int32), 'w', '.')
    dump_bias(nn.Parameter(torch.ones(2)), 'b', '.')
    assert Path('precious').read_text(encoding='utf-8') == 'mine'
    assert not any(Path(name).is_symlink() for name in ('w.bin', 'b'))


@pytest.mark.parametrize('prefix', ['../x', 'a/b', '/tmp/x'])
def test_streams_are_written_into_their_directory_only(prefix):
    Path('encodings').mkdir()
    with pytest.raises(ValueError, match='must be a plain file name, got'):
        huffman_encode(np.array([1, 2], np.int32), prefix, 'encodings')
    with pytest.raises(ValueError, match='must be a plain file name, got'):
        dump_bias(nn.Parameter(torch.ones(2)), prefix, 'encodings')
    assert os.listdir('.') == ['encodings'] and not os.listdir('encodings')
