import pytest
import torch

from net.command_line import duration, peak_memory


@pytest.mark.parametrize('seconds, text', [(0.4, '0 s'), (59.4, '59 s'), (59.6, '1 min 0 s'), (3723, '62 min 3 s')])
def test_durations_are_told_in_minutes_and_seconds(seconds, text):
    assert duration(seconds) == text


def test_the_peak_memory_is_that_of_the_process():
    gigabytes = float(peak_memory().split()[0])
    assert 0.1 < gigabytes < 100
    big = torch.zeros(int(gigabytes * 1e9 / 4) + 10 ** 8)  # 0.4 GB more than ever before
    assert float(peak_memory().split()[0]) > gigabytes + 0.1 and len(big)
