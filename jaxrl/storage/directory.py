"""Directories that are written whole or not at all, and read by their manifest, which lists every file and its digest.

What a reader is given was checked as it was read: a file that changes between two looks is refused, or was never used.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxrl.storage import arrays as array_files
from jaxrl.storage.files import MAX_JSON_BYTES, check_name, encode_json, open_directory, open_file, parse_json, refusing
from jaxrl.types import CheckpointError

MANIFEST = "metadata.json"
_MAX_FILES = 10_000
_CHUNK = 2**20
_SCRATCH = ".jaxrl-"
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
# One permission for all files, whoever writes them; the umask takes from it.
_FILE_MODE, _DIRECTORY_MODE = 0o644, 0o755


# ---------------------------------------------------------------- writing


class Writer:
    """Writes files below a directory, each synced to disk, and digests them on the way.

    Args:
        directory: there already.

    Attributes:
        digests: sha256 of each file written, by name.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = pathlib.Path(directory)
        self.digests: dict[str, str] = {}

    def json(self, name: str, value: Any) -> None:
        """Writes a value as strict JSON."""
        with self._file(name) as write_bytes:
            write_bytes(encode_json(value, f"{self.directory / name}"))

    def arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Writes arrays by name; see `storage.arrays.write`."""
        with self._file(name) as write_bytes:
            array_files.write(write_bytes, arrays, f"{self.directory / name}")

    def adopt(self, prefix: str, digests: Mapping[str, str]) -> None:
        """Takes files into the list that another process has written below `prefix`, with the digests it gave."""
        self.digests |= {f"{prefix}/{name}": digest for name, digest in digests.items()}

    def finish(self, about: Mapping[str, Any]) -> None:
        """Writes the manifest, last; after it the directory is whole."""
        manifest = {**about, "sha256": dict(sorted(self.digests.items()))}
        self.json(MANIFEST, {**manifest, "checksum": checksum(manifest)})
        for folder in sorted({str(pathlib.PurePath(name).parent) for name in self.digests}):
            _sync(self.directory / folder)

    @contextlib.contextmanager
    def _file(self, name: str) -> Iterator[Callable[[Any], None]]:
        check_name(name, str(self.directory))
        path = self.directory / name
        for folder in reversed(path.relative_to(self.directory).parents[:-1]):
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.directory / folder, _DIRECTORY_MODE)
        digest = hashlib.sha256()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, _FILE_MODE), "wb", buffering=0) as file:

            def write_bytes(data: Any) -> None:
                digest.update(data)
                rest = memoryview(data)
                while len(rest):  # an unbuffered write may take less, and says how much
                    rest = rest[file.write(rest) or 0 :]

            yield write_bytes
            os.fsync(file.fileno())
        self.digests[name] = digest.hexdigest()


def write(target: str | os.PathLike[str], fill: Callable[[Writer], Mapping[str, Any]]) -> str:
    """Writes a directory beside its final name, then renames it: a reader finds a whole one, the old or the new.

    Args:
        target: the final path; its parents are made, and what stands there is replaced.
        fill: writes the files, and returns what the manifest says beside them.

    Returns:
        The path.

    Raises:
        CheckpointError: something else stands there.
    """
    path = pathlib.Path(target).expanduser().absolute()
    if path.exists() and not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path}: exists and was not written by jaxrl; choose another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    with _scratch(path.parent) as scratch:
        writer = Writer(scratch)
        writer.finish(fill(writer))
        if os.path.lexists(path):
            _exchange(scratch, path)
        else:
            os.rename(scratch, path)
        _sync(path.parent)
    return str(path)


def write_into(directory: str | os.PathLike[str], fill: Callable[[Writer], Mapping[str, Any]]) -> None:
    """Writes into a directory that somebody else made and keeps whole (Tune), the manifest last."""
    writer = Writer(directory)
    writer.finish(fill(writer))


def drop(directory: pathlib.Path) -> None:
    """Removes a directory: under another name first, so that half of it is never found under its own."""
    with _scratch(directory.parent) as scratch:
        os.rename(directory, scratch / "dropped")


@contextlib.contextmanager
def _scratch(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new directory, removed in the end; while it is locked no other process takes it for a left-over."""
    while True:
        path = parent / f"{_SCRATCH}{secrets.token_hex(8)}"
        os.mkdir(path, _DIRECTORY_MODE)
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, path, ignore_errors=True)
            lock = _lock(path)
            if lock is None:  # taken for a left-over just now
                continue
            undo.callback(os.close, lock)
            yield path
            return


def _lock(path: pathlib.Path) -> int | None:
    """A descriptor that holds the lock of a directory, or None: another process has it, or has removed it."""
    try:
        descriptor = open_directory(path.parent, path.name)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
            return descriptor
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _remove_leftovers(parent: pathlib.Path) -> None:
    """Removes the scratch directories of processes that were killed."""
    for left in parent.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):  # what is another user's, or no directory, stays
            lock = _lock(left)
            if lock is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)


