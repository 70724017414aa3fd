"""Files are on the disk before they take the place of others: the order of the calls, since no test can cut power."""
import os
from pathlib import Path

from net.files import check_writable, replace_file
from net.huffmancoding import huffman_encode_model

import pytest
from torch import nn


def test_whether_a_file_can_be_written_is_tried_without_a_trace():
    Path('x').write_text('old', encoding='utf-8')
    check_writable('x')
    check_writable('folder/y')
    assert Path('x').read_text(encoding='utf-8') == 'old' and os.listdir('folder') == []
    assert sorted(os.listdir()) == ['folder', 'x']
    with pytest.raises(OSError, match='^x.y: cannot be written .x is no folder.$'):
        check_writable('x/y')


# ---- the order of the calls ------------------------------------------------------------------------------------------

needs_names = pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='tells no names of open files')


@pytest.fixture
def calls(monkeypatch):
    """The names of the files and folders that were flushed, and of what was renamed, in order."""
    calls, fsync, rename, replace = [], os.fsync, os.rename, os.replace

    def recorded_fsync(descriptor):
        calls.append(('flush', os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))))
        fsync(descriptor)

    def recorded(move):
        def moved(source, target):
            calls.append(('rename', os.path.basename(target)))
            move(source, target)
        return moved
    monkeypatch.setattr(os, 'fsync', recorded_fsync)
    monkeypatch.setattr(os, 'rename', recorded(rename))
    monkeypatch.setattr(os, 'replace', recorded(replace))
    return calls


@needs_names
def test_a_file_is_flushed_before_it_is_renamed_and_its_folder_after(calls):
    with replace_file('folder/file') as file:
        file.write(b'content')
    assert calls == [('flush', 'file.partial'), ('rename', 'file'), ('flush', 'folder')]


@needs_names
def test_all_encoded_files_are_flushed_before_the_two_renames_and_the_folder_after(calls):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(5, 4))
    huffman_encode_model(model, 'parent/encodings', os.devnull)
    calls.clear()
    huffman_encode_model(model, 'parent/encodings', os.devnull)
    files = sorted(os.listdir('parent/encodings'))
    assert len(files) == 8 + 1 + 6 + 1  # a convolution, a fully connected layer
    assert sorted(calls[:len(files)]) == [('flush', name) for name in files]
    assert calls[len(files):] == [('flush', '.encodings.new'), ('rename', '.encodings.old'), ('rename', 'encodings'),
                                  ('flush', 'parent')]
