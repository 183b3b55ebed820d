"""Stacked LSTM layers that score the next token (Hochreiter & Schmidhuber 1997)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import DEEPEST, at_least, checks_arguments, share
from layerwise.errors import InputError
from layerwise.models.building_blocks import Window, check_sizes

State = Sequence[tuple[Tensor, Tensor]]  # of every layer: h and c, (1, B, D) each


class OneHot(nn.Module):
    """Tokens as one-hot vectors: (B, T) -> (B, T, classes)."""

    def __init__(self, classes: int):
        super().__init__()
        self.eye: Tensor
        self.register_buffer("eye", torch.eye(classes), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.eye)

    def extra_repr(self) -> str:
        return f"{len(self.eye)}"


class LSTM(nn.Module):
    """A recurrent network of LSTM layers: see `lstm`."""

    def __init__(
        self, classes: int, layers: int, width: int, embedding: int | None, dropout: float
    ):
        super().__init__()
        self.embedding = OneHot(classes) if embedding is None else nn.Embedding(classes, embedding)
        sizes = [classes if embedding is None else embedding, *[width] * layers]
        self.layers = nn.ModuleList(
            nn.LSTM(size, width, batch_first=True) for size in sizes[:layers]
        )
        self.drop = nn.Dropout(dropout)
        self.classifier = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor | tuple[Tensor, State]:
        """Read tokens.

        Args:
            x: (B, T).
            state: every layer's h and c before the first token, (1, B, D) each; an empty sequence
                for zeros.

        Returns:
            Scores of the token that follows each, (B, T, classes); if a state was given, also the
            state after the last token.
        """
        h = self.embedding(x)
        after = []
        for k, layer in enumerate(self.layers):
            h, last = layer(h, state[k]) if state else layer(h)
            h = self.drop(h)
            if state is not None:
                after.append(last)
            del last  # otherwise two tensors would be alive between layers, where `cut` divides
        scores = self.classifier(h)
        return scores if state is None else (scores, after)


@checks_arguments
def lstm(
    shape: Window = (64,),
    num_classes: int = 256,
    layers: int = 1,
    width: int = 128,
    embedding: int | None = None,
    dropout: float = 0.0,
) -> LSTM:
    """Recurrent network of LSTM layers that scores the next token at every position.

    `model(x)` maps tokens (B, T), for any T, to scores (B, T, num_classes), and begins with a state
    of zeros. `model(x, state)` returns the scores and the state after the last token, with which
    the next call continues; the first state is `()`. `cut` divides it between the layers.

    Args:
        shape: (T,), the window of the data; the network does not depend on it.
        num_classes: number of different tokens.
        layers: number of LSTM layers.
        width: units of each layer.
        embedding: features of a token's embedding; null for one-hot vectors.
        dropout: probability of dropping a unit of a layer's output.

    Raises:
        InputError: the shape is not that of text; a size below 1; a probability outside [0, 1).
    """
    if len(shape) != 1:
        raise InputError(
            f"lstm(shape={tuple(shape)}): it takes windows of tokens, (T,); give a text, such as "
            "--data markov, or a network for images, such as vit"
        )
    check_sizes("lstm", shape, num_classes, axes=1, width=width, embedding=embedding)
    at_least(1, "lstm", DEEPEST, layers=layers)
    share("lstm", dropout=dropout)
    return LSTM(num_classes, layers, width, embedding, dropout)
