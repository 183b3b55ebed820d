"""Heads of shapes that their recipe does not read: (D, T) features, and one number per sample.

One-dimensional convolutions give features (D, T), with the positions last; heads read them as
tokens (T, D).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.blocks.layout import ChannelsLastShape
from layerwise.errors import InputError
from layerwise.heads.head import Head, Shape
from layerwise.inputs import Inputs, applied

FIRST = (nn.Conv1d, nn.ConvTranspose1d)
LAST = (nn.Linear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)


def channels_first(blocks: Sequence[nn.Module], shape: Shape) -> bool:
    """Whether the last of these blocks gives (D, T), as one-dimensional convolutions do.

    The alternative is tokens, (T, D). Shapes do not distinguish the two. The last module, in the
    order of registration, that maps features decides: the output is (D, T) if this module is a
    one-dimensional convolution whose number of channels is the length of the output's first axis.
    The answer is wrong for a network that transposes a convolution's output afterwards and has as
    many positions as channels, and for one that convolves by a function of `torch.nn.functional`.
    Give such a network its own heads and criterion.

    Args:
        blocks: the network's blocks, up to the one in question.
        shape: the shape of its output, without the batch dimension.
    """
    if len(shape) != 2:
        return False
    maps = [m for block in blocks for m in block.modules() if isinstance(m, (*FIRST, *LAST))]
    last = maps[-1] if maps else None
    return isinstance(last, FIRST) and last.out_channels == shape[0]


def scores_axis(blocks: Sequence[nn.Module], shape: Shape) -> int:
    """The axis of the classes in a network's class scores, 1 or -1: 1 for maps, unless their
    channels are last, and for scores of one-dimensional convolutions.

    Args:
        blocks: the network's blocks.
        shape: the shape of the scores, without the batch dimension, as `Blocks.shapes` has it.
    """
    maps = len(shape) > 2 and not isinstance(shape, ChannelsLastShape)
    return 1 if maps or channels_first(blocks, shape) else -1


def built(
    recipe: Head, shape: Shape, out_shape: Shape, first: bool = False, out_first: bool = False
) -> nn.Module:
    """A recipe's head, also for shapes that the recipe itself does not read.

    These are one number for each sample, and features of one-dimensional convolutions.

    Args:
        recipe: called with shapes; its `takes_tokens` says whether it reads tokens.
        shape: the shape of the block's output, without the batch dimension.
        out_shape: the shape of the network's output, without the batch dimension.
        first: whether a `shape` of two axes is (D, T).
        out_first: whether an `out_shape` of two axes is (classes, T).

    Returns:
        The head: (B, *shape) -> (B, *out_shape).

    Raises:
        InputError: scores (classes, T), and a recipe that does not read tokens; a block with
            another number of tokens than the network's scores.
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
                f"the example, and a block gives {shape[0]}, which have no labels (as the tokens "
                "of an encoder before a decoder); cut where the numbers are the same, as in the "
                "decoder, or give this block another objective, or none"
            )
        return _made(recipe, shape, out_shape)
    shape, out_shape = shape[::-1] if first else shape, out_shape[::-1] if out_first else out_shape
    factor = out_shape[0] / shape[0] if len(out_shape) == len(shape) == 2 else 1.0
    return Sequences(_made(recipe, shape, out_shape), first, out_first, factor)


def _made(recipe: Head, shape: Shape, out_shape: Shape) -> nn.Module:
    """What a recipe makes, if it is a module.

    Raises:
        InputError: it is not.
    """
    head = recipe(shape, out_shape)
    if not isinstance(head, nn.Module):
        raise InputError(
            f"head: {getattr(recipe, '__name__', type(recipe).__name__)}{(shape, out_shape)} gives "
            f"{type(head).__name__}; give a recipe such as heads.MLP(), or a function of the two "
            "shapes that makes an nn.Module"
        )
    return head


class Sequences(nn.Module):
    """A head of tokens for a block, or a network, whose features come before the positions.

    Args:
        head: (B, T, D) -> (B, T, classes), or -> (B, classes).
        first: whether the block gives (B, D, T).
        out_first: whether the scores are to be (B, classes, T).
        factor: the number of positions of the network's output, divided by that of the block's;
            the scores are linearly interpolated.
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
    """Makes the single output of a head, (B, 1), one number for each sample: (B, ...) -> (B,)."""

    reads_inputs = True

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, h: Tensor, inputs: Inputs = None) -> Tensor:
        return applied(self.head, h, inputs).squeeze(1)
