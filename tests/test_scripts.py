"""The three scripts, in sequence."""
import io
import os
import re
import subprocess
import sys
import zipfile
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import NamedTuple

import huffman_coding
import pruning
import weight_share
from net import stage, training
from net.arguments import RECIPES
from net.errors import UserError
from net.live import live_units
from net.models import COMPACT, AlexNet, load_model, save_model

import pytest
import torch
import torch.nn.functional as F
from scripts import DIGITS, ROOT, error_of
from small import WIDTHS, make_small
from test_data import make_folder

SHORT = [*DIGITS, '--recipe', 'paper', '--retrain-epochs', '1']


class Run(NamedTuple):
    """How a script ended."""
    out: str
    err: str
    status: int | str | None  # of its exit, or the line that it exited with


def run(script, arguments):
    """A script in this process, as from the command line."""
    out, err, status = io.StringIO(), io.StringIO(), None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            stage.run(lambda: script.main(arguments))
        except SystemExit as stopped:
            status = stopped.code
    return Run(out.getvalue(), err.getvalue(), status)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A folder in which the three scripts have run, and how they ended."""
    folder = tmp_path_factory.mktemp('finished')
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        make_small(patch.setattr)
        return folder, [run(pruning, [*SHORT, '--epochs', '1']), run(weight_share, [*DIGITS, '--epochs', '1']),
                        run(huffman_coding, [*DIGITS, '--student-id', 'b08902000'])]


small_runs = pytest.mark.usefixtures('small_runs')


def few_weights(path):
    """A model with 500 weights at random places in each layer: quick to share and to encode."""
    model = AlexNet()
    for _, layer in model.layers():
        layer.weight.data[torch.rand_like(layer.weight) > 500 / layer.weight.numel()] = 0
    save_model(model, path)


@small_runs
def test_each_script_hands_a_model_to_the_next(finished):
    folder, runs = finished
    assert [run.status for run in runs[:2]] == [None, None]
    for name in ('saves/initial_model', 'saves/model_after_retraining', 'saves/model_after_weight_sharing',
                 'b08902000'):
        assert isinstance(load_model(folder / f'{name}.ptmodel'), AlexNet)


def test_where_there_is_no_terminal_each_epoch_is_one_line_and_there_are_no_bars(finished):
    for run, epochs in zip(finished[1], [2, 1, 0], strict=True):
        pattern = r'^Epoch 1/1: Average loss: [\d.]+, lr [\d.e-]+, \d+ parameters alive, \d+ images/s$'
        assert len(re.findall(pattern, run.out, re.M)) == run.out.count('Epoch') == epochs
        assert '\r' not in run.out and run.err == ''


def test_each_script_ends_with_its_time_and_memory(finished):
    for run in finished[1][:2]:
        assert re.fullmatch(r'Finished in (\d+ min )?\d+ s, peak memory [\d.]+ GB(, on the GPU [\d.]+ GB)?',
                            run.out.splitlines()[-1])


def test_the_log_holds_the_tables_that_were_printed(finished):
    folder, runs = finished
    log = (folder / 'log.txt').read_text(encoding='utf-8')
    tables = [line for run in runs for line in run.out.splitlines()
              if re.match(r'\w+\.(weight|bias) .*\|', line) or line.startswith(('alive: ', 'total '))]
    assert len(tables) == 3 * 17 + 17 + 30  # of non-zeros, bytes, and streams, with a last line each
    assert all(f'{line}\n' in log for line in tables)


def test_the_log_holds_the_keys_of_the_homework_in_order(finished):
    words = [line.split() for line in (finished[0] / 'log.txt').read_text(encoding='utf-8').splitlines()]
    keys = [line[0] for line in words if 'accuracy' in line[0].lower()]
    assert keys == [
        'initial_accuracy', 'accuracy_after_pruning', 'accuracy_after_retraining', 'Accuracy_before_quantization',
        'Accuracy_after_quantization', 'Accuracy_before_encoding', 'Accuracy_after_decoding']
    assert all(0 <= float(line[1]) <= 100 for line in words if line[0] in keys)


@small_runs
def test_each_layer_keeps_the_percentage_of_the_paper(finished):
    model = load_model(finished[0] / 'saves/model_after_retraining.ptmodel')
    for name, percent in AlexNet.DEFAULT_PRUNE_RATE.items():
        weight = getattr(model, name).weight
        assert int(torch.count_nonzero(weight)) == pytest.approx(weight.numel() * percent / 100, abs=1)


def test_the_printed_total_is_the_bytes_on_disk(finished):
    folder, (_, _, encoding) = finished
    total = next(line for line in encoding.out.splitlines() if line.startswith('total')).split()
    assert int(total[2]) == 4 * sum(param.numel() for param in AlexNet(widths=WIDTHS).parameters())
    assert int(total[3]) == sum(path.stat().st_size for path in (folder / 'encodings').iterdir())


@small_runs
def test_what_is_handed_in_is_the_shared_model_and_the_net_folder(finished):
    folder, _ = finished
    handed_in = torch.load(folder / 'b08902000.ptmodel', weights_only=False)
    shared = load_model(folder / 'saves/model_after_weight_sharing.ptmodel')
    assert all(torch.equal(a, b) for a, b in zip(handed_in.parameters(), shared.parameters(), strict=True))
    with zipfile.ZipFile(folder / 'b08902000.zip') as archive:
        assert sorted(archive.namelist()) == sorted(f'net/{path.name}' for path in (ROOT / 'net').glob('*.py'))


def test_the_submission_check_names_what_was_found_and_the_points(finished):
    lines = finished[1][2].out.split('--- Submission check ---\n')[1].splitlines()
    table = [[cell.strip() for cell in line.split('|')] for line in lines[:5]]
    assert [row[0] for row in table[:4]] == ['ok'] * 4
    assert [row[2] for row in table] == ['required', '70 points', '10 points', '10 points', '0, 5 or 10 points']
    assert table[2][3] == '33, 33, 33, 33, 33'


def test_an_accuracy_below_the_ranking_ends_in_status_1_and_is_named(finished):
    """One epoch of training is not enough for 58 %; the files are there all the same. (A text exits with status 1.)"""
    assert finished[1][2].status == 'error: submission check failed: accuracy above 58% enters the ranking'


@pytest.mark.slow
def test_the_digits_command_of_the_readme_ends_in_an_accepted_submission():
    """Real digits, and each script as a process."""
    lines = (ROOT / 'README.md').read_text(encoding='utf-8').splitlines()
    commands = next(line for line in lines if '&& python huffman_coding.py --data digits' in line)
    for command in commands.split(' && '):
        _, script, *arguments = command.split()
        done = subprocess.run([sys.executable, ROOT / script, *arguments, '--no-cuda'], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count('ok     | ') == 5


@small_runs
def test_retraining_can_start_from_a_dense_model_and_report_on_held_out_images(finished, capsys):
    dense = str(finished[0] / 'saves/initial_model.ptmodel')
    pruning.main([*SHORT, '--load-model-path', dense, '--validation', '5', '--rates', 'fc2=1,conv1=10,fc3=0.5'])
    out = capsys.readouterr().out
    assert 'Note: --rates fc3=0.5 keeps 51 of 10,240 weights: it is a percentage, not a fraction\n' in out
    assert f'Note: {dense} was trained on some of the images that --validation 5 holds out now' in out
    assert 'Initial training' not in out and 'Test set' not in out
    assert out.count('Validation set: ') == 3 and '/5 (' in out
    model = load_model('saves/model_after_retraining.ptmodel')
    for layer, percent in (model.fc2, 1), (model.conv1, 10), (model.fc1, 9):  # the paper keeps 9, 84 and 9 %
        kept = int(torch.count_nonzero(layer.weight))
        assert kept == pytest.approx(layer.weight.numel() * percent / 100, abs=1)
    assert not Path('saves/initial_model.ptmodel').exists()


@small_runs
def test_the_first_training_alone_leaves_the_dense_model_that_a_whole_run_begins_with(finished, capsys):
    pruning.main([*SHORT[:-2], '--epochs', '1', '--dense-only'])
    assert sorted(os.listdir('saves')) == ['initial_model.ptmodel', 'initial_model.ptmodel.note']
    assert 'Pruning' not in capsys.readouterr().out
    dense = [load_model(Path(folder, 'saves/initial_model.ptmodel')) for folder in ('.', finished[0])]
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in dense), strict=True))


@small_runs
@pytest.mark.parametrize('first', [[], ['--load-model-path', 'dense.ptmodel']], ids=['trained here', 'loaded'])
def test_the_dense_network_teaches_from_pruning_on(first, monkeypatch):
    save_model(AlexNet(), 'dense.ptmodel')
    teachers, shares = [], []

    def watched(output, target, data, smoothing, teacher=None, teacher_share=0):
        teachers.append(teacher)
        shares.append(teacher_share)
        return F.nll_loss(output, target)
    monkeypatch.setattr(training, 'loss_of_batch', watched)
    monkeypatch.setitem(RECIPES['paper']['pruning'], 'teacher_share', 0.5)
    pruning.main([*SHORT, *first, *([] if first else ['--epochs', '1']), '--prune-steps', '2'])
    dense = load_model('dense.ptmodel' if first else 'saves/initial_model.ptmodel')
    pixels = torch.randn(2, 3, 32, 32)
    assert [teacher is None for teacher in teachers] == ([] if first else [True]) + [False] * 2
    assert shares == ([] if first else [0]) + [0.5] * 2
    for teacher in teachers[-2:]:
        assert torch.allclose(teacher(pixels), dense(pixels), atol=1e-5)


@small_runs
def test_the_network_before_sharing_teaches_its_shared_values(monkeypatch):
    few_weights('pruned.ptmodel')
    teachers = []

    def watched(output, target, data, teacher, teacher_share):
        teachers.append(teacher)
        assert teacher_share == 0.5
        return F.nll_loss(output, target)
    monkeypatch.setattr(training, 'loss_of_batch', watched)
    monkeypatch.setitem(RECIPES['digits']['sharing'], 'teacher_share', 0.5)
    weight_share.main([*DIGITS, '--load-model-path', 'pruned.ptmodel', '--epochs', '1'])
    pruned, pixels = load_model('pruned.ptmodel'), torch.randn(2, 3, 32, 32)
    assert torch.allclose(teachers[0](pixels), pruned(pixels), atol=1e-5)


@small_runs
@pytest.mark.parametrize('crop', [False, True])
def test_shared_values_are_trained_with_random_crops_if_the_recipe_says_so(crop, monkeypatch):
    few_weights('pruned.ptmodel')
    cropped = []
    monkeypatch.setattr('net.data.random_crop', lambda pixels: cropped.append(len(pixels)) or pixels)
    monkeypatch.setitem(RECIPES['digits']['sharing'], 'crop', crop)
    weight_share.main([*DIGITS, '--load-model-path', 'pruned.ptmodel', '--epochs', '1'])
    assert cropped == ([20] if crop else [])


@small_runs
@pytest.mark.parametrize('sensitivity', ['0.5', '1.5'])
def test_pruning_by_std_keeps_the_weights_above_so_many_standard_deviations(sensitivity, finished):
    path = str(finished[0] / 'saves/initial_model.ptmodel')
    dense = load_model(path)
    pruning.main([*SHORT, '--load-model-path', path, '--sensitivity', sensitivity])
    pruned = load_model('saves/model_after_retraining.ptmodel')
    for (_, before), (_, after) in zip(dense.layers(), pruned.layers(), strict=True):
        weight = before.weight.detach().double()
        kept = weight.abs() >= float(sensitivity) * weight.std(correction=0)
        assert torch.equal(after.weight != 0, kept) and 0 < kept.sum() < kept.numel()


@small_runs
def test_a_network_that_began_narrow_is_explained_before_it_is_pruned(capsys):
    pruning.main([*DIGITS, '--recipe', 'ranking', '--epochs', '1', '--keep', '20000', '--prune-steps', '1',
                  '--retrain-epochs', '1'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index('--- Before pruning ---') + 1].startswith('The training began with 640 of the 9344 hidden')


@small_runs
def test_another_seed_gives_another_network():
    seen = set()
    for seed in '1', '2', '1':
        pruning.main([*SHORT[:-2], '--epochs', '1', '--dense-only', '--seed', seed])
        torch.rand(1)  # what was drawn before does not matter
        seen.add(Path('saves/initial_model.ptmodel').read_bytes())
    assert len(seen) == 2


@small_runs
def test_the_seed_of_weight_sharing_is_that_of_its_training():
    few_weights('pruned.ptmodel')
    seen = set()
    for seed in '1', '2', '1':
        weight_share.main([*DIGITS, '--epochs', '1', '--load-model-path', 'pruned.ptmodel', '--seed', seed])
        seen.add(Path('saves/model_after_weight_sharing.ptmodel').read_bytes())
    assert len(seen) == 2


@small_runs
def test_all_that_is_logged_goes_into_the_log_that_is_named(finished):
    for script, arguments, name in [(pruning, SHORT, 'initial_model'),
                                    (weight_share, [*DIGITS, '--epochs', '0'], 'model_after_retraining'),
                                    (huffman_coding, DIGITS, 'model_after_weight_sharing')]:
        path = str(finished[0] / f'saves/{name}.ptmodel')
        script.main([*arguments, '--load-model-path', path, '--log', f'{script.__name__}.txt'])
        assert 'accuracy' in Path(f'{script.__name__}.txt').read_text(encoding='utf-8').lower()
    assert not Path('log.txt').exists()


@small_runs
def test_weight_sharing_can_report_on_held_out_images(capsys):
    few_weights('pruned.ptmodel')
    weight_share.main([*DIGITS, '--epochs', '1', '--load-model-path', 'pruned.ptmodel', '--validation', '5'])
    out = capsys.readouterr().out
    assert out.count('Validation set: ') == 3 and '/5 (' in out and 'Test set' not in out


@small_runs
def test_weight_sharing_can_be_restarted(monkeypatch):
    few_weights('pruned.ptmodel')
    arguments = [*DIGITS, '--epochs', '1', '--load-model-path', 'pruned.ptmodel']
    weight_share.main(arguments)
    whole = Path('saves/model_after_weight_sharing.ptmodel').read_bytes()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, 'save', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        weight_share.main([*arguments, '--seed', '7'])
    assert Path('saves/checkpoint.pt').exists()
    weight_share.main([*arguments, '--restart'])
    assert Path('saves/model_after_weight_sharing.ptmodel').read_bytes() == whole
    assert not Path('saves/checkpoint.pt').exists()


@small_runs
def test_a_model_that_was_shared_before_with_fewer_bits_is_told(capsys):
    few_weights('pruned.ptmodel')
    weight_share.main([*DIGITS, '--bits', '3', '--epochs', '0', '--load-model-path', 'pruned.ptmodel',
                       '--save-model-path', 'three-bits.ptmodel'])
    assert 'Was pruned.ptmodel shared before?' not in capsys.readouterr().out
    weight_share.main([*DIGITS, '--epochs', '0', '--load-model-path', 'three-bits.ptmodel'])
    assert ('Note: a convolution has 8 distinct weights, too few for 32 shared values. Was three-bits.ptmodel shared '
            'before?\n') in capsys.readouterr().out


@small_runs
def test_a_file_that_is_no_model_is_not_replaced_by_one():
    few_weights('pruned.ptmodel')
    Path('my.py').write_text('hours of work', encoding='utf-8')
    arguments = [*DIGITS, '--load-model-path', 'pruned.ptmodel', '--save-model-path', 'my.py']
    assert error_of(weight_share.main, arguments) == (
        'my.py: is there already, and is no .ptmodel: expected another name')
    assert Path('my.py').read_text(encoding='utf-8') == 'hours of work'


@small_runs
def test_other_bits_of_fully_connected_layers_are_shared(capsys):
    few_weights('pruned.ptmodel')
    weight_share.main([*DIGITS, '--fc-bits', '3', '--epochs', '0', '--load-model-path', 'pruned.ptmodel'])
    assert quantized(capsys) == [32] * 5 + [8] * 3


@small_runs
@pytest.mark.parametrize('recipe, bits', [('digits', [3] * 16), ('accurate', [7, 5, 4, 3, 3, 4, 4, 4] + [4] * 8)])
def test_sharing_for_the_compact_file_does_what_its_recipe_says(recipe, bits, capsys):
    """Bits of each layer and of each bias; values of 16 bits; units that are not in use last."""
    few_weights('pruned.ptmodel')
    weight_share.main([*DIGITS, '--compact', '--recipe', recipe, '--epochs', '1', '--load-model-path',
                       'pruned.ptmodel'])
    assert quantized(capsys) == [min(2 ** b, 10) if i == 15 else 2 ** b for i, b in enumerate(bits)]  # ten classes
    model = load_model(COMPACT)
    for param in model.parameters():
        assert not (param.data.view(torch.int32) & 0xffff).any()
    for (name, layer), b in zip(model.layers(), bits, strict=False):
        assert 2 ** b / 2 < len(layer.weight[layer.weight != 0].unique()) <= 2 ** b, name
    for units in live_units(model):
        assert units.tolist() == list(range(len(units)))


def quantized(capsys):
    """How many values each layer, or bias, was shared by."""
    return [int(n) for n in re.findall(r'=> Quantize to (\d+) indices', capsys.readouterr().out)]


@small_runs
def test_the_shared_biases_and_the_weights_that_move_are_trained_if_the_recipe_says_so(monkeypatch):
    few_weights('pruned.ptmodel')
    seen = []
    codebooks = weight_share.codebooks_as_parameters
    monkeypatch.setattr(weight_share, 'codebooks_as_parameters',
                        lambda model, *args: seen.append(args) or codebooks(model, *args))
    for compact in [], ['--compact']:
        weight_share.main([*DIGITS, *compact, '--epochs', '1', '--load-model-path', 'pruned.ptmodel'])
    assert seen == [(False, False), (True, True)]


@small_runs
def test_images_of_ones_own_with_three_classes_go_through_all_three_scripts(capsys):
    make_folder('my', classes=('ant', 'bee', 'cat'))
    pruning.main(['--data', 'my', '--no-cuda', '--epochs', '1', '--keep', '20000', '--prune-steps', '2',
                  '--retrain-epochs', '1'])
    weight_share.main(['--data', 'my', '--no-cuda', '--epochs', '1'])
    with suppress(UserError):  # 3 images teach nothing
        huffman_coding.main(['--data', 'my', '--no-cuda', '--student-id', 'x1'])
    out = capsys.readouterr().out
    assert 'Lossless: every parameter came back bit for bit' in out and '/3 (' in out
    assert load_model('x1.ptmodel').n_classes == 3


@small_runs
def test_a_folder_too_many_which_makes_one_class_of_all_is_refused():
    make_folder('my', classes=('all/cat', 'all/dog'))
    assert error_of(pruning.main, ['--data', 'my', '--no-cuda']) == (
        'my: found one class, all, expected two or more, each a folder in train/ and in test/')
    assert not Path('saves/initial_model.ptmodel').exists()


@small_runs
def test_without_an_id_nothing_is_handed_in_and_a_failed_check_is_no_failure(finished):
    huffman_coding.main([*DIGITS, '--load-model-path', str(finished[0] / 'saves/model_after_weight_sharing.ptmodel')])
    assert not list(Path().glob('*.ptmodel')) and not list(Path().glob('*.zip'))


@small_runs
def test_other_bits_are_shared_but_fail_the_graders_count(capsys):
    few_weights('pruned.ptmodel')
    weight_share.main([*DIGITS, '--bits', '2', '--epochs', '1', '--load-model-path', 'pruned.ptmodel',
                       '--save-model-path', 'two-bits.ptmodel'])
    with pytest.raises(ValueError, match='33 distinct values per convolution'):
        huffman_coding.main([*DIGITS, '--load-model-path', 'two-bits.ptmodel', '--student-id', 'x1'])
    out = capsys.readouterr().out
    assert 'Note: the grader wants 33 values in each convolution, those of --bits 5, got --bits 2\n' in out
    assert '| 5, 5, 5, 5, 5' in out
    assert Path('x1.ptmodel').exists() and Path('x1.zip').exists()


@small_runs
def test_a_decode_that_differs_is_a_loud_failure(finished, monkeypatch):
    def decode_one_bit_wrong(model, directory):
        model.load_state_dict(shared.state_dict())
        model.fc2.bias.data.view(torch.int32)[77] ^= 1
    path = str(finished[0] / 'saves/model_after_weight_sharing.ptmodel')
    shared = load_model(path)
    monkeypatch.setattr(huffman_coding, 'huffman_decode_model', decode_one_bit_wrong)
    with pytest.raises(RuntimeError, match='fc2.bias differs after decoding'):
        huffman_coding.main([*DIGITS, '--load-model-path', path, '--student-id', 'x1'])
    assert not Path('x1.ptmodel').exists()


@pytest.mark.slow
def test_importing_the_scripts_does_nothing():
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', 'import pruning, weight_share, huffman_coding'], env=environment,
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    assert os.listdir() == []


@pytest.mark.slow
def test_a_small_network_can_be_tried_from_the_command_line():
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, 'tests/small.py', 'pruning.py', '--help'], cwd=ROOT, env=environment,
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '') and done.stdout.startswith('usage: pruning.py [-h]')
