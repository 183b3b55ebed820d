"""Fixed random projections from the network's output to blocks and layers."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads.layout import channels_first
from layerwise.labels import counted, rows_of
from layerwise.rules.calls.layer_calls import layer_calls

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerInput:
    """How a layer reads its input.

    Attributes:
        units: that have a projection of their own: features, or all of a convolution's feature
            maps.
        maps: whether it is a convolution.
        turned: whether rows are those of the first token or position of all samples, then those of
            the next, as in `nn.MultiheadAttention`, and not sample after sample.
    """

    units: int
    maps: bool
    turned: bool


class Projections(nn.Module):
    """A random matrix B_k for every block but the last, from class scores to its output.

    Where the network gives scores for every token, a block's output is (B, T, D) and B_k maps each
    token's scores to D. Else B_k maps the scores to all units, but where the output is (B, T, D) to
    D, the same for all T. A network that gives one number for each sample, (B,), has C = 1. The
    matrices are buffers.

    Args:
        blocks: made with an example.
        scale: B_k ~ U(-scale / sqrt(d_k), scale / sqrt(d_k)) with d_k units.
        shared: keep one matrix, as wide as the widest block needs; B_k is its first d_k columns
            (Launay et al. 2020, arXiv:2006.12878).
        asked_by: the call, for errors.
        among: numbers of the blocks that have one; by default all but the last.
        layers: further matrices, to the inputs of layers, under names of theirs.

    Raises:
        InputError: shapes between the blocks are not known; scores for every token and an output
            that is not (B, T, D); scores for every position of maps, or of a one-dimensional
            convolution; a scale that is not positive.
    """

    def __init__(
        self,
        blocks: Blocks,
        scale: float,
        shared: bool,
        asked_by: str,
        among: Container[int] | None = None,
        layers: Mapping[str, LayerInput] | None = None,
    ):
        super().__init__()
        if not scale > 0:
            raise InputError(f"{asked_by}(scale={scale}): give a positive number")
        _, (*between, scores) = blocks.known_shapes(asked_by, "no feedback matrix can be made")
        if len(scores) > 2 or channels_first(list(blocks), scores):
            raise InputError(
                f"{asked_by}: the network gives scores of {scores} for a sample, for every "
                "position of maps; it needs (classes,), or (tokens, classes): take rules.DGL"
            )
        self.tokens, self.classes = len(scores) == 2, (scores or (1,))[-1]
        self.units: dict[str, int] = {}
        for k, shape in enumerate(between):
            if among is not None and k not in among:
                continue
            if self.tokens and len(shape) != 2:
                raise InputError(
                    f"{asked_by}: the network gives scores for every token, block "
                    f"{blocks.names[k]!r} an output of {shape} for a sample; it needs (tokens, "
                    "features): cut elsewhere"
                )
            self.units[str(k)] = math.prod(shape[-1:] if len(shape) == 2 else shape)
        self.layers = dict(layers or {})
        self.units |= {name: layer.units for name, layer in self.layers.items()}
        self.scale, self.shared, self.asked_by = scale, shared, asked_by
        like = next((p for p in blocks.parameters() if p.is_floating_point()), torch.zeros(()))

        def uniform(units: int, bound: float) -> Tensor:
            matrix = torch.empty(self.classes, units, device=like.device, dtype=like.dtype)
            return matrix.uniform_(-bound, bound)

        if shared:
            self.register_buffer("all", uniform(max(self.units.values(), default=0), 1.0))
        else:
            for name, units in self.units.items():
                self.register_buffer(name, uniform(units, scale / math.sqrt(units)))

    def forward(self, k: int, e: Tensor, shape: Shape) -> Tensor:
        """e B_k as a gradient of block k's output.

        Args:
            k: the block's number.
            e: (B, C) or (B, T, C); (B,) where there is one number for each sample.
            shape: of its output, with the batch.
        """
        return self._spread(self._project(str(k), e), shape)

    def rows(self, k: int, y: Tensor, shape: Shape) -> Tensor:
        """onehot(y) B_k, likewise; 0 where a label is below 0, which asks for nothing.

        Args:
            k: the block's number.
            y: class numbers, (B,) or (B, T); or what each class is to be, such as probabilities,
                (B, C) or (B, T, C); of a network that gives one number for each sample, (B,).
            shape: of its output, with the batch.

        Raises:
            InputError: other real numbers.
        """
        matrix, axes = self._matrix(str(k)), 2 + self.tokens
        if self.classes == 1:
            y = y.to(matrix.dtype).reshape(*y.shape[: axes - 1], 1)
        elif y.dim() == axes and y.shape[-1] == self.classes:
            y = y.to(matrix.dtype)
        elif y.is_floating_point() or y.dim() != axes - 1:
            raise InputError(
                f"{self.asked_by}: got labels {tuple(y.shape)} of {y.dtype}; a block's target is "
                f"made of class numbers, or of one number for each of the {self.classes} classes: "
                "take rules.DirectFeedbackAlignment"
            )
        found = rows_of(matrix, y)
        return self._spread(found * self._factor(str(k)) if self.shared else found, shape)

    def counted(self, y: Tensor) -> int | Tensor:
        """How many of the labels that `rows` takes count."""
        if self.classes == 1 or y.dim() == 2 + self.tokens:
            return math.prod(y.shape[: 1 + self.tokens])
        return counted(y)

    def to_layer(self, name: str, e: Tensor, shape: Shape) -> Tensor:
        """e B as a gradient of a layer's input: (N, features), or (B, channels, ...); where there
        is no error for each of a sample's rows, all get the same."""
        layer = self.layers[name]
        found = self._project(name, e)  # (B, [T,] units)
        if layer.maps:
            return found.view(shape)
        if not self.tokens:
            found = found.unsqueeze(1).expand(-1, shape[0] // len(found), -1)
        return (found.transpose(0, 1) if layer.turned else found).reshape(shape)

    def _project(self, name: str, e: Tensor) -> Tensor:
        matrix = self._matrix(name)
        e = (e.unsqueeze(1) if e.dim() == 1 else e).to(matrix.dtype)
        return (e * self._factor(name) if self.shared else e) @ matrix

    def _matrix(self, name: str) -> Tensor:
        """(C, units); the shared one still wants the factor."""
        own = "all" if self.shared else name
        return self.get_buffer(own)[:, : self.units[name]]

    def _factor(self, name: str) -> float:
        return self.scale / math.sqrt(self.units[name])

    def _spread(self, found: Tensor, shape: Shape) -> Tensor:
        if len(shape) == 3 and not self.tokens:
            return found.unsqueeze(1).expand(shape)
        return found.view(shape)


def layer_key(k: int, name: str) -> str:
    """What the matrix of a layer is called: that of this weight in block k."""
    return f"{k}/{name.replace('.', '/')}"


def layer_inputs(blocks: Blocks, ends: Container[int], asked_by: str) -> dict[str, LayerInput]:
    """How layers read their inputs, under `layer_key`: those whose input has a gradient where the
    outputs of the blocks `ends` go on detached.

    Raises:
        InputError: as `layer_calls`; an input that no projection fits.
    """
    # What changes with the second sample is the second sample's.
    before, after = (layer_calls(blocks, asked_by, ends, change) for change in (False, True))
    found = {}
    for k, (label, block) in enumerate(zip(blocks.names, blocks, strict=True)):
        for name, weight in block.named_parameters():
            calls = zip(before.get(weight, []), after.get(weight, []), strict=True)
            read = {_layer_input(a.x, b.x, a.maps, blocks) for a, b in calls if a.sends}
            for one in read:
                if one is None or len(read) > 1:
                    raise InputError(
                        f"{asked_by}: the layer of {name!r} in block {label!r} reads inputs of "
                        "several sizes, or not rows or maps that belong to one sample (and token) "
                        "each; leave layers out, or cut elsewhere"
                    )
                found[layer_key(k, name)] = one
    return found


def _layer_input(before: Tensor, after: Tensor, maps: bool, blocks: Blocks) -> LayerInput | None:
    assert blocks.shapes is not None
    scores = blocks.shapes[-1]
    tokens, rows = len(scores) == 2, len(before)
    if maps:
        return None if tokens or rows != 2 else LayerInput(before[0].numel(), True, False)
    if rows % 2 or (tokens and rows != 2 * scores[0]):
        return None
    changed = (before != after).any(1).nonzero().flatten().tolist()
    units = before.shape[1]
    if all(row >= rows // 2 for row in changed):
        return LayerInput(units, False, False)
    return LayerInput(units, False, True) if all(row % 2 for row in changed) else None
