"""The same random numbers on every device and in every precision, so that steps can be compared."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from layerwise.rules.families import perturbation

FACTORIES = {torch.randn: torch.float64, torch.rand: torch.float64, torch.randint: torch.int64}
LIKE = {torch.randn_like: torch.randn, torch.rand_like: torch.rand}
IN_PLACE = {Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_}


class _OnCpu(TorchFunctionMode):
    """Within, random numbers are drawn on the CPU in float64, and moved."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in FACTORIES:
            device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
            if dtype is None:
                whole = func is torch.randint
                dtype = torch.int64 if whole else torch.get_default_dtype()
            return func(*args, **kwargs, dtype=FACTORIES[func]).to(device or "cpu", dtype)
        if func in LIKE:
            return LIKE[func](args[0].shape, dtype=torch.float64).to(args[0])
        if func in IN_PLACE:
            drawn = func(torch.empty(args[0].shape, dtype=torch.float64), *args[1:], **kwargs)
            return args[0].copy_(drawn)
        return func(*args, **kwargs)


def _generator(device: torch.device, *seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(seed) & perturbation.SEEDS)


@contextlib.contextmanager
def same_draws(seed: int) -> Iterator[None]:
    """A context in which a rule draws the same numbers wherever it runs."""
    torch.manual_seed(seed)
    own = perturbation.generator
    with contextlib.ExitStack() as patched:
        for name, module in list(sys.modules.items()):
            if name.startswith("layerwise.rules") and getattr(module, "generator", None) is own:
                patched.enter_context(mock.patch.object(module, "generator", _generator))
        patched.enter_context(_OnCpu())
        yield
