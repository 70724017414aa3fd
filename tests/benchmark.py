"""Measure start-up, the coder and the training loop against baselines, in one run, because machines are noisy.

    python tests/benchmark.py [--model saves/model_after_weight_sharing.ptmodel]

Without a model, a random AlexNet is pruned at the paper's rates and shared at 5 bits. The sizes are always those of the
model in `net/compact/smallest.dcan`.
"""
import argparse
import io
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import chdir, redirect_stdout
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bitarray import bitarray, decodetree
from bitarray.util import huffman_code
from scipy.sparse import csr_matrix
from scipy.special import gammaln
from torch.optim.lr_scheduler import CosineAnnealingLR

sys.path.insert(0, str(Path(__file__).parents[1]))
import pruning  # noqa: E402
from net import huffmancoding  # noqa: E402
from net.arguments import RECIPES  # noqa: E402
from net.checkpoint import Epoch  # noqa: E402
from net.compact.format import (  # noqa: E402
    code_lengths,
    compact_from_model,
    live_network_from_compact,
    model_from_compact,
)
from net.data import Images, batches  # noqa: E402
from net.live import live_part, remove_dead_weights  # noqa: E402
from net.models import AlexNet, load_model  # noqa: E402
from net.quantization import apply_weight_sharing  # noqa: E402
from net.training import Training, loss_of_batch, pruning_masks  # noqa: E402

import plain_coder  # noqa: E402

ROOT = Path(__file__).parents[1]
COMPACT = ROOT / 'net/compact/smallest.dcan'


def seconds(function, *args):
    """How long a call takes; what it prints is dropped."""
    with redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        function(*args)
        return time.perf_counter() - start


def best_of(n, function, *args):
    return min(seconds(function, *args) for _ in range(n))


def paper_model():
    torch.manual_seed(0)
    model = AlexNet()
    for param in model.parameters():
        param.data.normal_(std=float(param.abs().mean()))
    model.prune_by_percentile()
    apply_weight_sharing(model)
    return model


# ---- how long a script takes to answer -------------------------------------------------------------------------------

