"""Writing to disk so that a file exists whole or not at all, and errors of the disk that say what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bonsaigpt.errors import OutputError

__all__ = [
    "file_aside",
    "folder_aside",
    "lock",
    "replace_folder",
    "restore_folders",
    "sync",
    "write_text",
    "writing",
]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write ``path`` into one sentence with the remedy."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            raise OutputError(f"the disk is full: {where} could not be written. Free some space.") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(f"{where} cannot be written: {error.strerror}. Choose another folder.") from None
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise OutputError(f"{where} cannot be made: a file is in the way. Choose another folder.") from None
        why = error.strerror or error
        raise OutputError(f"{where} could not be written: {why}. Check the disk and the path.") from None


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders; its rename is journalled
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with file_aside(path) as aside:
        aside.write_bytes(text.encode("utf-8"))  # as it is: Windows would write other line ends


@contextmanager
def file_aside(path: Path) -> Iterator[Path]:
    """A path beside ``path`` for a file to write, which takes its place when the block ends without an error."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        _clear_abandoned(path)
        try:
            yield aside
            sync(aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        sync(path.parent)


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder``, to be filled and then given to ``replace_folder``. Whatever happens inside,
    neither it stays behind nor an empty parent that was made for it."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")  # another process may be writing the same folder
    made = [parent for parent in aside.parents if not parent.exists()]
    with writing(folder):
        _clear_abandoned(folder)
        try:
            aside.mkdir(parents=True)
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            for parent in made:
                with suppress(OSError):  # it holds what was written
                    parent.rmdir()


def _clear_abandoned(home: Path) -> None:
    """Delete what killed processes left of earlier attempts to write ``home``."""
    for left in home.parent.glob(f".{home.name}.*.part"):
        if not _is_abandoned(left):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _is_abandoned(aside: Path) -> bool:
    """Whether the process whose number is in the name is gone; where that cannot be asked, no."""
    number = aside.name.split(".")[-2]
    if os.name != "posix" or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(number) == os.getpid()


def replace_folder(aside: Path, folder: Path) -> None:
    """Move a finished folder into place, in place of an older one. After a crash either the old or the new exists
    whole, possibly under the name ``.NAME.old`` (see ``restore_folders``)."""
    for file in aside.iterdir():
        sync(file)
    sync(aside)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(aside, folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore_folders(parent: Path) -> None:
    """Undo what a crash inside ``replace_folder`` left: bring an old folder back that has no successor, and delete
    what was never finished."""
    for left in [*parent.glob(".*.old"), *parent.glob(".*.part")]:
        home = parent / left.name[1:].rpartition(".")[0]
        if left.suffix == ".old" and not home.exists():
            os.replace(left, home)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a file or folder for this process alone; the system releases it, however the process ends.

    Raises:
        OutputError: another process holds it, and we are not to ``wait``.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing is held
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{path} is being worked on by another process: wait for it, or stop it first") from None
        except OSError:  # a network disk without locks
            pass
        yield
    finally:
        os.close(descriptor)
