"""BatchNorm over the parts of a batch in different replicas."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerwise.errors import InputError


def share_statistics(module: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Turn every BatchNorm in `module` into an `nn.SyncBatchNorm` of the group.

    This happens in place (`nn.SyncBatchNorm.convert_sync_batchnorm` makes new modules), because the
    model that was cut, its blocks and their parts all hold the same modules. Weights, statistics
    and names stay.
    """
    for found in module.modules():
        if isinstance(found, _BatchNorm):
            found.__class__ = nn.SyncBatchNorm
            found.process_group = group  # pyrefly: ignore  # it is an nn.SyncBatchNorm now


def check_shared_statistics(device: str, replicas: int) -> None:
    """Refuse to share statistics where `nn.SyncBatchNorm` cannot run or would change nothing.

    Raises:
        InputError: there is one replica, or the device is the CPU.
    """
    if replicas == 1:
        raise InputError(
            "--sync_batchnorm true: there is one replica, which sees whole batches; give "
            "--replicas, or leave it out"
        )
    if device == "cpu":
        raise InputError(
            "--sync_batchnorm true: torch shares BatchNorm's statistics on accelerators only, and "
            "this is the CPU; leave it out, or use a network without BatchNorm"
        )
