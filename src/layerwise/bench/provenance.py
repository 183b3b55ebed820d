"""Where a measurement comes from: the command, the machine, the versions."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Provenance:
    """What a reader needs to repeat a measurement. No host name, no path.

    Attributes:
        command: as typed, without directories.
        processor: the CPU's model, and the accelerator's where one is used.
        cores: CPUs that the machine shows.
        threads: that torch computes with.
        python, torch, layerwise: versions.
    """

    command: str
    processor: str
    cores: int
    threads: int
    python: str
    torch: str
    layerwise: str

    @classmethod
    def here(cls, device: torch.device) -> Provenance:
        """This process's, computing on `device`."""
        from layerwise import __version__

        processor = _cpu()
        if device.type == "cuda":
            processor += f" + {torch.cuda.get_device_name(device)}"
        return cls(
            command=_command(sys.argv),
            processor=processor,
            cores=os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            python=platform.python_version(),
            torch=torch.__version__,
            layerwise=__version__,
        )

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)


def _command(argv: list[str]) -> str:
    program, *arguments = argv or [""]
    name = Path(program).name
    name = f"python benchmarks/{name}" if name.endswith(".py") else name
    shortened = (Path(a).name if Path(a).is_absolute() else a for a in arguments)
    return " ".join([name, *shortened])


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
