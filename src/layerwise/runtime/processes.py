"""Processes that train together: how they start, find each other and end."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from layerwise.errors import InputError, Interrupted, LostStage, reason
from layerwise.runtime.link import losing

T = TypeVar("T")
PATIENCE_S = 300.0
RESTARTS = "TORCHELASTIC_RESTART_COUNT"


def started_together() -> bool:
    """Whether a launcher such as `torchrun` started this process as one of a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def world_size() -> int:
    """The number of processes that were started together; 1 for a process on its own."""
    return _number("WORLD_SIZE", 1) if started_together() else 1


def rank() -> int:
    """The number of this process among those started together, from 0."""
    number = _number("RANK", 0) if started_together() else 0
    if number >= world_size():
        raise InputError(
            f"RANK={number}: WORLD_SIZE={world_size()} processes are numbered from 0 to "
            f"{world_size() - 1}; let torchrun set both"
        )
    return number


def _number(name: str, least: int) -> int:
    """A whole number in an environment variable."""
    text = os.environ[name]
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise InputError(
            f"{name}={text}: the environment variable is not a whole number of at least {least}; "
            "let torchrun set it, or unset it"
        )
    return int(text)


def leads() -> bool:
    """Whether this process keeps the run's files and prints for all: the last, or the only one."""
    return rank() == world_size() - 1


def restarts() -> int:
    """How often the processes were started again after one had failed."""
    return _number(RESTARTS, 0) if RESTARTS in os.environ else 0


def resolve(runtime: str, stages: int | None, replicas: int) -> tuple[str, int | None]:
    """The runtime that `auto` stands for here, and its number of stages.

    Args:
        runtime: "auto", "serial", or the name of another runtime.
        stages: number of stages asked for; None if it was not given.
        replicas: number of replicas of each stage.

    Returns:
        The runtime's name, and the number of stages; None if this process trains alone.

    Raises:
        InputError: the arguments contradict each other or the number of processes that were started
            together.
    """
    together, world = started_together(), world_size()
    for name, value in (("stages", stages), ("replicas", replicas)):
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: give at least 1")
    several = stages is not None or replicas > 1
    if runtime == "auto":
        runtime = "layer_parallel" if world > 1 or several else "serial"
    if runtime == "serial":
        if several:
            raise InputError(
                f"--stages {stages} --replicas {replicas} contradicts --runtime serial: they ask "
                "for several processes; leave one out"
            )
        if world > 1:
            raise InputError(
                f"--runtime serial contradicts {world} processes started together: each would "
                "train the same; leave one out"
            )
        return runtime, None
    if not several and not together:
        raise InputError("--runtime layer_parallel: into how many processes? give --stages N")
    if stages is None:
        stages = max(1, world // replicas) if together else 1
    if together and world != stages * replicas:
        raise InputError(
            f"--stages {stages} --replicas {replicas} contradicts {world} processes started "
            f"together; start {stages * replicas}"
        )
    return runtime, stages


def local_device(device: str) -> str:
    """The accelerator of this process, if each of several on this machine has one of its own;
    otherwise `device` as it is."""
    kind, _, index = device.partition(":")
    if world_size() == 1 or kind == "cpu" or not torch.accelerator.is_available():
        return device
    if kind == "auto":
        current = torch.accelerator.current_accelerator()
        kind = "cpu" if current is None else current.type
    return f"{kind}:{os.environ.get('LOCAL_RANK', index or '0')}"


@contextlib.contextmanager
def together(device: torch.device, timeout_s: float) -> Iterator[bool]:
    """Within, this process is connected to the processes that were started together with it, if
    there are any, at the address in `torchrun`'s environment variables.

    Args:
        device: device on which this process trains.
        timeout_s: seconds that a collective may take; at least `PATIENCE_S` are given.

    Yields:
        Whether this process keeps the run's files: the last one, or the only one.

    Raises:
        InputError: the processes cannot connect: a port is in use, an address cannot be reached, or
            one of them is missing.
    """
    if not started_together():
        yield True
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Starting up and collectives take their time, even if stages give each other little.
    timeout = datetime.timedelta(seconds=max(timeout_s, PATIENCE_S))
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=timeout))
        # A store may outlive its processes; restarted ones must not read what those before wrote.
        store = dist.PrefixStore(f"start-{restarts()}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=number, world_size=count, timeout=timeout
        )
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InputError(
            f"rank {rank()} of {world_size()} did not meet the others at {where}: {reason(error)}; "
            "give torchrun another --master-port, or --rdzv-endpoint HOST:PORT that all can reach"
        ) from error
    try:
        yield leads()
    except Interrupted:  # all stop together; after any other error some may be gone already
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def from_leader(make: Callable[[], T]) -> T:
    """Call `make` in the process that keeps the run's files, and return its result in every one.

    Raises:
        InputError: in every process, if `make` raises it.
        LostStage: another process is gone.
    """
    if not dist.is_initialized():
        return make()
    found: list[Any] = [None]
    if leads():
        try:
            found = [make()]
        except InputError as error:
            found = [error]
    with losing("a rank"):
        dist.broadcast_object_list(found, src=world_size() - 1)
    if isinstance(found[0], InputError):
        raise found[0]
    return found[0]


def launch(arguments: Sequence[str], processes: int, restarts: int = 0) -> int:
    """Run `python -m layerwise ARGUMENTS` in several processes on this machine.

    If one fails, all others are ended; while `restarts` are left, all are started again.

    Args:
        arguments: of the command line.
        processes: number of processes.
        restarts: how often all may be started again.

    Returns:
        The exit code: 0, or the highest one of the processes that failed.

    Raises:
        LostStage: a process was killed.
        Interrupted: this process was asked to stop, and all others have stopped.
    """
    # Slow to import, and only needed here.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.1,
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported there
    try:
        elastic_launch(config, sys.executable)("-m", "layerwise", *arguments)
    except SignalException as error:
        raise Interrupted("all stages have stopped") from error
    except ChildFailedError as error:
        codes = {number: failure.exitcode for number, failure in error.failures.items()}
        killed = [number for number, code in codes.items() if code < 0 and -code != signal.SIGTERM]
        if killed:  # others, which failed because it was gone, may have been noticed first
            name = signal.Signals(-codes[killed[0]]).name
            raise LostStage(f"rank {killed[0]} is lost: it was ended by {name}") from error
        return max(codes.values())
    return 0
