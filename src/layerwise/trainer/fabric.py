"""Lightning Fabric for a device and a precision.

Only what trains or evaluates imports this module, because Lightning Fabric takes as long to import
as PyTorch.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any, Literal

from layerwise.errors import InputError, reason
from layerwise.trainer.device import device_for
from layerwise.trainer.settings import Precision


@contextlib.contextmanager
def _version_alone(name: str) -> Iterator[None]:
    """Within, a module that is not imported yet has a version and nothing else."""
    module = ModuleType(name)
    module.__dict__["__version__"] = metadata.version(name)
    mine = sys.modules.setdefault(name, module) is module
    try:
        yield
    finally:
        if mine:
            del sys.modules[name]


# Lightning Fabric imports TorchMetrics for its version, and with it come SciPy, torchvision,
# Transformers and Matplotlib where they are installed, which take longer than Lightning Fabric.
with _version_alone("torchmetrics"):
    from lightning_fabric import Fabric

FABRIC_PRECISION: dict[Precision, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "auto": "32-true",
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}

# It would say of bf16 what a run's own line says, also before an error.
logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)


def fabric_for(device: str, precision: Precision = "32") -> Fabric:
    """Lightning Fabric on one device.

    Args:
        device: a name, as `device_for` takes it.
        precision: 32, bf16 or 16 (mixed); auto, which a training resolves before, stands for 32.

    Raises:
        InputError: this machine has no such device, or the device does not support this precision.
    """
    found = device_for(device)
    kind = found.type
    if kind == "cpu" and precision == "16":
        raise InputError(
            f"--precision 16 --device {kind}: float16 needs an accelerator; give bf16 or 32"
        )
    devices: Any = [found.index] if kind not in ("cpu", "mps") else 1
    try:
        return Fabric(accelerator=kind, devices=devices, precision=FABRIC_PRECISION[precision])
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--precision {precision} --device {device}: {reason(error)}") from error
