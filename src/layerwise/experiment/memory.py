"""A bound on the weights of what is made from options: those that no memory holds are refused
before they are filled."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from layerwise.errors import InputError

MOST_TENSORS = 50_000
CGROUP = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def bounded(call: str) -> Iterator[None]:
    """Within, modules are refused as soon as their weights take more than the memory that is free,
    or are more than `MOST_TENSORS`.

    PyTorch registers a parameter before it writes to its memory, so little is used until then.

    Args:
        call: what makes them, for errors.

    Raises:
        InputError: too many or too large weights.
    """
    memory, tensors, total = _memory(), 0, 0

    def registered(module: nn.Module, name: str, parameter: Tensor) -> None:
        nonlocal tensors, total
        if not isinstance(parameter, nn.Parameter) or is_lazy(parameter):
            return
        tensors, total = tensors + 1, total + parameter.numel() * parameter.element_size()
        if tensors > MOST_TENSORS:
            raise InputError(f"{call}: more than {MOST_TENSORS} weights; give fewer layers")
        if total > memory:
            raise InputError(too_large)

    too_large = (
        f"{call}: the weights take more than this machine's free memory, {memory / 2**30:.1f} GiB; "
        "give smaller sizes"
    )
    hook = register_module_parameter_registration_hook(registered)
    try:
        yield
    except MemoryError as error:
        raise InputError(too_large) from error
    except RuntimeError as error:
        if "allocate memory" in str(error) or "not enough memory" in str(error):
            raise InputError(too_large) from error
        raise
    finally:
        hook.remove()


def _memory() -> float:
    """The memory that this process may still use, bytes; infinite where it is not known."""
    limits = [float("inf")]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(line for line in lines if line.startswith("MemAvailable:"))
        limits.append(int(free.split()[1]) * 1024)
    with contextlib.suppress(AttributeError, OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):
        limits.append(int((CGROUP / "memory.max").read_text()))
    return min(limits)
