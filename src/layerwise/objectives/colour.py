"""Conversion of colours between sRGB and CIE Lab (D65, 2 degrees)."""

from __future__ import annotations

import torch
from torch import Tensor

# IEC 61966-2-1: linear RGB to XYZ. Divided by the white point's X, Y, Z, white becomes 1.
WHITE = (0.95047, 1.0, 1.08883)
XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
KNEE = 6 / 29  # below the cube of this, Lab's cube root becomes a straight line


def to_lab(rgb: Tensor) -> Tensor:
    """From sRGB in 0..1, (B, 3, H, W), to L in 0..100 and a, b, (B, 3, H, W)."""
    x, y, z = (_root(v / white) for v, white in zip(_mixed(linear(rgb), XYZ), WHITE, strict=True))
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def to_rgb(lab: Tensor) -> Tensor:
    """From L, a, b, (B, 3, H, W), to sRGB in 0..1; colours outside of it are clamped."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    xyz = torch.stack([_cube(y + a / 500), _cube(y), _cube(y - b / 200)], 1)
    xyz = torch.stack([v * white for v, white in zip(xyz.unbind(1), WHITE, strict=True)], 1)
    inverse = torch.tensor(XYZ, dtype=torch.float64).inverse().tolist()
    return companded(torch.stack(_mixed(xyz, inverse), 1)).clamp(0, 1)


def grey(rgb: Tensor) -> Tensor:
    """The grey version of sRGB images, (B, 3, H, W): with the same L and a = b = 0."""
    luminance = _mixed(linear(rgb), XYZ[1:2])[0]
    return companded(luminance).clamp(0, 1).unsqueeze(1).expand_as(rgb)


def linear(rgb: Tensor) -> Tensor:
    """From sRGB to light intensities, both in 0..1."""
    return torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055).clamp_min(0) ** 2.4)


def companded(intensity: Tensor) -> Tensor:
    """From light intensities to sRGB, both in 0..1."""
    high = 1.055 * intensity.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(intensity <= 0.0031308, 12.92 * intensity, high)


def _mixed(x: Tensor, rows: tuple[tuple[float, ...], ...] | list[list[float]]) -> list[Tensor]:
    """For each row of factors, the weighted sum of the three channels of x, (B, H, W)."""
    channels = x.unbind(1)
    return [sum(w * c for w, c in zip(row, channels, strict=True)) for row in rows]  # type: ignore


def _root(v: Tensor) -> Tensor:
    cube_root = v.clamp_min(KNEE**3) ** (1 / 3)
    return torch.where(v > KNEE**3, cube_root, v / (3 * KNEE**2) + 4 / 29)


def _cube(v: Tensor) -> Tensor:
    return torch.where(v > KNEE, v**3, 3 * KNEE**2 * (v - 4 / 29))
