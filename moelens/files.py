"""Writing files: under their names only when complete, by one process at a time, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moelens.errors import MoeLensError, RecordingError, UnknownNameError

_fcntl: Any
try:
    import fcntl as _fcntl
except ImportError:  # Windows
    _fcntl = None

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.EIO),
)


@contextmanager
def explain_write_errors(location: object) -> Iterator[None]:
    """Replace errors of the file system by errors that say what to do, also those that a library wraps in its own.

    Args:
        location: What is written, for the message.

    Raises:
        RecordingError: If the disk is full, or nothing can be written there.
    """
    try:
        yield
    except MoeLensError:
        raise
    except Exception as error:
        number = _error_number(error)
        if number in _FULL:
            raise RecordingError(
                f"no space is left in '{location}'; free some and run the same command again to continue"
            ) from error
        if number in _REFUSED:
            raise RecordingError(
                f"cannot write to '{location}' ({os.strerror(number)});"
                " choose another folder, or change its permissions"
            ) from error
        raise


def _error_number(error: BaseException) -> int:
    """Return the number of the system's error that an exception, or one that it wraps, is about, or 0."""
    cause: BaseException | None = error
    while cause:
        found = re.search(r"\(os error (\d+)\)", str(cause))  # errors of safetensors
        if isinstance(cause, OSError) and cause.errno:
            return cause.errno
        if found:
            return int(found[1])
        cause = cause.__cause__ or cause.__context__
    return 0


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a path to write to, whose file gets the name `path` when the block ends, and is removed if the block raises.

    Args:
        path: The file. Its folder is created. A device, such as `/dev/stdout`, is written directly.

    Raises:
        RecordingError: If the disk is full, or the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with explain_write_errors(path):
        if target.exists() and not target.is_file() and not target.is_dir():
            yield target
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def require_suffix(path: Path) -> Path:
    """Return the path of a saved result.

    Raises:
        UnknownNameError: If it ends in neither `.json` nor `.parquet`.
    """
    if path.suffix not in (".json", ".parquet"):
        raise UnknownNameError(f"expected a file name that ends in .json or .parquet, got '{path}'; rename it")
    return path


def require_text_path(path: object) -> None:
    """Raise `MoeLensError` if a path is no text, as one in another encoding, which no file of moelens can name."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise MoeLensError(f"expected a path in UTF-8, got {str(path)!r}; rename the file or folder") from error


def require_writable(path: str | Path) -> None:
    """Check that a file or a folder of this name can be written, before work is done for it.

    Raises:
        MoeLensError: If the name is no text.
        RecordingError: If it cannot.
    """
    require_text_path(path)
    target = Path(os.path.realpath(path))
    parent = next(p for p in (target if target.is_dir() else target.parent, *target.parents) if p.exists())
    if target.exists() and not target.is_file() and not target.is_dir():
        return
    with explain_write_errors(path), tempfile.TemporaryDirectory(prefix=".moelens-", dir=parent):
        pass


def require_file(path: Path, name: str) -> None:
    """Check that a file can be written, before work is done for it.

    Args:
        path: The file.
        name: The name of a file, for the advice where there is a folder.

    Raises:
        MoeLensError: If it is a folder.
        RecordingError: If it cannot be written.
    """
    if path.is_dir():
        raise MoeLensError(f"expected a file to write, got the folder '{path}'; give one such as '{path / name}'")
    require_writable(path)


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[bool]:
    """Prevent other processes that lock a folder from writing to it during the block.

    The operating system releases the lock when the process ends, however it ends.

    Args:
        folder: A local folder, which exists.

    Returns:
        Whether the folder is locked; file systems without locks lock nothing.

    Raises:
        RecordingError: If another process holds the lock.
    """
    if _fcntl is None:
        yield False
        return
    descriptor, held = os.open(folder, os.O_RDONLY), True
    try:
        try:
            _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecordingError(
                f"another run is writing to '{folder}'; wait until it has ended, or choose another folder"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            held = False
        yield held
    finally:
        os.close(descriptor)
