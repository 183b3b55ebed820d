"""The angle between two tensors."""

from __future__ import annotations

import math

from torch import Tensor


def degrees_between(a: Tensor, b: Tensor) -> float:
    """The angle between two tensors, both as vectors: 0 to 180 degrees, nan where one is 0.

    Kahan's formula: exact where the two agree, where the arc cosine has lost half its digits.
    """
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * math.atan2((a - b).norm().item(), (a + b).norm().item()))
