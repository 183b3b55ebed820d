"""The files of a data set on disk: regular files only, and every folder once."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from layerwise.errors import InputError, reason

# Folders that systems and programs add by themselves: archives of macOS, thumbnails, caches.
OF_PROGRAMS = (
    "__macosx",
    "__pycache__",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
)
LARGEST_BYTES = 1 << 30  # of a file with one image


class File(NamedTuple):
    """A regular file: its path, its size in bytes, and the time of its last change in ns."""

    path: Path
    size: int
    changed_ns: int


class Entries(NamedTuple):
    """What one folder holds, sorted by name."""

    folders: list[Path]
    files: list[File]


class Tree:
    """The folders of one data set, each of which may be read once.

    A link to a folder is followed. A link to a folder that is read in another place, or that it
    lies in, would add the same images again, with other labels or to other parts.

    Args:
        name: of the data set, for errors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._read: dict[tuple[int, int], Path] = {}

    def entries(self, folder: Path, wanted: Callable[[str], bool]) -> Entries:
        """The folders in `folder`, and its files with a name that is `wanted`.

        Hidden files and folders, and folders that programs add by themselves, are left out.

        Raises:
            InputError: the folder cannot be read, or was read before; a link leads nowhere; what
                has a wanted name is neither a file nor a folder.
        """
        folders: list[Path] = []
        files: list[File] = []
        try:
            self._once(folder)
            with os.scandir(folder) as scan:
                found = sorted((entry for entry in scan if not hidden(entry.name)), key=_by_name)
        except OSError as error:
            raise self._unreadable(folder, error) from error
        for entry in found:
            try:
                state = entry.stat()
            except OSError as error:
                if not entry.is_symlink():
                    raise self._unreadable(Path(entry.path), error) from error
                raise InputError(
                    f"data {self.name}: {entry.path} is a link that leads nowhere "
                    f"({error.strerror}); restore what it leads to, or remove it"
                ) from error
            if stat.S_ISDIR(state.st_mode):
                if entry.name.casefold() not in OF_PROGRAMS:
                    folders.append(folder / entry.name)
            elif wanted(entry.name):
                if not stat.S_ISREG(state.st_mode):
                    raise InputError(
                        f"data {self.name}: {entry.path} is {kind(state.st_mode)} and not a file; "
                        "remove it"
                    )
                files.append(File(folder / entry.name, state.st_size, state.st_mtime_ns))
        return Entries(folders, files)

    def below(self, folder: Path, wanted: Callable[[str], bool]) -> Iterator[File]:
        """All files below `folder` with a name that is `wanted`, in the order of their paths."""
        # A list instead of recursion: folders may be nested more deeply than Python's calls.
        due: list[Path | File] = [folder]
        while due:
            first = due.pop()
            if isinstance(first, File):
                yield first
                continue
            entries = self.entries(first, wanted)
            both = [*entries.folders, *entries.files]
            due += sorted(both, key=lambda e: _path(e).name, reverse=True)

    def _once(self, folder: Path) -> None:
        state = os.stat(folder)
        before = self._read.setdefault((state.st_dev, state.st_ino), folder)
        if before is not folder:
            raise InputError(
                f"data {self.name}: {folder} leads to the folder {before}, which is read already, "
                "so its files would count twice; remove this link"
            )

    def _unreadable(self, path: Path, error: OSError) -> InputError:
        return InputError(
            f"data {self.name}: {path} cannot be read ({error.strerror}); check its permissions"
        )


def names_and_sizes(folder: Path, files: Iterable[File]) -> str:
    """A checksum over the names and sizes of files, wherever their folder lies."""
    facts = sorted((str(file.path.relative_to(folder)), file.size) for file in files)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def path_of(given: str | Path, asked_by: str) -> Path:
    """The path that a user gave, with `~` expanded.

    Args:
        given: the path.
        asked_by: the option that named it, for errors.

    Raises:
        InputError: no path can be like this; there is no such user.
    """
    try:
        path = Path(given).expanduser()
        path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        said = getattr(error, "strerror", None) or reason(error)  # without the path itself
        raise InputError(
            f"{asked_by}: {str(given)[:100]!r} cannot be used as a path ({said}); give another one"
        ) from error
    if "\0" in str(path):
        raise InputError(f"{asked_by}: {str(given)[:100]!r} holds a zero byte; give another path")
    return path


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out."""
    return name.startswith(".")


def read_file(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a regular file. Anything else, such as a pipe, is refused without waiting.

    Args:
        path: the file.
        limit: the most bytes that are read; None for no limit.

    Raises:
        OSError: there is no such file, it cannot be read, it is not regular, or it is larger.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(f"it is {kind(state.st_mode)} and not a file")
        if limit is not None and state.st_size > limit:
            raise OSError(f"it has {state.st_size} bytes, more than {limit}")
        with open(handle, "rb", buffering=0, closefd=False) as file:
            return file.readall()
    finally:
        os.close(handle)


def kind(mode: int) -> str:
    """What a path is whose `st_mode` is `mode`, in words."""
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((words for holds, words in kinds if holds(mode)), "something else")


def _by_name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _path(entry: Path | File) -> Path:
    return entry.path if isinstance(entry, File) else entry
