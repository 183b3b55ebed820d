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
    """The form of a layer's input.

    Attributes:
        units: number of values with a projection of their own: the features of a linear layer, or
            all values of a convolution's feature maps.
        maps: whether the layer is a convolution.
        turned: the order of rows: True for token after token, each with all samples, as in
            `nn.MultiheadAttention`; False for sample after sample.
    """

    units: int
    maps: bool
    turned: bool


class Projections(nn.Module):
    """A random matrix B_k for every block except the last, from class scores to its output.

    If the network gives scores for every token, a block's output is (B, T, D), and B_k maps each
    token's scores to D values. Otherwise B_k maps the scores to all units of the output; for an
    output (B, T, D) it maps them to D values, which all T tokens share. A network that gives one
    number for each sample, (B,), has C = 1. The matrices are buffers.

    Args:
        blocks: the network, made with an example.
        scale: B_k ~ U(-scale / sqrt(d_k), scale / sqrt(d_k)) with d_k units.
        shared: keep one matrix, as wide as the widest block needs; B_k is its first d_k columns
            (Launay et al. 2020, arXiv:2006.12878).
        asked_by: name of the rule, for errors.
        among: numbers of the blocks that have a matrix; by default all except the last.
        layers: the layers whose inputs have further matrices, by name.

    Raises:
        InputError: shapes between the blocks are not known; scores for every token, but an output
            that is not (B, T, D); scores for every position of maps or of a one-dimensional
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
                f"{asked_by}: the network gives scores {scores} for each sample, which are scores "
                "for every position of maps; it needs (classes,) or (tokens, classes): take "
                "rules.DGL"
            )
        self.tokens, self.classes = len(scores) == 2, (scores or (1,))[-1]
        self.units: dict[str, int] = {}
        for k, shape in enumerate(between):
            if among is not None and k not in among:
                continue
            if self.tokens and len(shape) != 2:
                raise InputError(
                    f"{asked_by}: the network gives scores for every token, but block "
                    f"{blocks.names[k]!r} gives {shape} for each sample; it needs (tokens, "
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
        """e B_k, as a gradient with respect to block k's output.

        Args:
            k: number of the block.
            e: the error, (B, C) or (B, T, C); (B,) if there is one number for each sample.
            shape: shape of the block's output, with the batch dimension.

        Returns:
            The gradient, in this shape.
        """
        return self._spread(self._project(str(k), e), shape)

    def rows(self, k: int, y: Tensor, shape: Shape) -> Tensor:
        """onehot(y) B_k, as a target of block k's output; 0 for a label below 0, which does not
        count.

        Args:
            k: number of the block.
            y: class numbers, (B,) or (B, T); or one number for each class, such as probabilities,
                (B, C) or (B, T, C); (B,) if the network gives one number for each sample.
            shape: shape of the block's output, with the batch dimension.

        Returns:
            The target, in this shape.

        Raises:
            InputError: real numbers in another shape.
        """
        matrix, axes = self._matrix(str(k)), 2 + self.tokens
        if self.classes == 1:
            y = y.to(matrix.dtype).reshape(*y.shape[: axes - 1], 1)
        elif y.dim() == axes and y.shape[-1] == self.classes:
            y = y.to(matrix.dtype)
        elif y.is_floating_point() or y.dim() != axes - 1:
            raise InputError(
                f"{self.asked_by}: got labels {tuple(y.shape)} of {y.dtype}; a block's target is "
                f"made from class numbers, or from one number for each of the {self.classes} "
                "classes: take rules.DirectFeedbackAlignment"
            )
        found = rows_of(matrix, y)
        return self._spread(found * self._factor(str(k)) if self.shared else found, shape)

    def counted(self, y: Tensor) -> int | Tensor:
        """The number of labels y, in the form that `rows` takes, that count."""
        if self.classes == 1 or y.dim() == 2 + self.tokens:
            return math.prod(y.shape[: 1 + self.tokens])
        return counted(y)

    def to_layer(self, name: str, e: Tensor, shape: Shape) -> Tensor:
        """e B, as a gradient with respect to a layer's input.

        Args:
            name: name of the layer.
            e: the error, as in `forward`. If there is one error per sample, all rows of a sample
                get the same gradient.
            shape: shape of the layer's input, (N, features) or (B, channels, ...).

        Returns:
            The gradient, in this shape.
        """
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
        """The matrix, (C, units); a shared one still has to be multiplied by `_factor`."""
        own = "all" if self.shared else name
        return self.get_buffer(own)[:, : self.units[name]]

    def _factor(self, name: str) -> float:
        return self.scale / math.sqrt(self.units[name])

    def _spread(self, found: Tensor, shape: Shape) -> Tensor:
        if len(shape) == 3 and not self.tokens:
            return found.unsqueeze(1).expand(shape)
        return found.view(shape)


def layer_key(k: int, name: str) -> str:
    """The name of the matrix of a layer, from the name of its weight in block k."""
    return f"{k}/{name.replace('.', '/')}"


def layer_inputs(blocks: Blocks, ends: Container[int], asked_by: str) -> dict[str, LayerInput]:
    """The inputs of those layers whose input has a gradient, by `layer_key`.

    Args:
        blocks: the network, made with an example.
        ends: numbers of the blocks whose outputs are detached before they go on.
        asked_by: name of the rule, for errors.

    Raises:
        InputError: as in `layer_calls`; an input that no projection fits.
    """
    # The rows that change when the second sample changes belong to the second sample.
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
                        "several sizes, or rows or maps that do not belong to one sample (and "
                        "token) each; leave layers out, or cut elsewhere"
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