def cpu_seconds(command, folder):
    """What a process takes of all cores together; it may fail, as bad input makes it."""
    before = os.times()
    subprocess.run([sys.executable, *command], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return (after.children_user + after.children_system) - (before.children_user + before.children_system)


def benchmark_start(rounds=5):
    """CPU seconds until an answer that needs no model, beside those of PyTorch alone; medians, in turns."""
    commands = {'import torch': ['-c', 'import torch']}
    for script in 'pruning.py', 'weight_share.py', 'huffman_coding.py':
        for case, arguments in [('--help', ['--help']), ('an argument error', ['--data']),
                                ('a missing input file', ['--load-model-path', 'missing.ptmodel'])]:
            commands[f'{script}: {case}'] = [str(ROOT / script), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        times = [[cpu_seconds(command, folder) for command in commands.values()] for _ in range(rounds)]
    medians = dict(zip(commands, np.median(times, axis=0), strict=True))
    for name, median in medians.items():
        print(f'{name}: {median:.2f} s of CPU, {median - medians["import torch"]:+.2f} s beside import torch')


# ---- the coder against the scaffold's own algorithm ------------------------------------------------------------------

def plain_encode_model(model, directory):
    for name, param in model.named_parameters():
        weights = param.detach().numpy()
        if weights.ndim == 4:
            plain_coder.encode_conv(weights, name, directory)
        elif weights.ndim == 2:
            plain_coder.encode_fc(weights, name, directory)


def plain_decode_model(model, directory):
    for name, param in model.named_parameters():
        if param.dim() == 4:
            plain_coder.decode_conv(tuple(param.shape), name, directory)
        elif param.dim() == 2:
            plain_coder.decode_fc(tuple(param.shape), name, directory)


def benchmark_model(model):
    decoded = AlexNet(model.n_classes)
    with tempfile.TemporaryDirectory() as folder:
        log, encodings, plain = f'{folder}/log.txt', f'{folder}/encodings', f'{folder}/plain'
        Path(plain).mkdir()
        times = [[seconds(huffmancoding.huffman_encode_model, model, encodings, log),
                  seconds(huffmancoding.huffman_decode_model, decoded, encodings),
                  seconds(plain_encode_model, model, plain),
                  seconds(plain_decode_model, model, plain)] for _ in range(3)]
    encode, decode, plain_encode, plain_decode = np.min(times, axis=0)
    for verb, ours, baseline in [('encode', encode, plain_encode), ('decode', decode, plain_decode)]:
        print(f'{verb} the model: {ours:.2f} s, scaffold\'s algorithm {baseline:.1f} s: {baseline / ours:.1f}x')


# ---- the compact file against others ---------------------------------------------------------------------------------

def nonzeros(model):
    """(is convolution, number of places, positions, values) of each parameter."""
    for _, layer in model.layers():
        for param in (layer.weight, layer.bias):
            values = param.detach().numpy().ravel()
            positions = np.flatnonzero(values)
            yield layer.weight.dim() == 4, len(values), positions, values[positions]


def homework_bytes(model):
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        return huffmancoding.huffman_encode_model(model, f'{folder}/encodings', f'{folder}/log.txt')[1]


def codebook_bytes(model):
    """All gaps as 32 bits, then all codebooks, then a byte for each value that says which: easier to compress."""
    gaps, codebooks, indices = [], [], []
    for _, _, positions, values in nonzeros(model):
        gaps.append(np.diff(positions, prepend=-1).astype('<u4').tobytes())
        codebook, index = np.unique(values, return_inverse=True)
        codebooks.append(codebook.tobytes())
        indices.append(index.astype(np.uint8).tobytes())
    return b''.join(gaps + codebooks + indices)


def csr_bytes(model):
    """The three lists of the CSR matrices of all parameters, one after the other."""
    params = [param.detach().numpy() for param in model.parameters()]
    matrices = [csr_matrix(param.reshape(len(param) if param.ndim > 1 else 1, -1)) for param in params]
    file = io.BytesIO()
    np.savez_compressed(file, **{part: np.concatenate([getattr(matrix, part) for matrix in matrices])
                                 for part in ('data', 'indices', 'indptr')})
    return len(file.getvalue())


def huffman_bits(symbols):
    counts = np.unique(symbols, return_counts=True)[1]
    return int(counts @ code_lengths(counts.tolist()))


def paper_bytes(model):
    """Gaps of at most 2^8 places (convolutions) or 2^5, longer ones bridged by filler zeros, Huffman-coded like the
    values (Han et al. 2016, sections 2 and 4); 32 bits for each distinct value, no room for the codes themselves.
    """
    n_bits = 0
    for is_conv, _, positions, values in nonzeros(model):
        longest = 2 ** (8 if is_conv else 5)
        gaps = np.diff(positions, prepend=-1)
        n_fillers = (gaps - 1) // longest
        n_bits += 32 * len(np.unique(values))
        n_bits += huffman_bits(np.append(gaps - longest * n_fillers, np.full(n_fillers.sum(), longest)))
        n_bits += huffman_bits(np.append(values, np.zeros(n_fillers.sum())))
    return -(-n_bits // 8)


def entropy_bytes(model):
    """log2 of the ways to choose the positions, and the entropy of the values, of each parameter; without codebooks."""
    n_bits = 0
    for _, n, positions, values in nonzeros(model):
        k = len(positions)
        n_bits += (gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)) / np.log(2)
        counts = np.unique(values, return_counts=True)[1]
        n_bits -= (counts * np.log2(counts / k)).sum()
    return int(n_bits / 8)


def nncodec_bytes(model):
    """Bytes and largest error of the package `nncodec` (ISO/IEC 15938-17), if it is installed, else None."""
    try:
        from nncodec.nn import decode, encode
    except ImportError:
        return None
    params = {name: param.detach().numpy().copy() for name, param in model.named_parameters()}
    with redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder, chdir(folder):  # it leaves a file
        data = encode(params, args={'approx_method': 'codebook', 'use_dq': False, 'verbose': False})
        decoded = decode(data)
    return len(data), max(np.abs(decoded[name] - value).max() for name, value in params.items())


def benchmark_compact(model):
    """The bytes of one and the same model as others write it, and the times of the compact file."""
    file = io.BytesIO()
    torch.save(model, file)
    ptmodel = file.getvalue()
    raw = b''.join(positions.astype('<u4').tobytes() + values.tobytes() for _, _, positions, values in nonzeros(model))
    data = compact_from_model(model)
    rows = [('.ptmodel', len(ptmodel)), ('the homework\'s layout', homework_bytes(model))]
    for name, content in [('.ptmodel', ptmodel), ('raw positions and values', raw),
                          ('gaps, codebooks, indices', codebook_bytes(model))]:
        rows.append((f'xz -9e of {name}', len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))))
        if shutil.which('zstd'):
            zstd = subprocess.run(['zstd', '-19', '-c'], input=content, capture_output=True, check=True)
            rows.append((f'zstd -19 of {name}', len(zstd.stdout)))
    rows += [('savez_compressed of CSR arrays', csr_bytes(model)), ('gap coding of the paper', paper_bytes(model))]
    nncodec = nncodec_bytes(model)
    if nncodec:
        rows.append((f'nncodec, codebook mode, error {nncodec[1]:.1e}', nncodec[0]))
    rows += [('entropy, if positions were random', entropy_bytes(model)), ('compact file', len(data))]
    for name, n_bytes in rows:
        print(f'{name:45} {n_bytes:10} bytes {n_bytes / len(data):9.2f} times the compact file')
    print(f'compact file: written in {best_of(5, compact_from_model, model):.3f} s, '
          f'read in {best_of(5, model_from_compact, data):.3f} s')


