"""The figures, drawn from small made-up runs and from the scripts on digits: axes, labels and what is drawn in them."""
import os
import subprocess
import sys
from pathlib import Path

import huffman_coding
import pruning
import weight_share
from net import data, figures
from net.checkpoint import PATH, Checkpoint
from net.models import SHARED, AlexNet, load_model
from net.statistics import Stream

import numpy as np
import pytest
import small
import torch
from scripts import ROOT

LAYERS = list(AlexNet.DEFAULT_PRUNE_RATE)


@pytest.fixture
def drawn(monkeypatch):
    """name -> figure, instead of files."""
    drawn = {}
    monkeypatch.setattr(figures, 'save', lambda figure, folder, name: drawn.update({name: figure}))
    return drawn


def labels(axes):
    return axes.get_xlabel(), axes.get_ylabel()


def test_the_sensitivity_has_a_line_for_each_layer_and_a_point_for_each_percentage(drawn):
    scan = {name: {100: 80., 30: 70. - i, 5: 20.} for i, name in enumerate(LAYERS)}
    figures.draw_sensitivity(scan, '300 held-out training images', 'figures')
    axes, = drawn['sensitivity'].axes
    assert labels(axes)[1] == 'accuracy on 300 held-out training images (%)' and 'weights kept' in labels(axes)[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == LAYERS
    assert [line.get_xdata().tolist() for line in axes.lines] == [[100, 30, 5]] * 8
    assert axes.lines[3].get_ydata().tolist() == [80, 67, 20] and axes.get_title()
    styles = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len(styles) == 8 and len({line.get_marker() for line in axes.lines}) == 8  # told apart in print, too


def test_the_history_has_loss_accuracy_and_weights_on_one_axis_of_epochs(drawn):
    rows = [('initial training', 2.0, 1000, 90, 30.), ('initial training', 1.5, 1000, 90, 40.),
            ('pruning', 1.7, 100, 40, None), ('retraining', 1.2, 10, 30, 50.)]
    history = [dict(zip(('phase', 'loss', 'alive', 'units', 'accuracy'), row, strict=True)) for row in rows]
    figures.draw_history(history, '300 held-out training images', 'figures')
    loss, accuracy, alive, units = drawn['history'].axes
    for axes, values in [(loss, [2, 1.5, 1.7, 1.2]), (accuracy, [30, 40, np.nan, 50]), (alive, [1000, 1000, 100, 10]),
                         (units, [90, 90, 40, 30])]:
        assert axes.lines[0].get_xdata().tolist() == [1, 2, 3, 4]
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), values)
    phases = {text.get_text() for text in drawn['history'].legends[0].get_texts()}
    assert phases == {'initial training', 'pruning', 'retraining'}
    assert [(span.get_x(), span.get_width()) for span in loss.patches] == [(0.5, 2), (2.5, 1), (3.5, 1)]
    assert (loss.get_ylabel(), accuracy.get_ylabel(), units.get_ylabel(), units.get_xlabel()) == (
        'training loss (nats)', 'accuracy (%) on\n300 held-out training images', 'hidden units in use', 'epochs')
    assert alive.get_yscale() == units.get_yscale() == 'log'


def test_the_network_is_shown_before_and_after_pruning(drawn):
    model = AlexNet(widths=[5, 4, 3, 4, 5, 6, 700])
    model.conv2.weight.data[2:] = 0
    model.conv3.weight.data[:, 1:] = 0  # reads one unit of conv2
    figures.draw_network(model, 'figures')
    units, weights = drawn['network'].axes
    assert [bar.get_width() for bar in units.patches] == [5, 4, 3, 4, 5, 6, 700, 10] + [5, 1, 3, 4, 5, 6, 700, 10]
    whole = [5 * 3 * 121, 4 * 5 * 25, 3 * 4 * 9, 4 * 3 * 9, 5 * 4 * 9, 6 * 5, 700 * 6, 10 * 700]
    left = [whole[0], 2 * 5 * 25, 3 * 1 * 9, *whole[3:]]
    assert [bar.get_width() for bar in weights.patches] == whole + left
    assert [text.get_text().strip() for text in weights.texts] == [f'{n:,}' for n in whole + left]
    assert [text.get_text() for text in units.get_yticklabels()] == LAYERS
    assert (units.get_xlabel(), weights.get_xlabel()) == ('units (logarithmic)', 'weights (logarithmic)')


