"""`differentiate`: `loss.backward()` for rules."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from layerwise.autocast import is_autocast, without_autocast
from layerwise.blocks.contexts import any_autocast
from layerwise.errors import InputError
from layerwise.objectives.batch import Scale, identity

# True within a step of a network in which several blocks use a tensor that depends on parameters
# only, such as a weight that is computed once.
_KEEPS_GRAPHS: contextvars.ContextVar[bool] = contextvars.ContextVar("keeps graphs", default=False)


@contextlib.contextmanager
def kept_graphs() -> Iterator[None]:
    """Within, `differentiate` keeps the graph of a loss, because another block uses a part of it.
    The graph is freed with the tensors that hold it."""
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
    """Do `scale(loss).backward()`: add the gradient of the scaled loss to `.grad` of the leaves.

    As PyTorch recommends, this runs outside autocast. Nothing happens if no leaf needs a gradient.

    Args:
        loss: the loss, (); or, together with `gradient`, any tensor.
        scale: applied to the loss or to `gradient`; a rule passes `batch.scale`.
        gradient: the gradient with respect to `loss`, in its shape, from which the pass starts.
        inputs: the leaves whose `.grad` is filled; by default all leaves that require grad.
        retain: keep the graph, so that it can be differentiated again.
        also: further tensors with their gradients, for the same pass; these are not scaled.

    Raises:
        InputError: gradients are off.
    """
    refuse_without_gradients()
    if gradient is None and inputs is None and not also and not any_autocast():
        # Nearly every block. The general case below has lists and names of devices to make.
        if loss.requires_grad:
            scale(loss).backward(retain_graph=retain or _KEEPS_GRAPHS.get())
        return
    wanted = None if inputs is None else [tensor for tensor in inputs if tensor.requires_grad]
    if loss.requires_grad and wanted != []:
        with without_autocast(loss.device):
            if gradient is None:
                loss = scale(loss)
            else:
                gradient = scale(gradient).to(loss.dtype)
                if loss.dim() == 4 and loss.is_contiguous(memory_format=torch.channels_last):
                    # Otherwise every operation of the backward pass copies into this format.
                    gradient = gradient.contiguous(memory_format=torch.channels_last)
            more = [(tensor, g) for tensor, g in also if tensor.requires_grad]
            torch.autograd.backward(
                [loss, *(tensor for tensor, _ in more)],
                [gradient, *(g for _, g in more)],  # type: ignore[arg-type]
                retain_graph=retain or _KEEPS_GRAPHS.get(),
                inputs=wanted,
            )
    forget_casts(loss.device)


def refuse_without_gradients() -> None:
    """Refuse a step while gradients are off. `differentiate` does this itself; a rule that does not
    call it, because it sets `.grad` by other means, calls this.

    Raises:
        InputError: gradients are off.
    """
    if not torch.is_grad_enabled():
        raise InputError(
            "backward(x, y): called while gradients are off; call it outside torch.no_grad() and "
            "torch.inference_mode()"
        )


def forget_casts(device: torch.device) -> None:
    """Clear the weights that autocast has cast. It keeps them until its context ends, so it would
    use old weights after an optimizer step within the context. `differentiate` does this itself; a
    rule that does not call it calls this at the end of its step."""
    if is_autocast(device):
        torch.clear_autocast_cache()