# ---- one stream against bitarray -------------------------------------------------------------------------------------

def benchmark_stream(name, arr):
    """Symbols per second of one stream, from array to file and back, beside bitarray's Huffman code in memory."""
    with tempfile.TemporaryDirectory() as folder:
        encode = best_of(3, huffmancoding.huffman_encode, arr, 'stream', folder)
        decode = best_of(3, huffmancoding.huffman_decode, folder, 'stream', arr.dtype, len(arr))
    symbols = arr.tolist()

    def bitarray_encode():
        code = huffman_code(Counter(symbols))
        bits = bitarray()
        bits.encode(code, symbols)
        return code, bits

    def bitarray_decode():
        return list(bits.decode(decodetree(code)))

    code, bits = bitarray_encode()
    baseline_encode, baseline_decode = best_of(3, bitarray_encode), best_of(3, bitarray_decode)
    for verb, ours, baseline in [('encode', encode, baseline_encode), ('decode', decode, baseline_decode)]:
        print(f'{verb} {name} ({len(arr)} symbols): {len(arr) / ours / 1e6:5.1f} million symbols/s, '
              f'bitarray {len(arr) / baseline / 1e6:5.1f}: {baseline / ours:4.2f}x')


# ---- a training step, bare and in the loop ---------------------------------------------------------------------------

def random_images(n):
    return Images(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (n,)),
                       tuple('0123456789'))


def train_epoch(model, images, optimizer, batch_size, n_steps):
    training = Training(1, 1e-3, '--lr', 0, True, loss_of_batch, 'adam', batch_size, 10)
    pruning.train(model, images, optimizer, CosineAnnealingLR(optimizer, n_steps), [Epoch(1, 'Epoch 1/1')], training)


def benchmark_step(pruned, batch_size=256, n_steps=10, rounds=6):
    """Time per step of the real loop and bare, in turns, the best of each; and of what the real loop does besides."""
    model = AlexNet()
    if pruned:
        for name, percent in model.DEFAULT_PRUNE_RATE.items():
            weight = getattr(model, name).weight.data
            weight[torch.rand_like(weight) > percent / 100] = 0
    images = random_images(batch_size * n_steps)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    masks = pruning_masks(model, optimizer)
    pixels = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)  # as batches are
    labels = torch.randint(10, (batch_size,))

    def bare():
        for _ in range(n_steps):
            optimizer.zero_grad()
            F.nll_loss(model(pixels), labels).backward()
            optimizer.step()

    def real():
        train_epoch(model, images, optimizer, batch_size, n_steps)

    def only_batches():
        for _ in batches(images, batch_size):
            pass

    def masking():
        for _ in range(n_steps):
            for name, p in model.named_parameters():
                if name in masks:
                    p.grad.mul_(masks[name])

    bare()
    times = [[seconds(part) for part in (bare, real, only_batches, masking)] for _ in range(rounds)]
    bare_ms, real_ms, batches_ms, masking_ms = np.min(times, axis=0) / n_steps * 1e3
    print(f'training step of {batch_size} images, {"pruned" if pruned else "dense"}: bare {bare_ms:.0f} ms, '
          f'real loop {real_ms:.0f} ms; batches {batches_ms:.1f} ms and masks {masking_ms:.1f} ms '
          f'are {100 * (batches_ms + masking_ms) / bare_ms:.1f} % of the bare step')


