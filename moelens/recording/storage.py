"""`Folder`: the folder of a recording, on disk or behind an fsspec URL, in which only complete files have names."""

from __future__ import annotations

import errno
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa

from moelens.checksums import Checksums, same_bytes, same_file
from moelens.errors import MoeLensError, RecordingError
from moelens.files import explain_write_errors, lock_folder, require_text_path

_SAME: set[tuple[object, ...]] = set()  # files elsewhere that have their checksums
_OWNER = "progress/owner"
_OWNERS: dict[str, str] = {}  # by location, what this process writes to folders that could not be locked


@dataclass(frozen=True)
class Folder:
    """A folder on a file system of fsspec. The names of its files are relative to it.

    Attributes:
        location: The path or URL that it was opened with.
        fs: The file system.
        root: The path of the folder on the file system.

    Example:
        >>> folder = Folder.at("memory://runs/one")
        >>> folder.write("a.txt", b"one")
        >>> folder.read("a.txt"), folder.names(".txt")
        (b'one', ['a.txt'])
    """

    location: str
    fs: Any
    root: str

    @classmethod
    def at(cls, location: str | Path) -> Folder:
        """Return the folder at a local path or a URL such as `s3://bucket/run`.

        Raises:
            MoeLensError: If there is no such protocol, the package for it is not installed, or the path is no text.
        """
        require_text_path(location)
        try:
            fs, root = fsspec.core.url_to_fs(str(location))
        except (ImportError, ValueError) as error:
            raise MoeLensError(
                f"cannot open {str(location)!r} ({error}); give a local folder or another fsspec URL"
            ) from error
        return cls(str(location), fs, root.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local file system."""
        return "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    def full_path(self, name: str) -> str:
        """Return the path of a file on the file system.

        Raises:
            RecordingError: If the name leads out of the folder, as that in a forged manifest may.
        """
        if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
            raise RecordingError(f"file {name!r} is not within '{self.location}'; do not use a recording that names it")
        return f"{self.root}/{name}" if name else self.root

    def exists(self, name: str = "") -> bool:
        """Return whether a file exists; without a name, whether the folder does."""
        return bool(self.fs.exists(self.full_path(name)))

    def is_empty(self) -> bool:
        """Return whether the folder exists and holds no files."""
        return bool(self.fs.isdir(self.root)) and not self.fs.ls(self.root, detail=False)

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return int(self.fs.size(self.full_path(name)))

    def names(self, suffix: str = "") -> list[str]:
        """Return the names of all files in the folder and below it, sorted."""
        found = self.fs.find(self.root) if self.exists() else []
        return sorted(f[len(self.root) + 1 :] for f in found if f.endswith(suffix))

    def open(self, name: str) -> Any:
        """Open a file for reading bytes."""
        return self.fs.open(self.full_path(name), "rb")

    def source(self, name: str) -> Any:
        """Return what pyarrow reads a file from: its path if it is local, which is faster, or a file object."""
        return self.full_path(name) if self.is_local else self.open(name)

    def read(self, name: str) -> bytes:
        """Return the contents of a file."""
        with self.open(name) as file:
            data: bytes = file.read()
        return data

    def read_json(self, name: str) -> Any:
        """Return the value in a JSON file."""
        return json.loads(self.read(name))

    def checksum(self, name: str) -> str:
        """Return the SHA-256 of a file in hexadecimal."""
        with self.open(name) as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def source_if_same(self, name: str, expected: Mapping[str, Any]) -> Any:
        """Return what `source` returns, after comparing the checksum of the file; None if it differs.

        Of an unchanged file this is done once in a session. A file that is not local is read into memory for it.

        Args:
            name: The file.
            expected: Its checksum under "xxh3" or "sha256".
        """
        path = self.full_path(name)
        if self.is_local:
            return path if same_file(path, expected) else None
        key = (self.location, path, self.fs.ukey(path), expected["sha256"])
        if key in _SAME:
            return self.open(name)
        data = self.read(name)
        if not same_bytes(data, expected):
            return None
        _SAME.add(key)
        return pa.BufferReader(data)

    # Writing

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        with self.writing(name) as file:
            file.write(data)

    def write_json(self, name: str, value: Any) -> None:
        """Write a value to a JSON file."""
        self.write(name, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())

    @contextmanager
    def writing(self, name: str) -> Iterator[HashingFile]:
        """Open a file that gets its name when the block ends, and is removed if the block raises.

        Raises:
            RecordingError: If the disk is full or the folder cannot be written.
        """
        path = self.full_path(name)
        partial = path + ".partial"
        with self.explain_errors():
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                with self.fs.open(partial, "wb") as file:
                    yield HashingFile(file)
                self.fs.mv(partial, path)
            except BaseException:
                if self.fs.exists(partial):
                    self.fs.rm(partial)
                raise

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Replace errors of the file system about space and permissions by errors that say what to do."""
        with explain_write_errors(self.location):
            try:
                yield
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTDIR):
                    raise self.occupied_error() from error
                raise

    def occupied_error(self) -> RecordingError:
        """Return the error for a folder that holds something else than a recording."""
        return RecordingError(
            f"expected a new or empty folder, got '{self.location}', which exists and is not a recording;"
            " choose another folder, or remove it yourself"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Prevent other processes from recording to the folder during the block.

        The operating system releases the lock when the process ends, however it ends. On object stores and on network
        file systems without locks, the folder belongs to the run that claimed it last; see `claim`.

        Raises:
            RecordingError: If another run holds the lock.
        """
        with ExitStack() as stack:
            held = False
            if self.is_local:
                with self.explain_errors():
                    self.fs.makedirs(self.root, exist_ok=True)
                held = stack.enter_context(lock_folder(self.root))
            if held:
                yield
                return
            before, _OWNERS[self.location] = _OWNERS.get(self.location, ""), uuid.uuid4().hex
            try:
                yield
            finally:
                _OWNERS[self.location] = before

    def claim(self) -> None:
        """Write to the folder whose it is, if it could not be locked."""
        if owner := _OWNERS.get(self.location):
            self.write(_OWNER, owner.encode())

    @property
    def is_ours(self) -> bool:
        """Whether no other run claimed the folder after this one did, or it is locked."""
        owner = _OWNERS.get(self.location)
        try:
            return not owner or self.read(_OWNER) == owner.encode()
        except FileNotFoundError:  # the other run has ended
            return False

    def require_ours(self) -> None:
        """Raise `RecordingError` if another run claimed the folder after this one did."""
        if not self.is_ours:
            raise self.taken_error()

    def taken_error(self) -> RecordingError:
        """Return the error for a folder that another run claimed after this one did."""
        return RecordingError(
            f"another run began later to write to '{self.location}', where nothing can be locked; this run has"
            " ended, and the recording is that of the other one"
        )

    def remove(self, name: str = "") -> None:
        """Remove a file, or a folder with its contents, if it exists."""
        if self.exists(name):
            self.fs.rm(self.full_path(name), recursive=True)


class HashingFile:
    """A file for writing that computes the checksums of what is written to it."""

    closed = False

    def __init__(self, file: Any) -> None:
        self._file, self._found = file, Checksums()

    def write(self, data: Any) -> int:
        if self._file.closed:  # after an error: a discarded Parquet writer still writes its footer
            return len(data)
        self._found.update(data)
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
        """Do nothing: `Folder.writing` closes the file."""

    @property
    def checksums(self) -> dict[str, Any]:
        """The number of bytes that were written, and their checksums."""
        return self._found.to_dict()
