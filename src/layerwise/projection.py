"""Fixed random projections from the network's output to every block's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.errors import InputError

Shape = tuple[int, ...]


class Projections(nn.Module):
    """A random matrix B_k for every block but the last, from class scores to its output.

    Where the network gives scores for every token, a block's output is (B, T, D) and B_k maps each
    token's scores to D. Else B_k maps the scores to all units, but where the output is (B, T, D) to
    D, the same for all T. The matrices are buffers.

    Args:
        blocks: made with an example.
        scale: B_k ~ U(-scale / sqrt(d_k), scale / sqrt(d_k)) with d_k units.
        shared: keep one matrix, as wide as the widest block needs; B_k is its first d_k columns
            (Launay et al. 2020, arXiv:2006.12878).
        asked_by: the call, for errors.

    Raises:
        InputError: shapes between the blocks are not known; scores for every token and an output
            that is not (B, T, D); a scale that is not positive.
    """

    def __init__(self, blocks: Blocks, scale: float, shared: bool, asked_by: str):
        super().__init__()
        if not scale > 0:
            raise InputError(f"{asked_by}(scale={scale}): give a positive number")
        if blocks.shapes is None:
            raise InputError(
                f"{asked_by}(blocks): the shapes between these blocks are not known, so no "
                "feedback matrix can be made; give an example: Blocks([...], example=x)"
            )
        *between, scores = blocks.shapes
        self.tokens = len(scores) == 2
        for name, shape in zip(blocks.names, between, strict=False):
            if self.tokens and len(shape) != 2:
                raise InputError(
                    f"{asked_by}: the network gives scores for every token, block {name!r} an "
                    f"output of {shape} for a sample; it needs (tokens, features): cut elsewhere"
                )
        self.units = [math.prod(s[-1:] if len(s) == 2 else s) for s in between]
        self.scale, self.shared = scale, shared
        like = next((p for p in blocks.parameters() if p.is_floating_point()), torch.zeros(()))

        def uniform(units: int, bound: float) -> Tensor:
            matrix = torch.empty(scores[-1], units, device=like.device, dtype=like.dtype)
            return matrix.uniform_(-bound, bound)

        if shared:
            self.register_buffer("all", uniform(max(self.units, default=0), 1.0))
        else:
            for k, units in enumerate(self.units):
                self.register_buffer(str(k), uniform(units, scale / math.sqrt(units)))

    def forward(self, k: int, e: Tensor, shape: Shape) -> Tensor:
        """e B_k as a gradient of block k's output.

        Args:
            k: the block's number.
            e: (B, C) or (B, T, C).
            shape: of its output, with the batch.
        """
        return self._spread(e.to(self._matrix(k).dtype) @ self._matrix(k), shape)

    def rows(self, k: int, y: Tensor, shape: Shape) -> Tensor:
        """onehot(y) B_k, likewise; 0 where a label is below 0, which asks for nothing.

        Args:
            k: the block's number.
            y: (B,) or (B, T).
            shape: of its output, with the batch.
        """
        found = self._matrix(k)[y.clamp(min=0)] * (y >= 0).unsqueeze(-1)
        return self._spread(found, shape)

    def _matrix(self, k: int) -> Tensor:
        if not self.shared:
            return self.get_buffer(str(k))
        units = self.units[k]
        return self.get_buffer("all")[:, :units] * (self.scale / math.sqrt(units))

    def _spread(self, found: Tensor, shape: Shape) -> Tensor:
        if len(shape) == 3 and not self.tokens:
            return found.unsqueeze(1).expand(shape)
        return found.view(shape)
