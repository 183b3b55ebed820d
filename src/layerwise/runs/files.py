"""Writing to disk so that a crash leaves whole files, and new folders that nobody else has."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from layerwise.errors import InputError, reason

TEMPORARY = ".part"  # the suffix of a file that is still being written


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step: after a crash the file is the old one or the new one, whole."""
    descriptor, temporary = tempfile.mkstemp(TEMPORARY, f".{path.name}.", path.parent)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            _write_all(file, content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def check_new(path: Path, asked_by: str) -> None:
    """Refuse a file that a user named if it exists, or if no file can have that name.

    Args:
        path: the file.
        asked_by: the option that named the file, for errors.

    Raises:
        InputError: it exists; its name is too long, or leads through a file.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # too long; a part of it is a file; a zero byte
        raise InputError(
            f"{asked_by} {str(path)[:100]}: no file can be written there: "
            f"{getattr(error, 'strerror', None) or reason(error)}; give another name"
        ) from error
    raise InputError(
        f"{asked_by} {path}: it exists, and files are never overwritten; give another name"
    )


def write_new(path: Path, content: bytes, asked_by: str) -> None:
    """Write a file that a user named, unless it exists.

    Args:
        path: the file.
        content: what to write.
        asked_by: the option that named the file, for errors.

    Raises:
        InputError: the file exists; it cannot be written.
    """
    check_new(path, asked_by)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def append(path: Path, content: bytes) -> None:
    """Append to a file, or leave it as it was if the disk does not take all of `content`."""
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            _write_all(file, content)
        except OSError:
            file.truncate(before)  # not half a row
            raise


def remove_unfinished(folders: Iterable[Path]) -> None:
    """Remove the temporary files that a killed process left behind."""
    for folder in folders:
        for temporary in folder.glob(f".*{TEMPORARY}"):
            with contextlib.suppress(OSError):
                temporary.unlink()


def claim(root: Path, name: str) -> Path:
    """Make the folder `root/name`.

    Raises:
        FileExistsError: it exists. No two processes can claim the same folder.
    """
    (root / name).mkdir(parents=True)
    return root / name


def claim_numbered(root: Path, stem: str) -> Path:
    """Make the first of the folders `stem`-1, `stem`-2, ... that does not exist yet."""
    number = 1
    while True:
        try:
            return claim(root, f"{stem}-{number}")
        except FileExistsError:
            number += 1


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` while `path` is written into an `InputError` of one line."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; earlier files are kept: free some "
            "space or allow writing there, then continue (a run: layerwise train --resume RUN)"
        ) from error


def _write_all(file: io.FileIO, content: bytes) -> None:
    """Write all of `content` and wait until it is on the disk."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
