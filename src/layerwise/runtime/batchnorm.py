"""BatchNorm over the parts that replicas have of a batch."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerwise.errors import InputError


def share_statistics(module: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Let every BatchNorm in `module` become an `nn.SyncBatchNorm` of the group.

    In place, where `nn.SyncBatchNorm.convert_sync_batchnorm` makes new modules: the model that was
    cut, its blocks and their parts all hold the same ones. Weights, statistics and names stay.
    """
    for found in module.modules():
        if isinstance(found, _BatchNorm):
            found.__class__ = nn.SyncBatchNorm
            found.process_group = group  # pyrefly: ignore  # it is an nn.SyncBatchNorm now


def check_shared_statistics(device: str, replicas: int) -> None:
    """Refuse where `nn.SyncBatchNorm` cannot run, or there is nothing to share."""
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
