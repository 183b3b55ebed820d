"""Everything works on a device other than the CPU, and no step waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def _check(*networks: str) -> None:
    """The checks of `on_pretended_device.py`, which need a process of their own."""
    found = subprocess.run(
        [sys.executable, str(TESTS / "on_pretended_device.py"), *networks],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stdout + found.stderr[-2000:]


def test_a_pretended_accelerator() -> None:
    _check()


@pytest.mark.slow
def test_a_pretended_accelerator_with_all_networks() -> None:
    _check("mlp", "cnn", "resnet", "transformer")
