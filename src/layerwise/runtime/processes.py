"""Processes that train together: how they start, find each other and end."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from layerwise.errors import InputError, Interrupted, reason
from layerwise.runtime.link import PATIENCE_S, losing, slices
from layerwise.runtime.watch import Watch, launcher

T = TypeVar("T")
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
HOSTED = "TORCHELASTIC_USE_AGENT_STORE"  # whether the launcher holds the store, not rank 0
LAST_PORT = 65535


def started_together() -> bool:
    """Whether a launcher such as `torchrun` started this process as one of a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def check_environment() -> None:
    """Refuse environment variables with which processes cannot find each other.

    Raises:
        InputError: a variable is missing, no number, out of range or an address that no machine
            has.
    """
    if not started_together():
        for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
            if os.environ.get(name, "") not in ("", "0" if name == "RANK" else "1"):
                raise InputError(
                    f"{name}={os.environ[name][:60]}: the environment variable {other} is "
                    f"missing; let torchrun set both, or unset {name}"
                )
        return
    rank()
    restarts()
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise InputError(
                f"RANK={rank()} WORLD_SIZE={world_size()}: the environment variable {name} is "
                "missing; let torchrun set all of them, or unset RANK and WORLD_SIZE"
            )
    if _number("MASTER_PORT", 1) > LAST_PORT:
        raise InputError(
            f"MASTER_PORT={os.environ['MASTER_PORT']}: ports are numbered from 1 to {LAST_PORT}; "
            "let torchrun set it"
        )
    address = os.environ["MASTER_ADDR"]
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"MASTER_ADDR={address[:60]}: no machine has this address: {reason(error)}; give "
            "the host of rank 0"
        ) from error


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
            f"{name}={text[:60]}: the environment variable is not a whole number of at "
            f"least {least}; let torchrun set it, or unset it"
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
    check_environment()
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
    """The accelerator of this process. Several processes have one each, in the order of their
    numbers on this machine, or share the one that is named (`cuda:0`).

    Raises:
        InputError: this machine has more processes than accelerators.
    """
    kind, _, index = device.partition(":")
    if world_size() == 1 or kind == "cpu" or index or not torch.accelerator.is_available():
        return device
    if kind == "auto":
        current = torch.accelerator.current_accelerator()
        kind = "cpu" if current is None else current.type
    number = _number("LOCAL_RANK", 0) if "LOCAL_RANK" in os.environ else 0
    count = torch.accelerator.device_count()
    if number >= count:
        raise InputError(
            f"--device {device}: this machine has {count} of them for more processes; start fewer, "
            f"or let them share one: --device {kind}:0"
        )
    return f"{kind}:{number}"


@contextlib.contextmanager
def together(device: torch.device, timeout_s: float) -> Iterator[Watch | None]:
    """Within, this process is connected to the processes that were started together with it, if
    there are any, at the address in `torchrun`'s environment variables.

    Args:
        device: device on which this process trains.
        timeout_s: seconds without an answer before another process counts as lost. A collective may
            take at least `PATIENCE_S`.

    Yields:
        The watch over the other processes; None if there are none. It ends this process with exit
        code 1 if one of them is lost.

    Raises:
        InputError: the processes cannot connect: a port is in use, an address cannot be reached, or
            one of them is missing.
    """
    if not started_together():
        yield None
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    hosted = os.environ.get(HOSTED) == "True"
    if launcher() is None and rank() > 0:
        _reach_store(timeout_s)
    watch = Watch(rank(), world_size(), restarts(), timeout_s, hosted)
    try:
        _meet(device, timeout_s, hosted)
        try:
            yield watch
        except Interrupted:  # all stop together; after any other error some may be gone already
            watch.close()
            dist.destroy_process_group()
            raise
        watch.close()
        dist.destroy_process_group()
    finally:
        watch.close()


def _reach_store(timeout_s: float) -> None:
    """Wait until something answers at MASTER_ADDR and MASTER_PORT. PyTorch would do so with pages
    of C++ frames on stderr.

    Raises:
        InputError: nothing answers within `timeout_s`.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    said = ""
    for wait_s in slices(timeout_s):
        try:
            socket.create_connection((address, port), timeout=wait_s).close()
            return
        except OSError as error:
            said = reason(error)
            if not isinstance(error, TimeoutError):  # that one has waited
                time.sleep(wait_s)
    raise InputError(_did_not_meet(f"nothing answers there within {timeout_s:g} s: {said}"))


def _did_not_meet(why: str) -> str:
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return (
        f"rank {rank()} of {world_size()} did not meet the others at {where}: {why}; start all of "
        "them, with a longer --timeout if some start late; or give torchrun another "
        "--master-port, or --rdzv-endpoint HOST:PORT that all can reach"
    )


def _meet(device: torch.device, timeout_s: float, hosted: bool) -> None:
    """Connect to the other processes.

    Raises:
        InputError: as `together`.
    """
    # Collectives take their time, even if stages give each other little. So may the start, where a
    # launcher looks after the processes.
    patient_s = max(timeout_s, PATIENCE_S)
    start_s = patient_s if hosted else timeout_s
    try:
        store, number, count = next(
            dist.rendezvous("env://", timeout=datetime.timedelta(seconds=start_s))
        )
        # A store may outlive its processes; restarted ones must not read what those before wrote.
        store = dist.PrefixStore(f"start-{restarts()}", store)
        dist.init_process_group(
            "gloo",  # only gradients go by NCCL, in groups of their own (`backend_of_gradients`)
            store=store,
            rank=number,
            world_size=count,
            timeout=datetime.timedelta(seconds=patient_s),
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(_did_not_meet(reason(error).rstrip("."))) from error


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