def shared_layers():
    """Layer -> weights around two centroids, -1 and 1, of which training moves the second one to 2; and two zeros."""
    clustered = {name: np.where(np.arange(12 * i + 12) % 3 == 0, 1, -1).astype(np.float32)
                 for i, name in enumerate(LAYERS)}
    layers = ({name: 1.5 * weights for name, weights in clustered.items()}, clustered,
              {name: np.where(weights == 1, 2, weights) for name, weights in clustered.items()})
    return [{name: np.append(weights, [0, 0]) for name, weights in layer.items()} for layer in layers]


def test_the_centroids_stand_in_the_histogram_of_each_layer(drawn):
    figures.draw_centroids(*shared_layers(), 'figures')
    panels = drawn['centroids'].axes
    assert [axes.get_title() for axes in panels][:2] == ['conv1: 12 weights', 'conv2: 24 weights'] and len(panels) == 8
    assert [sum(bar.get_height() for bar in axes.patches) for axes in panels] == [12 * i + 12 for i in range(8)]
    assert [line.get_xdata().tolist() for line in panels[0].lines] == [[-1, 1], [-1, 2]]
    assert panels[0].get_xlabel() == 'value of the weight'
    assert drawn['centroids'].get_supylabel() == 'number of weights'
    assert len(drawn['centroids'].legends) == 1


def test_weights_that_hardly_differ_have_a_histogram(drawn):
    layers = dict.fromkeys(LAYERS, np.array([1, 1.0000001], np.float32))
    figures.draw_centroids(layers, layers, layers, 'figures')
    assert sum(bar.get_height() for bar in drawn['centroids'].axes[0].patches) == 2


STREAMS = [Stream('conv1.weight', 'data', 8, 2, 8, 6.5, codebook_bytes=10, data_bytes=2),
           Stream('conv1.weight', 'length', 8, 3, 12, 12.0, codebook_bytes=14, data_bytes=3),
           Stream('fc1.weight', 'indices', 0, 0, 0, 0.0, codebook_bytes=1, data_bytes=1)]


def draw_bytes(folder):
    return figures.draw_bytes(STREAMS, {'conv1': 8, 'fc1': 16}, {'conv1': 4000, 'fc1': 80000}, folder)


def test_the_bytes_of_each_layer_are_stacked_beside_the_original_ones(drawn):
    draw_bytes('figures')
    before, after = drawn['bytes'].axes
    assert [bar.get_width() for bar in before.patches] == [0.004, 0.08]
    widths = np.reshape([bar.get_width() for bar in after.patches], (6, 2))  # parts, layers
    np.testing.assert_allclose(widths * 1000, [[2, 0], [0, 1], [0, 0], [3, 0], [24, 1], [8, 16]])
    assert [text.get_text() for text in after.get_legend().get_texts()] == [
        'data', 'indices', 'indptr', 'length', 'codebooks', 'biases']
    assert (before.get_xlabel(), after.get_xlabel()) == ('original, float32 (MB)', 'encoded (kB)')
    assert [text.get_text().strip() for text in after.texts] == ['0.0 kB', '0.0 kB']


def test_a_figure_is_written_as_png_in_one_piece(capsys):
    assert draw_bytes('new/folder') == Path('new/folder/bytes.png')
    assert Path('new/folder/bytes.png').read_bytes()[:4] == b'\x89PNG'
    assert [path.name for path in Path('new/folder').iterdir()] == ['bytes.png']
    assert capsys.readouterr().out == ''


def test_a_figure_that_cannot_be_written_leaves_the_old_one(monkeypatch):
    def disk_full(file):
        raise OSError(28, 'No space left on device')

    Path('bytes.png').write_text('old', encoding='utf-8')
    monkeypatch.setattr(os, 'fsync', disk_full)
    with pytest.raises(OSError, match='^bytes.png: cannot be written .No space left on device.$'):
        draw_bytes('.')
    assert os.listdir() == ['bytes.png'] and Path('bytes.png').read_text(encoding='utf-8') == 'old'


@pytest.mark.slow
def test_figures_need_no_backend_and_that_of_a_notebook_may_be_missing():
    code = ("from net.arguments import figures_folder; folder = figures_folder('drawn'); from net import figures; "
            "from net.models import AlexNet; figures.draw_network(AlexNet(widths=[1] * 7), folder)")
    backend = 'module://matplotlib_inline.backend_inline'  # matplotlib refuses it while it is imported
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'MPLBACKEND': backend}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.listdir('drawn') == ['network.png']


@pytest.mark.parametrize('n, validation, shown', [
    (1, None, '1 of the training images'), (2, None, '1 of the training images'),
    (3000, None, '1,000 of the training images'), (40, 7, '7 held-out training images')])
