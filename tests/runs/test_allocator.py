"""The C library's allocator, in processes of their own, because it cannot be set back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

GLIBC = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
CODE = """
import resource
from layerwise.runs.allocator import allocator, keep_freed_memory

print(allocator())
print(keep_freed_memory())
print(allocator())
for _ in range(3):
    bytearray(64 << 20)  # below glibc's largest threshold it would not be returned anyway
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    bytes(bytearray(64 << 20))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment: str) -> list[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(not GLIBC, reason="glibc's allocator alone can be told")
def test_freed_memory_is_kept():
    before, kept, after, faults = run()
    assert (before, kept, after) == ("glibc", "True", "glibc, keeps freed memory")
    piece = (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert int(faults) < 3 * piece  # 16 pieces if each were returned


@pytest.mark.skipif(not GLIBC, reason="glibc's allocator alone can be told")
def test_what_the_environment_sets_is_left():
    before, kept, after, _ = run(MALLOC_TOP_PAD_="65536")
    assert before == after == "glibc, MALLOC_TOP_PAD_=65536"
    assert kept == "False"
