"""The cost of running a module: floating-point operations, and memory kept for backward."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from layerwise.blocks.chain import Blocks
from layerwise.blocks.unchanged import unchanged

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


def flops(module: nn.Module, *inputs: Any) -> int:
    """Floating-point operations of one forward pass of `module` on `inputs`, one batch.

    A multiplication and an addition count as two. Only matrix products, convolutions and attention
    count, as in `torch.utils.flop_counter`. The module is left unchanged.
    """
    with unchanged(module):
        module.eval()
        with counted() as counter:
            module(*inputs)
    return counter.get_total_flops()


def saved_bytes(module: nn.Module, *inputs: Any) -> int:
    """Bytes that one forward pass of `module` in train mode keeps for its backward pass.

    A tensor that is kept twice counts once. Parameters and buffers do not count, because they exist
    anyway. The module is left unchanged.
    """
    with unchanged(module):
        module.train()
        with saved(module) as kept:
            module(*inputs)
    return kept.bytes


def saved_by_each(blocks: Blocks, x: Tensor) -> list[int]:
    """`saved_bytes` of every block, in one pass of the batch x through all of them."""
    kept: list[int] = []
    with unchanged(blocks):
        blocks.train()
        with blocks.passes(x) as passes:
            h = x
            for k in range(len(blocks)):
                with saved(blocks) as of_block:
                    h = passes.run(k, h).detach()
                kept.append(of_block.bytes)
    return kept


class _Untracked(contextlib.nullcontext):
    """In place of a tracker of modules: all operations are the whole network's."""

    parents = frozenset({"Global"})


@contextlib.contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """A context that counts floating-point operations.

    It turns autograd on: without it, PyTorch's attention takes fused kernels whose operations no
    formula counts.
    """
    from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode  # imports Triton

    # Code that `torch.compile` has compiled is counted as it runs.
    _FlopCounterMode.ignore_compile_internals = classmethod(lambda _: True)  # type: ignore
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    # Only the sum is read. A tracker of modules would have hooks on all of them, and with hooks
    # `torch.compile` compiles again.
    counter.mod_tracker = _Untracked()  # type: ignore
    with torch.enable_grad(), counter:
        yield counter


@dataclass(eq=False)
class Saved:
    """The storages kept for the backward pass.

    Attributes:
        storages: by address, in the order in which they were kept. The tensors stay alive until
            the count is done, so that no address is used twice.
    """

    storages: dict[int, Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The size of all storages together, in bytes."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.storages.values())


@contextlib.contextmanager
def saved(module: nn.Module) -> Iterator[Saved]:
    """Collect the tensors that autograd keeps for the backward pass, except `module`'s own."""
    # Only a part of a sharded parameter is here.
    whole = (getattr(t, "_local_tensor", t) for t in (*module.parameters(), *module.buffers()))
    own = {t.untyped_storage().data_ptr() for t in whole}
    kept = Saved()

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept.storages.setdefault(address, tensor.detach())
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield kept


def _formulas() -> dict[Any, Any]:
    """Formulas for the CPU's fused attention, as PyTorch has them for CUDA's, and for recurrent
    layers."""
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    def forward(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(
        grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
    ) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    def recurrent(x: torch.Size, weight: Any, *rest: Any, **_: Any) -> int:
        """Every weight multiplies the input, or the state, of each step once."""
        weights = [weight, rest[0]] if isinstance(weight, torch.Size) else weight
        return 2 * math.prod(x[:-1]) * sum(math.prod(w) for w in weights if len(w) == 2)

    def recurrent_backward(*given: Any, **_: Any) -> int:
        return 2 * recurrent(*given)

    aten = torch.ops.aten
    name = "_scaled_dot_product_flash_attention_for_cpu"
    known: dict[str, Any] = {name: forward, f"{name}_backward": backward}
    for layer in ("mkldnn_rnn_layer", "_cudnn_rnn"):
        known |= {layer: recurrent, f"{layer}_backward": recurrent_backward}
    return {getattr(aten, op): count for op, count in known.items() if hasattr(aten, op)}
