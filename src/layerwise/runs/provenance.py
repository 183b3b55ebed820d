"""Where a result comes from: the command, the versions and the machine that made it."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from layerwise.runs.allocator import allocator
from layerwise.version import VERSION


def provenance() -> dict[str, Any]:
    """The command as it was typed, the versions and the machine, without host name and paths."""
    return {
        "command": _command(),
        "layerwise": VERSION,
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "allocator": allocator(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _command() -> str:
    program, *arguments = sys.argv
    path = Path(program)
    if path.suffix == ".py":
        path = path.absolute()
    typed = ["python", f"{path.parent.name}/{path.name}"] if path.suffix == ".py" else [path.name]
    typed = ["layerwise"] if path.name == "__main__.py" else typed
    return shlex.join([*typed, *map(_without_directories, arguments)])


def _without_directories(argument: str) -> str:
    """`--out=/a/b` as `--out=b`, `hf:/a/b` as `hf:b`."""
    option, value = re.fullmatch(r"(.*[=:])?(.*)", argument, re.DOTALL).groups("")  # type: ignore[union-attr]
    return f"{option}{Path(value).name if Path(value).is_absolute() else value}"


def _cpu() -> str:
    if sys.platform == "linux":
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()
