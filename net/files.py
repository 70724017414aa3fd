"""Files: written in one piece or not at all, read without running code from them; one run at a time in a folder."""
import io
import os
import pickle
import zipfile
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

from net.errors import UserError, is_out_of_memory

import torch

LOCK = '.lock'  # in the folder that a script is started in
COMPACT_MAGIC = b'DCAN'  # what a compact file begins with
ARCHIVE_MAGIC = b'PK'  # what a .ptmodel begins with, a zip archive


def begins_with(path, magic):
    """Whether there is such a file, and its first bytes are these."""
    try:
        with open(path, 'rb') as file:
            return file.read(len(magic)) == magic
    except OSError:  # whoever reads it next says why
        return False


def check_kind(path, magic, kind):
    """Raise UserError if there is a file that does not begin like this kind: it is not to be replaced."""
    if Path(path).exists() and not begins_with(path, magic):
        raise UserError(f'{path}: is there already, and is no {kind}: expected another name')


def crc32_of(path):
    """Of a file: one that has taken its place since is another."""
    return zlib.crc32(Path(path).read_bytes())


@contextmanager
def replace_file(path):
    """Open a new file that takes the place of `path` once it is complete; until then, `path` stays as it was.

    Missing parent folders are made. Raises OSError if the file cannot be written, and leaves nothing behind.
    """
    path = Path(path)
    partial = path.with_name(f'{path.name}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # of an interrupted run
        try:
            with open(partial, 'xb') as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            flush_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except FileExistsError as error:
        raise OSError(f'{path}: cannot be written ({error.filename} is no folder)') from error
    except OSError as error:
        raise OSError(f'{path}: cannot be written ({error.strerror or error})') from error


def check_writable(path):
    """Raise OSError, as `replace_file` does, if it could not write this file."""
    with suppress(LookupError), replace_file(path):
        raise LookupError  # before anything is replaced


def flush_folder(folder):
    """Have the operating system put the names of the files in it on the disk."""
    if os.name == 'nt':  # Windows opens no folders, and keeps names in order by itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot; the file is in its place all the same
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_archive(content, path):
    """`torch.save` in one piece or not at all; OSError, naming the file, if it cannot be written."""
    archive = io.BytesIO()  # PyTorch would write the name of a file into the archive, and hide why writing fails
    torch.save(content, archive)
    with replace_file(path) as file:
        file.write(archive.getbuffer())


def load_archive(path, what):
    """What `save_archive` wrote, from a file that need not be trusted: unpickled under PyTorch's allow-list.

    Raises FileNotFoundError or UserError, naming the file and `what` it should be, if it is missing or cannot be read,
    if its checksums do not fit, or if it holds something that is not on the list.
    """
    try:
        file = open(path, 'rb')
    except FileNotFoundError:
        raise FileNotFoundError(f'{path}: no such file, expected a {what}') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror or error})') from error
    try:
        with file:
            _check_archive(file)
            return torch.load(file, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        if 'torch.nn.utils.prune' in str(error):
            raise UserError(f'{path}: still masked by torch.nn.utils.prune: call prune.remove on each layer, then save '
                            'it again') from error
        raise UserError(f'{path}: refused, no {what} or more than that in it') from error
    except Exception as error:  # damaged archives raise many types of errors, OSError among them
        if is_out_of_memory(error):
            raise
        raise UserError(f'{path}: not a readable {what} (truncated, damaged or another format)') from error


def _check_archive(file):
    """Raise an error unless this is a zip archive with one pickle and right checksums, which PyTorch does not compare.

    Given an archive of TorchScript, which has constants.pkl, some versions of PyTorch run code from it, whatever they
    are told. The formats before the zip archive are not read either.
    """
    with zipfile.ZipFile(file) as archive:
        if archive.testzip():
            raise zipfile.BadZipFile
        if any(name.endswith('constants.pkl') for name in archive.namelist()):
            raise pickle.UnpicklingError('TorchScript')
    file.seek(0)


@contextmanager
def one_run_per_folder():
    """Within this context no other run can work in the same folder: UserError if one does already.

    The lock goes with the process that holds it, however that ends; the empty file stays. Some network disks have no
    locks: there the run goes on, and says so.
    """
    try:
        file = open(LOCK, 'a')
    except OSError as error:
        raise OSError(f'{LOCK}: cannot be written ({error.strerror or error})') from error
    with file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            raise UserError(f'another run is at work in {Path().absolute()}: let it end, or start this one in another '
                            'folder') from None
        except OSError as error:
            print(f'Note: this disk has no locks ({error.strerror}), so nothing keeps another run out of this folder')
        yield


def _lock(file):
    """Take the lock of a file, at once or not at all; closing the file gives it back."""
    if os.name == 'nt':
        import msvcrt
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
