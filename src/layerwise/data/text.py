"""Text as numbered characters, cut into windows, and other sequences of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from layerwise.data.pixels import send
from layerwise.data.samples import Job, Reader, Reading, Samples
from layerwise.errors import InputError

CONTEXT = 64  # tokens of a window by default


@dataclass(frozen=True, eq=False)
class Text(Samples):
    """Consecutive windows of one long text; every token is predicted from those before it.

    Window n is x = tokens[n T : n T + T] and y = tokens[n T + 1 : n T + T + 1], so every token
    except the first is predicted once. With `labels`, y = labels[n T : n T + T].

    Args:
        tokens: (L,), of any integer type.
        context: T, the number of tokens in a window.
        index: the windows that belong to this set, int64 (N,); None for all.
        labels: the label of every token if it is not the next token, (L,), with -100 for a label
            that does not count; L is a multiple of T.
        contiguous: as in `Samples`; a `Loader` then divides the windows into consecutive parts, one
            for each row of a batch.
    """

    unit: ClassVar[str] = "windows"
    labels_tokens: ClassVar[bool] = True

    tokens: Tensor
    context: int
    index: Tensor | None = None
    labels: Tensor | None = None
    contiguous: bool = False

    def __len__(self) -> int:
        if self.index is not None:
            return len(self.index)
        return max(0, len(self.tokens) - (self.labels is None)) // self.context

    def __repr__(self) -> str:
        return f"Text({len(self)} windows of {self.context} on {self.tokens.device})"

    @property
    def shape(self) -> tuple[int]:
        """(T,) of one window."""
        return (self.context,)

    def windows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """x and y of the windows at `index` (B,): int64, (B, T) each, on the tokens' device."""
        number = index if self.index is None else self.index.index_select(0, index)
        within = torch.arange(self.context + 1, device=self.tokens.device)
        places = self.context * number[:, None] + within
        if self.labels is not None:
            places = places[:, :-1]
            return self.tokens[places].long(), self.labels[places].long()
        tokens = self.tokens[places].long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def to(self, device: str | torch.device) -> Text:
        """The same windows on `device`."""
        index = None if self.index is None else self.index.to(device)
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, tokens=self.tokens.to(device), index=index, labels=labels)

    def subset(self, indices: Tensor) -> Text:
        """The windows at `indices` (int64, (M,)), in that order."""
        index = indices.to(self.tokens.device)
        return replace(self, index=index if self.index is None else self.index[index])

    def cut(self, share: float, seed: int = 0) -> tuple[Text, Text]:
        """Cut the text at a position; the second part is `share` of it.

        No token is in both parts, and `seed` has no influence. With labels, the position is
        between two windows.

        Raises:
            InputError: one of the parts has no whole window.
        """
        assert self.index is None, "a text is cut before windows are chosen"
        step = 1 if self.labels is None else self.context
        at = len(self.tokens) - step * round(share * len(self.tokens) / step)
        parts = self._part(0, at), self._part(at, len(self.tokens))
        if not all(map(len, parts)):
            raise InputError(
                f"data: {len(self.tokens)} characters, {share:g} of them held out, leave no window "
                f"of {self.context} tokens and the token after it; give a longer text, a smaller "
                "--data.context or another --data.validation"
            )
        return parts

    def _part(self, start: int, end: int) -> Text:
        labels = None if self.labels is None else self.labels[start:end]
        return replace(self, tokens=self.tokens[start:end], labels=labels)

    def reader(self, reading: Reading) -> Reader:
        """A reader of this text.

        Raises:
            InputError: `reading` has options of images.
        """
        _refuse_options_of_images(reading)
        return _TextReader(self.to(reading.device))


class _TextReader(Reader):
    """Cuts batches of windows from a text on the device."""

    def __init__(self, text: Text) -> None:
        super().__init__(text.tokens.device)
        self._text = text

    def batches(self, jobs: Iterable[Job]) -> Iterator[tuple[Tensor, Tensor]]:
        for job in jobs:
            yield self._text.windows(send(job.index, self.home))

    def labels(self, index: Tensor) -> Tensor:
        return self._text.windows(send(index, self.home))[1]

    def denormalize(self, x: Tensor) -> Tensor:
        raise InputError("Loader.denormalize(x): the set is text; give a loader of images")


def _refuse_options_of_images(reading: Reading) -> None:
    augment = reading.augment
    changed = [
        f"augment.{f.name}" for f in fields(augment) if getattr(augment, f.name) != f.default
    ]
    changed += ["views"] if reading.views > 1 else []
    changed += ["channels_last"] if reading.channels_last else []
    if changed:
        raise InputError(
            f"Loader({', '.join(changed)}): these options are for images, and the set is text; "
            "leave them at their defaults"
        )