def test_figures_show_the_accuracy_on_training_images_of_which_there_may_be_one(n, validation, shown):
    args = pruning.parse_args(['--figures', 'figures'] + ([] if validation is None else ['--validation', '7']))
    images = data.Images(torch.zeros(n, 3, 32, 32, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64), ('a', 'b'))
    train, report = images.split(validation) if validation else (images, None)
    checkpoint = Checkpoint(PATH, 'pruning.py', pruning.PHASES, {})
    assert pruning.Figures(args, checkpoint, train, report).shown == shown
    model = AlexNet(2, widths=[1] * 7)
    model.fc3.bias.data = torch.tensor([9., -9.])
    assert checkpoint.accuracy(model) == 100


@pytest.mark.slow
def test_the_scripts_draw_all_figures_that_are_shown(small_runs):
    digits = ['--data', 'digits', '--no-cuda', '--figures', 'figures']
    pruning.main([*digits, '--epochs', '1', '--keep', '20000', '--prune-steps', '2', '--retrain-epochs', '1',
                  '--validation', '5'])
    assert sorted(path.stem for path in Path('figures').iterdir()) == ['history', 'network', 'sensitivity']
    weight_share.main([*digits, '--epochs', '1', '--validation', '5'])
    huffman_coding.main(digits)
    shown = {path.name for path in (ROOT / '.github').glob('*.png')}
    assert set(os.listdir('figures')) == shown - {'curve.png'}  # which is that of many runs
    assert all(path.read_bytes()[:4] == b'\x89PNG' for path in Path('figures').iterdir())


def test_the_script_hands_over_the_weights_before_sharing_after_k_means_and_after_training(small_runs, monkeypatch):
    small.sparse_model('pruned.ptmodel')
    handed_over = []
    monkeypatch.setattr(figures, 'draw_centroids', lambda *args: handed_over.extend(args) or 'a file')
    weight_share.main(['--data', 'digits', '--no-cuda', '--figures', 'figures', '--load-model-path', 'pruned.ptmodel',
                       '--epochs', '1', '--bits', '2'])
    pruned, clustered, trained, folder = handed_over
    models = load_model('pruned.ptmodel'), load_model(SHARED)
    for (name, before), (_, after) in zip(*(model.layers() for model in models), strict=True):
        assert set(pruned[name].flat) <= set(before.weight.detach().numpy().flat)  # but for what was dead
        assert np.array_equal(trained[name], after.weight.detach().numpy())
        assert len(np.unique(clustered[name])) <= 5 < len(np.unique(pruned[name])) or name.startswith('fc')
        assert not np.array_equal(clustered[name], trained[name])
    assert folder == 'figures'


def test_the_script_hands_over_all_bytes_of_the_model(small_runs, monkeypatch):
    small.sparse_model('x.ptmodel')
    handed_over = []
    monkeypatch.setattr(figures, 'draw_bytes', lambda *args: handed_over.extend(args) or 'a file')
    huffman_coding.main(['--data', 'digits', '--no-cuda', '--figures', 'figures', '--load-model-path', 'x.ptmodel'])
    streams, biases, original, _ = handed_over
    assert sum(original.values()) == 4 * sum(param.numel() for param in AlexNet().parameters())
    on_disk = sum(path.stat().st_size for path in Path('encodings').iterdir())
    assert sum(biases.values()) + sum(stream.codebook_bytes + stream.data_bytes for stream in streams) == on_disk


def test_a_scan_prunes_one_layer_at_a_time_and_leaves_the_model_as_it_was(small_runs):
    model, seen = AlexNet(), []
    before = [param.clone() for param in model.parameters()]
    scan = figures.sensitivity_scan(model, lambda model: seen.append(
        [int(torch.count_nonzero(layer.weight)) / layer.weight.numel() for _, layer in model.layers()]) or len(seen))
    percents = [100, *figures.SCANNED_PERCENTS]
    assert list(scan) == LAYERS and all(list(accuracies) == percents for accuracies in scan.values())
    expected = [[1.] * 8] + [[1.] * layer + [percent / 100] + [1.] * (7 - layer)
                             for layer in range(8) for percent in figures.SCANNED_PERCENTS]
    for kept, wanted in zip(seen, expected, strict=True):
        assert kept == pytest.approx(wanted, rel=1e-3)
    assert scan['conv1'][100] == scan['fc3'][100] == 1 and scan['fc3'][percents[-1]] == len(seen)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