def _exchange(scratch: pathlib.Path, target: pathlib.Path) -> None:
    """Swaps two directories: in one step where the system can (Linux), else in two."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    if renameat2 is not None and renameat2(here, os.fsencode(scratch), here, os.fsencode(target), exchange) == 0:
        return
    drop(target)
    os.rename(scratch, target)


def _sync(directory: pathlib.Path) -> None:
    descriptor = open_directory(directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(manifest: Mapping[str, Any]) -> str:
    """Of a manifest's own content."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class Files:
    """The files that a manifest lists, or those below a prefix; it can be sent to another process.

    Args:
        root: the directory.
        digests: of each listed file, by its name in the directory.
        about: what the manifest says.
        prefix: names are below it.
    """

    root: str
    digests: Mapping[str, str]
    about: Mapping[str, Any]
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.root}/{self.prefix}".rstrip("/")

    def __contains__(self, name: object) -> bool:
        return f"{self.prefix}{name}" in self.digests

    @property
    def names(self) -> list[str]:
        """Names below the prefix."""
        return [name.removeprefix(self.prefix) for name in self.digests]

    def below(self, name: str) -> Files:
        """The files below a folder."""
        prefix = f"{self.prefix}{name}/"
        kept = {name: digest for name, digest in self.digests.items() if name.startswith(prefix)}
        return dataclasses.replace(self, digests=kept, prefix=prefix)

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        with self._verified(name) as source:
            if source.left > MAX_JSON_BYTES:
                raise CheckpointError(f"{source.where}: has {source.left} bytes, at most {MAX_JSON_BYTES} are read.")
            data = bytes(source.bytes(source.left))
        return parse_json(data, f"{self}/{name}")

    def arrays(self, name: str, allocate: array_files.Allocate | None = None) -> dict[str, Any]:
        """The arrays of a file by name; see `storage.arrays.read`."""
        with self._verified(name) as source:
            return array_files.read(source, allocate)

    def verify(self) -> None:
        """Reads every file to see that it is what the manifest says."""
        for name in self.names:
            with self._verified(name) as source:
                while source.left:
                    source.bytes(min(source.left, _CHUNK))

    @contextlib.contextmanager
    def _verified(self, name: str) -> Iterator[array_files.Source]:
        """A file to be read to its end, where its digest is compared."""
        full = f"{self.prefix}{name}"
        where = f"{self}/{name}"
        if full not in self.digests:
            raise CheckpointError(f"{where}: is missing, or is not listed in {MANIFEST}.")
        digest = hashlib.sha256()
        with open_file(self.root, full) as (file, size), refusing(where):
            source = array_files.Source(file, size, where, digest.update)
            yield source
            if source.left or digest.hexdigest() != self.digests[full]:
                raise CheckpointError(f"{where}: is damaged (its checksum differs); use another checkpoint.")


def opened(directory: str | os.PathLike[str]) -> Files:
    """Opens a directory by its manifest; nothing else of it is read yet.

    Raises:
        CheckpointError: there is none, it is damaged, or the directory holds what it does not list: other files, links,
            pipes, devices. Hidden files of others beside the listed ones are passed over, and never opened.
    """
    root = str(pathlib.Path(directory).expanduser().absolute())
    with open_file(root, MANIFEST) as (file, size), refusing(f"{root}: {MANIFEST}"):
        where = f"{root}: {MANIFEST}"
        if size > MAX_JSON_BYTES:
            raise ValueError(f"{size} bytes, at most {MAX_JSON_BYTES} are read")
        source = array_files.Source(file, size, where, lambda _: None)
        manifest = parse_json(bytes(source.bytes(size)), where)
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{where}: is damaged: it is no object.")
    about = {name: value for name, value in manifest.items() if name != "checksum"}
    if manifest.get("checksum") != checksum(about):
        raise CheckpointError(f"{where}: is damaged (its checksum differs); use another checkpoint.")
    digests = about.pop("sha256", None)
    if not isinstance(digests, dict) or len(digests) > _MAX_FILES:
        raise CheckpointError(f"{where}: is damaged: it lists no files, or more than {_MAX_FILES}.")
    for name, digest in digests.items():
        check_name(name, where)
        if not isinstance(digest, str) or not _DIGEST.match(digest):
            raise CheckpointError(f"{where}: is damaged: {name!r} has no sha256.")
    _check_entries(root, set(digests))
    return Files(root, digests, about)


def _check_entries(root: str, listed: set[str]) -> None:
    """Compares what is in a directory with what is listed, without opening any file."""
    folders = {str(folder) for name in listed for folder in pathlib.PurePosixPath(name).parents}
    found: set[str] = set()
    for folder in sorted(folders | {"."}):
        prefix = "" if folder == "." else f"{folder}/"
        with refusing(f"{root}/{prefix}"):
            descriptor = open_directory(root, "" if folder == "." else folder)
            try:
                for entry in os.listdir(descriptor):
                    name = prefix + entry
                    if name in listed:
                        mode = os.stat(entry, dir_fd=descriptor, follow_symlinks=False).st_mode
                        if not stat.S_ISREG(mode):
                            raise CheckpointError(f"{root}: {name} is no regular file.")
                        found.add(name)
                    elif name not in folders and name != MANIFEST and (prefix or not entry.startswith(".")):
                        raise CheckpointError(
                            f"{root}: holds {name[:200]!r}, which {MANIFEST} does not list; remove it if it is yours."
                        )
            finally:
                os.close(descriptor)
    missing = sorted(listed - found)
    if missing:
        raise CheckpointError(f"{root}: lacks {', '.join(missing[:5])}; use another checkpoint.")
