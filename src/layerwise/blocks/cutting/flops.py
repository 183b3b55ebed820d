"""Counts the floating-point operations of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from layerwise.blocks.cutting.data_flow import tensors_in


class FlopCounter(TorchDispatchMode):
    """Counts as `torch.utils.flop_counter`, and kernels that it does not know: recurrent layers'.

    Attributes:
        total: floating-point operations so far.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # imports Triton

        super().__init__()
        self.total, self._formulas = 0, {**_MORE, **flop_registry}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", None)
        count = self._formulas.get(packet)
        if count is not None:
            self.total += count(*args, **kwargs, out_val=result)
        return result


def _of_rnn(x: Tensor, *rest: Any, out_val: Any = None, **_: Any) -> int:
    """Every weight of a layer multiplies the input, or the state, of each step once."""
    steps = x.numel() // x.shape[-1]
    weights = tensors_in(*rest)[:2]
    return 2 * steps * sum(w.numel() for w in weights if w.dim() == 2)


def _of_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    from torch.utils.flop_counter import sdpa_flop_count

    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _of_bilinear(a: Tensor, b: Tensor, c: Tensor, *_: Any, **__: Any) -> int:
    return 2 * b.numel() * len(a)


_MORE: dict[Any, Callable[..., int]] = {
    getattr(torch.ops.aten, name): count
    for name, count in {
        "mkldnn_rnn_layer": _of_rnn,
        "_cudnn_rnn": _of_rnn,
        "_trilinear": _of_bilinear,
        "_scaled_dot_product_flash_attention_for_cpu": _of_attention,
    }.items()
    if hasattr(torch.ops.aten, name)
}
