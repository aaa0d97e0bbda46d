"""A recording's folder, here or behind any fsspec URL: files appear whole, with their checksum, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]

from moelens.errors import MoeLensError, RecordingError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@dataclass(frozen=True)
class Folder:
    """A folder on a file system of fsspec; names are relative to it.

    Example:
        >>> folder = Folder.at("memory://runs/one")
        >>> folder.write("a.txt", b"one")
        >>> folder.read("a.txt"), folder.names(".txt")
        (b'one', ['a.txt'])
    """

    where: str
    fs: Any
    root: str

    @classmethod
    def at(cls, where: str | Path) -> Folder:
        """A local path, or a URL such as `s3://bucket/run`.

        Raises:
            MoeLensError: no such protocol, or the package that speaks it is not installed.
        """
        try:
            fs, root = fsspec.core.url_to_fs(str(where))
        except (ImportError, ValueError) as error:
            raise MoeLensError(f"cannot reach {str(where)!r}: {error}; give a local folder or an fsspec URL") from error
        return cls(str(where), fs, root.rstrip("/"))

    @property
    def local(self) -> bool:
        return "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    def full(self, name: str) -> str:
        """Where a file of the folder is.

        Raises:
            RecordingError: the name leads out of the folder, as a manifest that somebody made up might.
        """
        if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
            raise RecordingError(f"file {name!r} is not within '{self.where}'; do not use a recording that names it")
        return f"{self.root}/{name}" if name else self.root

    def exists(self, name: str = "") -> bool:
        return bool(self.fs.exists(self.full(name)))

    def is_empty(self) -> bool:
        return bool(self.fs.isdir(self.root)) and not self.fs.ls(self.root, detail=False)

    def size(self, name: str) -> int:
        return int(self.fs.size(self.full(name)))

    def names(self, suffix: str = "") -> list[str]:
        """Every file below the folder, sorted."""
        found = self.fs.find(self.root) if self.exists() else []
        return sorted(f[len(self.root) + 1 :] for f in found if f.endswith(suffix))

    def open(self, name: str) -> Any:
        return self.fs.open(self.full(name), "rb")

    def source(self, name: str) -> Any:
        """What pyarrow reads a file from: its path where it has one, which is faster than a Python file."""
        return self.full(name) if self.local else self.open(name)

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            data: bytes = file.read()
        return data

    def read_json(self, name: str) -> Any:
        return json.loads(self.read(name))

    def checksum(self, name: str) -> str:
        with self.open(name) as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    # Writing

    def write(self, name: str, data: bytes) -> None:
        with self.writing(name) as file:
            file.write(data)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())

    @contextmanager
    def writing(self, name: str) -> Iterator[Hashing]:
        """A file that gets its name when the block ends, and vanishes when it fails.

        Raises:
            RecordingError: the disk is full, or the folder cannot be written.
        """
        partial = self.full(name) + ".partial"
        with self.explained():
            self.fs.makedirs(self.full(name).rpartition("/")[0], exist_ok=True)
            try:
                with self.fs.open(partial, "wb") as file:
                    hashing = Hashing(file)
                    yield hashing
                self.fs.mv(partial, self.full(name))
            except BaseException:
                if self.fs.exists(partial):
                    self.fs.rm(partial)
                raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what a file system says of a full disk, or of missing rights, into a line that says what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise RecordingError(
                    f"no space left in '{self.where}'; free some and run the same command again, it goes on"
                ) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise RecordingError(
                    f"'{self.where}' cannot be written ({error.strerror}); choose another folder, or change its rights"
                ) from error
            if error.errno in (errno.EEXIST, errno.ENOTDIR):
                raise self.in_the_way() from error
            raise

    def in_the_way(self) -> RecordingError:
        return RecordingError(
            f"'{self.where}' is in the way and is not a recording; choose another folder, or remove it yourself"
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from writing a recording here meanwhile; the lock goes with the process, however it ends.

        Only where there are locks: object stores have none, nor have some network file systems.

        Raises:
            RecordingError: another run is at it.
        """
        if not self.local or fcntl is None:
            yield
            return
        with self.explained():
            self.fs.makedirs(self.root, exist_ok=True)
            folder = os.open(self.root, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RecordingError(
                    f"another run is writing to '{self.where}'; wait until it is done, or choose another folder"
                ) from error
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
            yield
        finally:
            os.close(folder)

    def remove(self, name: str = "") -> None:
        """A file, or a folder with all that is in it; what is not there is removed already."""
        if self.exists(name):
            self.fs.rm(self.full(name), recursive=True)


class Hashing:
    """A file for writing that knows the SHA-256 of what went through it."""

    closed = False

    def __init__(self, file: Any) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        if self._file.closed:  # by an error; a Parquet writer that is thrown away still writes its end
            return len(data)
        self._digest.update(data)
        return int(self._file.write(data))

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return int(self._file.tell())

    def seekable(self) -> bool:
        return False

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """The file is closed by who opened it."""

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()
