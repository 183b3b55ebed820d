"""Cosine similarity of all pairs of samples in a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.autocast import without_autocast

EPSILON = 1e-8  # added to lengths: the cosine with a vector of zeros is 0


def cosine(h: Tensor, centred: bool = False) -> Tensor:
    """Cosines of all pairs of samples, (B, B), in float32 or more.

    Args:
        h: one vector per sample, (B, ...); further dimensions are flattened.
        centred: first subtract from each vector the mean of its components, which gives their
            correlation ("adjusted cosine similarity").
    """
    h = h.to(torch.promote_types(h.dtype, torch.float32)).flatten(1)
    if centred:
        h = h - h.mean(1, keepdim=True)
    h = h / (torch.linalg.vector_norm(h, dim=1, keepdim=True) + EPSILON)
    with without_autocast(h.device):  # which would round the products to 8 bits
        return h @ h.T
