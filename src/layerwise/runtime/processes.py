"""Processes that train together: finding each other, starting, and ending together."""

from __future__ import annotations

import datetime
import logging
import os
import signal
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from layerwise.errors import InputError, LostStage, reason


def world_size() -> int:
    """How many processes were started together; 1 where this one is alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This one's number among them."""
    return int(os.environ.get("RANK", "0"))


def restarts() -> int:
    """How often they were started again after one had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def join(device: torch.device, timeout_s: float) -> None:
    """Meet the processes that were started together (`torchrun`'s variables say where).

    Raises:
        InputError: they do not meet: a port in use, an address that cannot be reached, one of them
            missing.
    """
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InputError(
            f"rank {rank()} of {world_size()} did not meet the others at {where}: {reason(error)}; "
            "give torchrun another --master-port, or --rdzv-endpoint HOST:PORT that all can reach"
        ) from error


def leave() -> None:
    """The end of `join`; also after an error, when others may be gone already."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launch(arguments: Sequence[str], processes: int, restarts: int = 0) -> int:
    """Run `python -m layerwise ARGUMENTS` in as many processes, on this machine.

    When one fails, all others are ended; with `restarts` left they are all started again.

    Returns:
        The exit code: 0, or that of the process that failed first.

    Raises:
        LostStage: a process was killed.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.1,
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported there
    try:
        elastic_launch(config, sys.executable)("-m", "layerwise", *arguments)
    except ChildFailedError as error:
        failed, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise LostStage(failed, f"it was ended by {name}") from error
        return failure.exitcode
    return 0
