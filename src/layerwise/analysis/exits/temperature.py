"""The temperature with which an exit's probabilities are calibrated."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from layerwise.arguments import is_finite, shortened
from layerwise.errors import InputError

LOWEST, HIGHEST = 0.01, 100.0


def temperature(scores: Tensor, y: Tensor) -> float:
    """The temperature T for which softmax(scores / T) predicts the labels best.

    Temperature scaling: Guo et al. 2017 (arXiv:1706.04599), section 4.2. With s = 1 / T the mean
    negative log-likelihood

        L(s) = mean of  log sum_c exp(s z_c) - s z_y

    is convex, so its derivative has at most one zero, which is found in float64 by Brent's method.
    For two classes with scores +a and -a, of which a share p > 1/2 is right, it is
    T = 2 a / log(p / (1 - p)).

    Args:
        scores: class scores, (N, C).
        y: the true classes, (N,), of an integer type.

    Returns:
        T, between 0.01 and 100: there may be no minimum, as when all predictions are right (T would
        be 0), or when they are no better than chance (T would be infinite).

    Raises:
        InputError: other shapes; no sample; scores that are not finite.
    """
    if scores.dim() != 2 or y.shape != scores.shape[:1] or not len(y):
        raise InputError(
            f"temperature(scores, y): got {tuple(scores.shape)} and {tuple(y.shape)}; give (N, C) "
            "and (N,), N at least 1"
        )
    z = scores.detach().double()
    if not bool(z.isfinite().all()):
        raise InputError("temperature(scores, y): some scores are not finite")
    z = z - z.gather(1, y.long()[:, None])  # relative to the true class

    def slope(s: float) -> float:  # dL / ds
        return (torch.softmax(s * z, 1) * z).sum(1).mean().item()

    least, most = 1 / HIGHEST, 1 / LOWEST
    if slope(most) <= 0:
        return LOWEST
    if slope(least) >= 0:
        return HIGHEST
    from scipy.optimize import root_scalar  # slow to import, and only needed here

    return 1 / root_scalar(slope, bracket=(least, most), method="brentq", xtol=1e-13).root


def checked_temperatures(
    call: str,
    given: Sequence[float | None] | None,
    names: Sequence[str],
    exits: Collection[int],
) -> tuple[float | None, ...]:
    """The temperature of every block's exit; by default 1 for each that predicts.

    Args:
        call: for errors.
        given: the temperatures.
        names: of the blocks.
        exits: the numbers of the blocks that predict.

    Raises:
        InputError: another number of temperatures than of blocks; for a block that predicts, one
            that is not a positive number.
    """
    if given is None:
        return tuple(1.0 if k in exits else None for k in range(len(names)))
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != len(names):
        raise InputError(
            f"{call}(temperatures={shortened(given)}): give a list with one for each of "
            f"{len(names)} blocks, and None for a block that does not predict"
        )
    for k in exits:
        t = given[k]
        if not (is_finite(t) and t > 0):  # type: ignore[operator]
            raise InputError(
                f"{call}(temperatures={shortened(given)}): block {names[k]!r} predicts, so its "
                "temperature is a positive number"
            )
    return tuple(t if k in exits else None for k, t in enumerate(given))


def checked_threshold(call: str, threshold: float) -> float:
    """A threshold, if it is one.

    Raises:
        InputError: it is not a number of at least 0.
    """
    if not (is_finite(threshold) and threshold >= 0):
        raise InputError(
            f"{call}(threshold={shortened(threshold)}): give a probability, such as 0.95; with 0 "
            "all samples leave at the first exit, with more than 1 at the last"
        )
    return float(threshold)
