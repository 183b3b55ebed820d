"""A pretended accelerator, which finds what would break on a real one, on a machine without any.

Its tensors say that they are on the device `pretend:0`, hold a tensor of the CPU, and compute
there, so that results are the CPU's to the bit. Like CUDA it refuses an operation on tensors of two
devices. With `Accelerator.forbids_waiting`
it also refuses what would make the host wait for the device.

PyTorch registers such a device for the whole process, so it needs a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

aten = torch.ops.aten
NAME = "pretend"
# Copies, which may join two devices.
COPIES = {aten._to_copy.default, aten.copy_.default, aten._has_compatible_shallow_copy_type.default}
# The host needs the result, or its shape depends on values.
WAIT = {
    getattr(aten, name)
    for name in (
        *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim"),
        *("_unique", "_unique2", "unique_consecutive", "bincount", "histc", "_linalg_svd"),
        *(
            "_linalg_eigh",
            "linalg_inv_ex",
            "linalg_cholesky_ex",
            "multinomial",
            "repeat_interleave",
        ),
    )
}


class Refused(RuntimeError):
    """An accelerator would refuse this operation, or wait for it."""


class Held(Tensor):
    """A tensor on the pretended device."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> Held:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Accelerator.run(func, args, kwargs or {})


class Accelerator(TorchDispatchMode):
    """A context in which the pretended device exists."""

    waiting_forbidden = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    @classmethod
    @contextlib.contextmanager
    def forbids_waiting(cls) -> Iterator[None]:
        """A context in which the host may not wait for the device."""
        cls.waiting_forbidden = True
        try:
            yield
        finally:
            cls.waiting_forbidden = False

    @classmethod
    def run(cls, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        held = [t for t in tensors if isinstance(t, Held)]
        device = kwargs.get("device")
        here = bool(held) if device is None else torch.device(device).type == NAME
        if func not in COPIES:
            cls.refuse_mixed(func, tensors)
        if held and func.overloadpacket in WAIT:
            cls.wait(func)
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            masks = [t for t in args[1] if t is not None and t.dtype in (torch.bool, torch.uint8)]
            # One number for all places needs no list of places.
            if masks and not (func.overloadpacket is not aten.index and args[2].dim() == 0):
                cls.wait(func)
        crosses = bool(held) != here or len(held) != len(tensors) if func in COPIES else False
        if crosses and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True)):
            cls.wait(func)
        if device is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if func is aten._efficientzerotensor.default:  # it has no memory, which a wrapper must have
            func = aten.zeros.default
        args_, kwargs_ = tree_map(_inner, (args, kwargs))
        out = func(*args_, **kwargs_)
        if func.overloadpacket is aten.copy_:
            return args[0]
        known = {id(t.held): t for t in held}

        def outer(value: Any) -> Any:
            if not (here and isinstance(value, Tensor)):
                return value
            return known[id(value)] if id(value) in known else Held(value)

        return tree_map(outer, out)

    @classmethod
    def refuse_mixed(cls, func: Any, tensors: list[Tensor]) -> None:
        numbers = func.overloadpacket not in (aten.cat, aten.stack)
        kinds = {isinstance(t, Held) for t in tensors if t.dim() or not numbers}
        if len(kinds) > 1 or (kinds == {False} and any(isinstance(t, Held) for t in tensors)):
            raise Refused(f"{func}: tensors on two devices, {[t.device.type for t in tensors]}")

    @classmethod
    def wait(cls, func: Any) -> None:
        if cls.waiting_forbidden:
            raise Refused(f"{func}: the host waits for the device")


def _inner(value: Any) -> Any:
    return value.held if isinstance(value, Held) else value


class _Kind(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, _TRUE)


_TRUE = torch.Generator


class _Generator(metaclass=_Kind):
    """`torch.Generator`, also for the pretended device: one of the CPU's."""

    def __new__(cls, device: Any = "cpu") -> Any:
        device = torch.device(device)
        return _TRUE("cpu" if device.type == NAME else device)


def _tensor(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor`, which does not dispatch: made on the CPU and copied, as for CUDA."""

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        made = make(data, **options)
        return made if device is None else made.to(device)

    return tensor


class _Module(_DummyBackendModule):
    """`torch.pretend`, as `torch.cuda`. Random numbers come from the CPU's generator, so the device
    has no state of its own."""

    class device(contextlib.nullcontext):
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        pass


def register() -> None:
    """Register the device with PyTorch, in this process."""
    _setup_privateuseone_for_python_backend(rename=NAME, backend_module=_Module())
    # Parameters stay the same objects when a module moves, as on CUDA.
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.accelerator.synchronize = lambda device=None: None
    torch.tensor = _tensor(torch.tensor)
    torch.Generator = _Generator  # type: ignore[assignment, misc]


def leave(code: int) -> None:
    """End the process; the thread of such a device cannot end as others do."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
