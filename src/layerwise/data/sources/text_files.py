"""Text files, read as numbered characters."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerwise.data.sources.files import Tree, read_file
from layerwise.errors import InputError


def read(path: Path, name: str) -> str:
    """The text of a file, or of all .txt files in a folder, except hidden ones.

    Args:
        path: a UTF-8 file, or a folder of such files. They are joined in the order of their paths,
            each starting on a new line.
        name: of the data set, for errors.

    Raises:
        InputError: there is no such file, or it is not UTF-8.
    """
    if path.is_dir():
        found = Tree(name).below(path, lambda file: file.endswith(".txt"))
        files = [file.path for file in found]
    else:
        files = [path]
    if not files:
        raise InputError(
            f"data {name}: {path} holds no .txt file; give a text file, or a folder of .txt files"
        )
    parts = []
    for file in files:
        try:
            lines = io.TextIOWrapper(io.BytesIO(read_file(file)), encoding="utf-8-sig")
            parts.append(lines.read())  # with \n at the end of each line, whatever the file has
        except UnicodeDecodeError as error:
            raise InputError(
                f"data {name}: {file} is not UTF-8 at byte {error.start}; convert it"
            ) from error
        except OSError as error:
            raise InputError(
                f"data {name}: {file} cannot be read: {error.strerror or error}"
            ) from error
    return "\n".join(parts)


def characters(text: str) -> tuple[Tensor, tuple[str, ...]]:
    """Number the characters of a text in the order of their code points.

    Returns:
        The numbers, (L,), uint8 for up to 256 different characters, otherwise int32; and the
        characters in the order of their numbers.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    vocabulary, numbers = np.unique(points, return_inverse=True)
    kind: Any = np.uint8 if len(vocabulary) <= 256 else np.int32
    return torch.from_numpy(numbers.astype(kind)), tuple(map(chr, vocabulary.tolist()))
