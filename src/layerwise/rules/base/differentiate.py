"""`loss.backward()` as the rules call it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from layerwise.errors import InputError
from layerwise.objectives.batch import Scale, identity

# Within a step of a network of which several blocks use a tensor that depends on parameters alone.
_KEEPS_GRAPHS: contextvars.ContextVar[bool] = contextvars.ContextVar("keeps graphs", default=False)


@contextlib.contextmanager
def kept_graphs() -> Iterator[None]:
    """Within, differentiating a loss leaves its graph: a part of it is another block's, too. The
    graph goes with the tensors that have it."""
    token = _KEEPS_GRAPHS.set(True)
    try:
        yield
    finally:
        _KEEPS_GRAPHS.reset(token)


def differentiate(
    loss: Tensor,
    scale: Scale = identity,
    gradient: Tensor | None = None,
    inputs: Sequence[Tensor] | None = None,
    retain: bool = False,
    also: Iterable[tuple[Tensor, Tensor]] = (),
) -> None:
    """`scale(loss).backward()` as PyTorch asks for it: outside autocast, and only where some
    parameter wants it.

    Args:
        loss: (), or any tensor whose `gradient` is given.
        scale: of the loss, or of its gradient.
        gradient: of what is minimised with respect to `loss`, its shape.
        inputs: the leaves whose `.grad` is wanted; by default all there are.
        retain: keep the graph, to be differentiated again.
        also: further tensors and their gradients, in the same pass; they are not scaled.
    """
    refuse_without_gradients()
    wanted = None if inputs is None else [tensor for tensor in inputs if tensor.requires_grad]
    if loss.requires_grad and wanted != []:
        with without_autocast(loss.device):
            if gradient is None:
                loss = scale(loss)
            else:
                gradient = scale(gradient).to(loss.dtype)
                if loss.dim() == 4 and loss.is_contiguous(memory_format=torch.channels_last):
                    # Else every operation on the way back copies into the other format.
                    gradient = gradient.contiguous(memory_format=torch.channels_last)
            more = list(also)
            torch.autograd.backward(
                [loss, *(tensor for tensor, _ in more)],
                [gradient, *(g for _, g in more)],  # type: ignore[arg-type]
                retain_graph=retain or _KEEPS_GRAPHS.get(),
                inputs=wanted,
            )
    forget_casts(loss.device)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Outside autocast; where it is off anyway, at no cost."""
    if not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def refuse_without_gradients() -> None:
    """Refuse a step where gradients are off."""
    if not torch.is_grad_enabled():
        raise InputError(
            "backward(x, y): called where gradients are off; call it outside torch.no_grad() and "
            "torch.inference_mode()"
        )


def forget_casts(device: torch.device) -> None:
    """Autocast keeps the weights it cast until its context ends, and would go on using them after a
    step inside the context."""
    if torch.is_autocast_enabled(device.type):
        torch.clear_autocast_cache()
