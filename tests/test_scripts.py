"""The three scripts, in sequence."""
import io
import os
import re
import subprocess
import sys
import zipfile
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import huffman_coding
import pruning
import weight_share
from net import stage, training
from net.arguments import RECIPES
from net.models import AlexNet, load_model, save_model

import pytest
import torch
import torch.nn.functional as F
from scripts import DIGITS, ROOT
from small import WIDTHS, make_small

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
    pruning.main([*SHORT, '--load-model-path', dense, '--validation', '5', '--rates', 'fc2=1,conv1=10'])
    out = capsys.readouterr().out
    assert 'Initial training' not in out and 'Test set' not in out
    assert out.count('Validation set: ') == 3 and '/5 (' in out
    model = load_model('saves/model_after_retraining.ptmodel')
    assert int(torch.count_nonzero(model.fc2.weight)) == pytest.approx(10_486, rel=1e-4)  # 1 %, the paper keeps 9 %
    assert not Path('saves/initial_model.ptmodel').exists()


@small_runs
def test_the_first_training_alone_leaves_the_dense_model_that_a_whole_run_begins_with(finished, capsys):
    pruning.main([*SHORT[:-2], '--epochs', '1', '--dense-only'])
    assert sorted(os.listdir('saves')) == ['images.json', 'initial_model.ptmodel']
    assert 'Pruning' not in capsys.readouterr().out
    dense = [load_model(Path(folder, 'saves/initial_model.ptmodel')) for folder in ('.', finished[0])]
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in dense), strict=True))


@small_runs
@pytest.mark.parametrize('first', [[], ['--load-model-path', 'dense.ptmodel']], ids=['trained here', 'loaded'])
def test_the_dense_network_teaches_from_pruning_on(first, monkeypatch):
    save_model(AlexNet(), 'dense.ptmodel')
    teachers = []

    def watched(output, target, data, smoothing, teacher=None, teacher_share=0):
        teachers.append(teacher)
        return F.nll_loss(output, target)
    monkeypatch.setattr(training, 'loss_of_batch', watched)
    monkeypatch.setitem(RECIPES['paper']['pruning'], 'teacher_share', 0.5)
    pruning.main([*SHORT, *first, *([] if first else ['--epochs', '1']), '--prune-steps', '2'])
    dense = load_model('dense.ptmodel' if first else 'saves/initial_model.ptmodel')
    pixels = torch.randn(2, 3, 32, 32)
    assert [teacher is None for teacher in teachers] == ([] if first else [True]) + [False] * 2
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
def test_pruning_by_std_leaves_fewer_weights_for_a_higher_sensitivity(finished):
    dense = str(finished[0] / 'saves/initial_model.ptmodel')
    alive = []
    for sensitivity in ('0.5', '1.5'):
        pruning.main([*SHORT, '--load-model-path', dense, '--sensitivity', sensitivity])
        model = load_model('saves/model_after_retraining.ptmodel')
        alive.append(int(torch.count_nonzero(model.fc2.weight)))
    assert alive[0] > alive[1] > 0


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
