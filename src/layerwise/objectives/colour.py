"""Colours as lightness and chrominance: sRGB and CIE Lab (D65, 2 degrees)."""

from __future__ import annotations

import torch
from torch import Tensor

# IEC 61966-2-1: linear RGB to XYZ; each row over the white point's X, Y, Z, so that white is 1.
WHITE = (0.95047, 1.0, 1.08883)
XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
KNEE = 6 / 29  # below its cube, Lab's cube root goes over into a line


def to_lab(rgb: Tensor) -> Tensor:
    """sRGB in 0..1, (B, 3, H, W), as L in 0..100 and a, b."""
    x, y, z = (_root(v / white) for v, white in zip(_mixed(linear(rgb), XYZ), WHITE, strict=True))
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def to_rgb(lab: Tensor) -> Tensor:
    """L, a, b (B, 3, H, W) as sRGB in 0..1; colours outside are cut off."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    xyz = torch.stack([_cube(y + a / 500), _cube(y), _cube(y - b / 200)], 1)
    xyz = torch.stack([v * white for v, white in zip(xyz.unbind(1), WHITE, strict=True)], 1)
    inverse = torch.tensor(XYZ, dtype=torch.float64).inverse().tolist()
    return companded(torch.stack(_mixed(xyz, inverse), 1)).clamp(0, 1)


def grey(rgb: Tensor) -> Tensor:
    """sRGB (B, 3, H, W) without its colours: the same L, a = b = 0."""
    luminance = _mixed(linear(rgb), XYZ[1:2])[0]
    return companded(luminance).clamp(0, 1).unsqueeze(1).expand_as(rgb)


def linear(rgb: Tensor) -> Tensor:
    """sRGB as intensities."""
    return torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055).clamp_min(0) ** 2.4)


def companded(intensity: Tensor) -> Tensor:
    """Intensities as sRGB."""
    high = 1.055 * intensity.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(intensity <= 0.0031308, 12.92 * intensity, high)


def _mixed(x: Tensor, rows: tuple[tuple[float, ...], ...] | list[list[float]]) -> list[Tensor]:
    """The three channels of x in the proportions of each row, each (B, H, W)."""
    channels = x.unbind(1)
    return [sum(w * c for w, c in zip(row, channels, strict=True)) for row in rows]  # type: ignore


def _root(v: Tensor) -> Tensor:
    cube_root = v.clamp_min(KNEE**3) ** (1 / 3)
    return torch.where(v > KNEE**3, cube_root, v / (3 * KNEE**2) + 4 / 29)


def _cube(v: Tensor) -> Tensor:
    return torch.where(v > KNEE, v**3, 3 * KNEE**2 * (v - 4 / 29))
