"""Features of one-dimensional convolutions, (D, T), which heads read as tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.errors import InputError
from layerwise.heads.head import Head, Shape
from layerwise.inputs import Inputs, applied

FIRST = (nn.Conv1d, nn.ConvTranspose1d)
LAST = (nn.Linear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)


def channels_first(blocks: Sequence[nn.Module], shape: Shape) -> bool:
    """Whether the output of the last of these blocks is (D, T) for each sample, as one-dimensional
    convolutions give it, and not tokens (T, D).

    Shapes do not tell the two apart. They are told by the last module, in the order of
    registration, that maps features: whether it is a one-dimensional convolution of as many
    channels as the output's first axis has. A network that turns a convolution's output round
    afterwards, where there are as many positions as channels, is told wrongly; one that convolves
    by a function of `torch.nn.functional` is not told. Give such a network heads and a criterion of
    its own.

    Args:
        blocks: the network's, up to that block.
        shape: of its output, without the batch dimension.
    """
    if len(shape) != 2:
        return False
    maps = [m for block in blocks for m in block.modules() if isinstance(m, (*FIRST, *LAST))]
    last = maps[-1] if maps else None
    return isinstance(last, FIRST) and last.out_channels == shape[0]


def built(
    recipe: Head, shape: Shape, out_shape: Shape, first: bool = False, out_first: bool = False
) -> nn.Module:
    """A recipe's head for a block's output and a network's, also where these are no shapes of the
    recipe's: one number for each sample, and features of one-dimensional convolutions.

    Args:
        recipe: called with shapes; whether it reads tokens is its `takes_tokens`.
        shape: of the block's output, without the batch dimension.
        out_shape: of the network's.
        first: whether a `shape` of two axes is (D, T).
        out_first: whether an `out_shape` of two axes is (classes, T).

    Raises:
        InputError: such scores, and a recipe that does not read tokens.
    """
    tokens = getattr(recipe, "takes_tokens", False)
    if out_first and isinstance(recipe, Head) and not tokens:
        raise InputError(
            f"{type(recipe).__name__}: the network gives {out_shape} for each sample, class scores "
            "of a one-dimensional convolution; heads.Linear and heads.MLP predict them: take "
            "rules.DGL, or give a function that makes your own head"
        )
    first, out_first = first and tokens, out_first and tokens
    if out_shape == ():
        return OneNumber(built(recipe, shape, (1,), first))
    if not first and not out_first:
        if len(shape) == len(out_shape) == 2 and shape[0] != out_shape[0]:
            raise InputError(
                f"{type(recipe).__name__}: the network gives scores for {out_shape[0]} tokens of "
                f"the example, and a block gives {shape[0]}, which have no labels (as an encoder "
                "before a decoder has); cut where they are the same, as in the decoder, or give "
                "this block another objective, or none"
            )
        return recipe(shape, out_shape)
    shape, out_shape = shape[::-1] if first else shape, out_shape[::-1] if out_first else out_shape
    factor = out_shape[0] / shape[0] if len(out_shape) == len(shape) == 2 else 1.0
    return Sequences(recipe(shape, out_shape), first, out_first, factor)


class Sequences(nn.Module):
    """A head of tokens where the block, or the network, has its features before the positions.

    Args:
        head: (B, T, D) to (B, T, classes), or to (B, classes).
        first: whether the block gives (B, D, T).
        out_first: whether the scores are to be (B, classes, T).
        factor: how many positions the network's output has for each of the block's; scores between
            are linearly interpolated.
    """

    reads_inputs = True

    def __init__(self, head: nn.Module, first: bool, out_first: bool, factor: float):
        super().__init__()
        self.head = head
        self.first, self.out_first, self.factor = first, out_first, factor

    def forward(self, h: Tensor, inputs: Inputs = None) -> Tensor:
        scores = applied(self.head, h.transpose(1, 2) if self.first else h, inputs)
        if scores.dim() < 3:
            return scores
        scores = scores.transpose(1, 2)  # (B, classes, T)
        if self.factor != 1:
            size = round(scores.shape[2] * self.factor)
            scores = F.interpolate(scores, size, mode="linear")
        return scores if self.out_first else scores.transpose(1, 2)

    def extra_repr(self) -> str:
        return f"first={self.first}, out_first={self.out_first}, factor={self.factor}"


class OneNumber(nn.Module):
    """A head of one output as one number for each sample: (B, ...) -> (B,)."""

    reads_inputs = True

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, h: Tensor, inputs: Inputs = None) -> Tensor:
        return applied(self.head, h, inputs).squeeze(1)