def benchmark_live_part(n_kept=15_000, batch_size=256, n_steps=10, rounds=3):
    """A step of training the dense network against one of the live part of a network with `n_kept` weights.

    The weights are random: trained ones gather in fewer units, whose live part is smaller still. An epoch is nothing
    but such steps, so its ratio is the same.
    """
    images = random_images(batch_size * n_steps)
    dense, sparse = AlexNet(), AlexNet()
    fc_cost = RECIPES['ranking']['pruning']['fc_cost']
    seconds(sparse.prune_to_budget, n_kept, fc_cost)
    remove_dead_weights(sparse, drop_constants=True)

    def train(model):
        train_epoch(model, images, torch.optim.Adam(model.parameters(), fused=True), batch_size, n_steps)

    with live_part(sparse):
        n_live = sum(param.numel() for param in sparse.parameters())
        times = [[seconds(train, model) for model in (dense, sparse)] for _ in range(rounds + 1)][1:]  # one to warm up
    dense_ms, live_ms = np.min(times, axis=0) / n_steps * 1e3
    print(f'training step of {batch_size} images: dense {dense_ms:.0f} ms, live part of {n_kept} weights '
          f'({n_live} parameters) {live_ms:.0f} ms: {dense_ms / live_ms:.1f}x')


# ---- the live units alone --------------------------------------------------------------------------------------------

FIRST_PREDICTION = """
import sys, time
from pathlib import Path
import torch
from net import stage
from net.compact import format
start = time.perf_counter()
network = getattr(format, sys.argv[1])(Path(sys.argv[2]).read_bytes()).eval()
with torch.inference_mode():
    network(torch.zeros(1, 3, 32, 32))
print(f'{time.perf_counter() - start:.3f} s to the first prediction, peak memory with 256 images', end=' ')
with torch.inference_mode():
    network(torch.zeros(256, 3, 32, 32))
print(stage.peak_memory())
"""


def benchmark_first_prediction(path):
    """From the file to the first prediction: comes early, since a process begins with the peak memory of its parent."""
    for decode in model_from_compact, live_network_from_compact:
        done = subprocess.run([sys.executable, '-c', FIRST_PREDICTION, decode.__name__, path], cwd=ROOT,
                              capture_output=True, text=True, check=True)
        print(f'{path.name}: {decode.__name__}: {done.stdout.strip()}')


def milliseconds(network, pixels, n_runs=10):
    """Of a batch, with the channels of a pixel apart in memory or side by side, whichever is faster for the network."""
    times = []
    with torch.inference_mode():
        for batch in pixels, pixels.contiguous(memory_format=torch.channels_last):
            network(batch)
            start = time.perf_counter()
            for _ in range(n_runs):
                network(batch)
            times.append((time.perf_counter() - start) / n_runs * 1e3)
    return min(times)


def benchmark_live_network(path, rounds=5):
    """The network of a compact file, whole and its live units alone, in turns, the best of each."""
    data = path.read_bytes()
    networks = [decode(data).eval() for decode in (model_from_compact, live_network_from_compact)]
    sizes = [sum(4 * param.numel() for param in network.parameters()) / 1e6 for network in networks]
    print(f'{path.name}: parameters of the whole network {sizes[0]:.2f} MB, of its live units {sizes[1]:.2f} MB')
    for batch_size in 1, 256:
        pixels = torch.randn(batch_size, 3, 32, 32)
        whole, live = np.min([[milliseconds(network, pixels) for network in networks] for _ in range(rounds)], axis=0)
        print(f'{path.name}: batch of {batch_size}: whole {whole:.2f} ms, live {live:.2f} ms: {whole / live:.1f}x')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', help='pruned and shared model')
    args = parser.parse_args()
    print('--- From the compact file to the first prediction ---')
    benchmark_first_prediction(COMPACT)
    torch.manual_seed(0)
    model = load_model(args.model) if args.model else paper_model()
    fc2 = model.fc2.weight.detach().numpy()
    columns, rows = np.nonzero(fc2.T)
    print('--- Start ---')
    benchmark_start()
    print('--- The coder ---')
    benchmark_model(model)
    benchmark_stream('fc2 data', fc2[rows, columns])
    benchmark_stream('fc2 indices', rows.astype(np.int32))
    print('--- The compact file ---')
    benchmark_compact(model_from_compact(COMPACT.read_bytes()))
    print('--- The live units alone ---')
    benchmark_live_network(COMPACT)
    print('--- A training step ---')
    for pruned in (False, True):
        benchmark_step(pruned)
    print('--- Training the live part ---')
    benchmark_live_part()


if __name__ == '__main__':
    main()
