"""Text as numbered characters, cut into windows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerwise.errors import InputError

CONTEXT = 64  # tokens of a window where none are asked for


@dataclass(frozen=True, eq=False)
class Text:
    """Windows of one long text, side by side; each token is to be told from those before it.

    Window n is x = tokens[n T : n T + T] and y = tokens[n T + 1 : n T + T + 1], so that every token
    but the first is predicted once.

    Args:
        tokens: (L,), of any integer type.
        context: T, the tokens of a window.
        index: which windows these are, int64 (N,); None for all.
    """

    tokens: Tensor
    context: int
    index: Tensor | None = None

    def __len__(self) -> int:
        if self.index is not None:
            return len(self.index)
        return max(0, len(self.tokens) - 1) // self.context

    def __repr__(self) -> str:
        return f"Text({len(self)} windows of {self.context} on {self.tokens.device})"

    @property
    def shape(self) -> tuple[int]:
        """(T,) of one window."""
        return (self.context,)

    def windows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """x and y of the windows at `index` (B,): int64, (B, T) each, where the tokens are."""
        number = index if self.index is None else self.index.index_select(0, index)
        within = torch.arange(self.context + 1, device=self.tokens.device)
        tokens = self.tokens[self.context * number[:, None] + within].long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def to(self, device: str | torch.device) -> Text:
        """The same windows on `device`."""
        index = None if self.index is None else self.index.to(device)
        return replace(self, tokens=self.tokens.to(device), index=index)

    def subset(self, indices: Tensor) -> Text:
        """The windows at `indices` (int64, (M,)), in that order."""
        index = indices.to(self.tokens.device)
        return replace(self, index=index if self.index is None else self.index[index])

    def cut(self, share: float) -> tuple[Text, Text]:
        """The text before a position and the text from there on, `share` of it: no token is in
        both.

        Raises:
            InputError: one of them is no whole window.
        """
        assert self.index is None, "a text is cut before windows are chosen"
        at = len(self.tokens) - round(share * len(self.tokens))
        parts = replace(self, tokens=self.tokens[:at]), replace(self, tokens=self.tokens[at:])
        if not all(map(len, parts)):
            raise InputError(
                f"data: {len(self.tokens)} characters, of which {share:g} are held out, leave no "
                f"window of {self.context} and one more; give a longer text, a smaller "
                "--data.context or another --data.validation"
            )
        return parts


def read(path: Path, name: str) -> str:
    """The text of a file, or of a folder's .txt files in the order of their paths, a line apart.

    Args:
        path: a UTF-8 file, or a folder of such.
        name: for errors.

    Raises:
        InputError: nothing there, no text, or not UTF-8.
    """
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise InputError(
            f"data {name}: {path} holds no .txt file; give a file, or a folder of them"
        )
    parts = []
    for file in files:
        try:
            parts.append(file.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise InputError(
                f"data {name}: {file} is not UTF-8 at byte {error.start}; convert it"
            ) from error
        except OSError as error:
            raise InputError(f"data {name}: {file} cannot be read: {error.strerror}") from error
    return "\n".join(parts)


def characters(text: str) -> tuple[Tensor, tuple[str, ...]]:
    """A text as the numbers of its characters, and these in the order of their code points.

    Returns:
        uint8 (L,), int32 of more than 256 different ones; and the vocabulary.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    vocabulary, numbers = np.unique(points, return_inverse=True)
    kind: Any = np.uint8 if len(vocabulary) <= 256 else np.int32
    return torch.from_numpy(numbers.astype(kind)), tuple(map(chr, vocabulary.tolist()))
