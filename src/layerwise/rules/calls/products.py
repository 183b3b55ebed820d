"""Finds the parameters that enter a matrix product, below the level of PyTorch's functions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

OPS = frozenset(
    getattr(torch.ops.aten, op) for op in ("mm", "addmm", "bmm", "baddbmm", "mv", "convolution")
)


class Products(TorchDispatchMode):
    """A context that finds the matrices that enter a product, in whatever way it is written.

    Args:
        parameters: the parameters to look for, by name. Only those with several axes count.

    Attributes:
        found: the names of the parameters found, as the keys of a dict.
    """

    def __init__(self, parameters: Mapping[str, Tensor]):
        super().__init__()
        self.names = {
            p.untyped_storage().data_ptr(): name
            for name, p in parameters.items()
            if p.dim() > 1 and p.numel()
        }
        self.found: dict[str, None] = {}
        self.pauses = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which products do not count."""
        self.pauses = True
        try:
            yield
        finally:
            self.pauses = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func.overloadpacket in OPS and not self.pauses:
            for arg in filter(torch.is_tensor, args):
                name = self.names.get(arg.untyped_storage().data_ptr())
                self.found.update({} if name is None else {name: None})
        return func(*args, **(kwargs or {}))
