"""The angle between two tensors."""

from __future__ import annotations

import math

from torch import Tensor


def degrees_between(a: Tensor, b: Tensor) -> float:
    """The angle between two tensors, both as vectors: 0 to 180 degrees, nan if one is zero.

    Kahan's formula is exact for vectors that nearly agree; there, the arc cosine loses half its
    digits.
    """
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * math.atan2((a - b).norm().item(), (a + b).norm().item()))
