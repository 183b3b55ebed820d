"""What the C library does with memory that tensors on the CPU have freed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import sys
from pathlib import Path

# Parameters of mallopt(3), and values with which no memory is returned.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
KEEP = {MMAP_MAX: 0, TRIM_THRESHOLD: -1, TOP_PAD: 64 << 20}

_keeps = False


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensors, instead of returning large pieces of it to
    the system, which has to fill each page with zeros again.

    This holds for the whole process from now on, and cannot be undone: glibc's defaults, which
    change with the tensors that are freed, cannot be set again. The process then has the memory of
    its largest moment until it ends.

    Returns:
        Whether it does. It does not on other systems, nor where another allocator is loaded or the
        environment sets one of glibc's parameters.
    """
    global _keeps
    _keeps = _keeps or (_is_free() and _set(KEEP))
    return _keeps


def allocator() -> str:
    """The allocator of this process, for the record of a result."""
    if _keeps:
        return "glibc, keeps freed memory"
    given = [name for name in sorted(os.environ) if re.match("MALLOC_|GLIBC_TUNABLES", name)]
    name = _loaded() or platform.libc_ver()[0] or platform.system()
    return ", ".join([name, *(f"{g}={os.environ[g]}" for g in given)])


def _is_free() -> bool:
    """Whether glibc's allocator is used, with its defaults."""
    return sys.platform == "linux" and allocator() == "glibc"


def _loaded() -> str | None:
    """An allocator other than the C library's that is loaded."""
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError):
        found = re.search(r"lib(jemalloc|tcmalloc|mimalloc)", Path("/proc/self/maps").read_text())
        return found[1] if found else None
    return None


def _set(parameters: dict[int, int]) -> bool:
    try:
        libc = ctypes.CDLL(None)
        return all(libc.mallopt(name, value) for name, value in parameters.items())
    except (OSError, AttributeError):
        return False
