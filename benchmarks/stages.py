"""Blocks in two processes against other ways to train the same network on two cores.

    python benchmarks/stages.py vgg8b           images/s: stages, serial, pipelines, DDP, threads
    python benchmarks/stages.py resnet56        the same
    python benchmarks/stages.py transformer     sequences/s, the same; transformer-16: with batches
                                                of 16, where fixed costs weigh more
    python benchmarks/stages.py link            the loss over a link of 1 Gb/s (root, Linux)

All contenders are alive at once, each process pinned to its core, and they take turns: compare only
ratios within a round. A turn does not count the time in which stages fill. For all contenders
alike, glibc keeps freed memory during a turn, which is worth up to a quarter of a step. Results are
`results/stages-*.json`. The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import (
    ScheduleDualPipeV,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import layerwise as lw
from layerwise import models
from layerwise.blocks.balance import partition
from layerwise.costs.pipelines import DELAYED, pipelined
from layerwise.costs.stages import Plan
from layerwise.runs.provenance import provenance
from layerwise.runtime import LayerParallel, StepOptions

RESULTS = Path(__file__).parent / "results"
MICROBATCHES = 8
KEEP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
LIBC = ctypes.CDLL(None, use_errno=True)
LEAD, TRAIL = (
    2,
    1,
)  # steps before and after the timed ones, so that all stages are busy during these


class Pooled(nn.Module):
    """Class scores from the mean over a sequence."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.scores = nn.Linear(width, classes)

    def forward(self, h: Tensor) -> Tensor:
        return self.scores(h.mean(1))


def transformer() -> nn.Sequential:
    """A transformer with 8 layers of width 256 on tokens."""
    layers = [
        nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True, norm_first=True)
        for _ in range(8)
    ]
    return nn.Sequential(nn.Embedding(1000, 256), *layers, Pooled(256, 10))


@dataclass(frozen=True)
class Network:
    """The network and batch that all contenders train.

    Attributes:
        make: makes the network.
        input: makes a batch of the given size.
        batch: samples per step, over all processes.
        blocks: local blocks.
        unit: name of the samples.
    """

    make: Callable[[], nn.Module]
    input: Callable[[int], Tensor]
    batch: int
    blocks: int | str
    unit: str

    def data(self) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        return self.input(self.batch), torch.randint(10, (self.batch,))

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()


NETWORKS = {
    "vgg8b": Network(models.vgg8b, lambda n: torch.randn(n, 3, 32, 32), 128, "all", "images"),
    "resnet56": Network(models.resnet56, lambda n: torch.randn(n, 3, 32, 32), 128, 14, "images"),
    "transformer": Network(
        transformer, lambda n: torch.randint(1000, (n, 128)), 64, 2, "sequences"
    ),
    "transformer-16": Network(
        transformer, lambda n: torch.randint(1000, (n, 128)), 16, 2, "sequences"
    ),
}
HEAD = lw.heads.Linear(pool=2)

Step = Callable[[], object]


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True)


def end_to_end(
    network: Network, model: nn.Module, x: Tensor, y: Tensor, segments: int = 0, micro: int = 1
) -> Step:
    """Backpropagation over micro-batches, with activation checkpointing if `segments` is not 0."""
    optimizer = optimizer_of(model.parameters())
    parts = list(zip(x.chunk(micro), y.chunk(micro), strict=True))

    def step() -> None:
        for x, y in parts:
            if segments:
                scores = torch.utils.checkpoint.checkpoint_sequential(
                    model, segments, x, use_reentrant=False
                )
            else:
                scores = model(x)
            (cross_entropy(scores, y) / len(parts)).backward()
        optimizer.step()
        optimizer.zero_grad()

    step.held = model  # type: ignore[attr-defined]
    return step


def local(network: Network, x: Tensor, y: Tensor, starts: list[int], delayed: bool = False) -> Step:
    """The local rule, or backpropagation with delayed gradients, with a stage for each of `starts`;
    in this process alone without any."""
    blocks = lw.cut(network.model(), blocks="all" if delayed else network.blocks, example=x[:2])
    rule = lw.rules.DelayedGradient(blocks) if delayed else lw.rules.DGL(blocks, head=HEAD)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        rule = rule.to(memory_format=torch.channels_last)
    runtime = LayerParallel(rule, starts) if starts else rule
    own = runtime.blocks if isinstance(runtime, LayerParallel) else range(len(blocks))
    optimizers = {i: optimizer_of(rule.parameters_of(i)) for i in own}

    def finish(i: int) -> None:
        optimizers[i].step()
        optimizers[i].zero_grad()

    def step() -> None:
        if isinstance(runtime, LayerParallel):
            runtime.backward(x, y, StepOptions(on_block=finish))
        else:
            runtime.backward(x, y, on_block=finish)

    step.held = rule  # type: ignore[attr-defined]
    return step


def pipeline(
    network: Network, x: Tensor, y: Tensor, schedule: Any, starts: list[int], numbers: list[int]
) -> Step:
    """A schedule of torch's pipelines; this process holds the stages with these `numbers`."""
    layers = list(lw.cut(network.model(), blocks="all", example=x[:2]))
    ends = [*starts[1:], len(layers)]
    parts = [nn.Sequential(*layers[a:b]) for a, b in zip(starts, ends, strict=True)]
    h = x[: network.batch // MICROBATCHES]
    inputs = []
    with torch.no_grad():
        for part in parts:
            inputs.append(h)
            h = part(h)
    del h
    stages = [
        PipelineStage(parts[k], k, len(parts), torch.device("cpu"), input_args=(inputs[k],))
        for k in numbers
    ]
    several = len(parts) > dist.get_world_size()
    run = schedule(stages if several else stages[0], MICROBATCHES, loss_fn=cross_entropy)
    optimizer = optimizer_of([p for stage in stages for p in stage.submod.parameters()])
    given = (x,) if 0 in numbers else ()
    target = y if len(parts) - 1 in numbers else None

    def step() -> None:
        run.step(*given, target=target)
        optimizer.step()
        optimizer.zero_grad()

    step.held = nn.ModuleList([parts[k] for k in numbers])  # type: ignore[attr-defined]
    return step


def ddp(network: Network, x: Tensor, y: Tensor) -> Step:
    """Two replicas, each with half of the batch."""
    model = DistributedDataParallel(network.model(), gradient_as_bucket_view=True)
    rank, world = dist.get_rank(), dist.get_world_size()  # a replica holds the whole network
    return end_to_end(network, model, x.chunk(world)[rank].clone(), y.chunk(world)[rank].clone())


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        name: in the table.
        kind: "end_to_end", "local", "delayed", "pipeline" or "ddp".
        processes: how many; each has a core of its own as long as there are free ones.
        threads: of each process.
        options: of the kind.
        channels_last: memory format.
        over: the network namespaces of its processes; None for this machine's own.
    """

    name: str
    kind: str
    processes: int = 1
    threads: int = 1
    options: tuple[Any, ...] = ()
    channels_last: bool = False
    over: str | None = None


V_SHAPED = ("ZBV zero bubble", "DualPipeV")
SCHEDULES = {
    "GPipe": ScheduleGPipe,
    "1F1B": Schedule1F1B,
    "interleaved 1F1B": ScheduleInterleaved1F1B,
    "ZBV zero bubble": ScheduleZBVZeroBubble,
    "DualPipeV": ScheduleDualPipeV,
}


def make_step(network: Network, contender: Contender, rank: int, cuts: dict[str, Any]) -> Step:
    """This process's part of a contender's step."""
    x, y = network.data()
    model = network.model
    if contender.channels_last:
        x = x.to(memory_format=torch.channels_last)
    if contender.kind == "end_to_end":
        made = model()
        if contender.channels_last:
            made = made.to(memory_format=torch.channels_last)
        return end_to_end(network, made, x, y, *contender.options)
    if contender.kind == "ddp":
        return ddp(network, x, y)
    if contender.kind == "local":
        return local(network, x, y, cuts["local"][contender.processes])
    if contender.kind == "delayed":
        return local(network, x, y, cuts["backprop"][contender.processes], delayed=True)
    (name,) = contender.options
    world, ranks = contender.processes, range(contender.processes)
    if name in V_SHAPED:  # each process has a stage on the way down and one on the way up
        numbers = [[k, 2 * world - 1 - k] for k in ranks]
    elif name == "interleaved 1F1B":
        numbers = [[k, k + world] for k in ranks]
    else:
        numbers = [[k] for k in ranks]
    stages = world * len(numbers[0])
    return pipeline(network, x, y, SCHEDULES[name], cuts["backprop"][stages], numbers[rank])


def work(
    connection: Connection,
    network: str,
    contender: Contender,
    rank: int,
    address: tuple[str, int],
    cuts: dict[str, Any],
) -> None:
    """One process of a contender: takes the steps that it is told and sends when each ended."""
    cores = sorted(os.sched_getaffinity(0))
    if contender.threads == 1:
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    if contender.over is not None:
        enter(f"{contender.over}{rank}")
    torch.set_num_threads(contender.threads)
    if contender.processes > 1:
        host, port = address
        store = dist.TCPStore(host, port, contender.processes, is_master=rank == 0)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=contender.processes)
    step = make_step(NETWORKS[network], contender, rank, cuts)
    connection.send("ready")
    while steps := connection.recv():
        if contender.processes > 1:
            dist.barrier()
        ended = []
        for _ in range(steps):
            step()
            ended.append(time.perf_counter())
        connection.send((ended, peak_bytes(), parameter_bytes(step.held)))  # type: ignore
        LIBC.malloc_trim(0)  # the others need the memory in their turn
    os._exit(0)  # its threads still wait for messages that will not come


def parameter_bytes(held: nn.Module) -> int:
    """Memory of the parameters that a process holds."""
    found = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in held.parameters()}
    return sum(storage.nbytes() for storage in found.values())


def peak_bytes() -> int:
    """This process's largest resident set. `getrusage` would include the parent's."""
    [line] = [s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s]
    return 1024 * int(line.split()[1])


class Running:
    """A contender's processes."""

    def __init__(self, network: str, contender: Contender, cuts: dict[str, Any]):
        self.contender, self.unit = contender, NETWORKS[network].batch
        context = multiprocessing.get_context("spawn")
        os.environ.update(KEEP, OMP_NUM_THREADS=str(contender.threads))
        os.environ.pop("GLOO_SOCKET_IFNAME", None)
        if contender.over is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = INSIDE
        self.connections: list[Connection] = []
        address = (FIRST if contender.over else "127.0.0.1", free_port())
        for rank in range(contender.processes):
            here, there = context.Pipe()
            context.Process(
                target=work, args=(there, network, contender, rank, address, cuts), daemon=True
            ).start()
            self.connections.append(here)
        for connection in self.connections:
            connection.recv()
        self.rss_bytes = [0] * contender.processes
        self.parameter_bytes = [0] * contender.processes

    def turn(self, steps: int) -> float:
        """Samples per second over `steps` steps, once all processes are busy."""
        streams = self.contender.kind in ("local", "delayed")
        lead, trail = (LEAD, TRAIL) if streams else (1, 0)
        if self.contender.processes == 1:
            lead, trail = 1, 0
        for connection in self.connections:
            connection.send(lead + steps + trail)
        for rank, connection in enumerate(self.connections):
            # Only the last turn's are kept.
            ended, self.rss_bytes[rank], self.parameter_bytes[rank] = connection.recv()
        return steps * self.unit / (ended[lead + steps - 1] - ended[lead - 1])

    def close(self) -> None:
        for connection in self.connections:
            connection.send(0)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def backprop_seconds(network: Network) -> list[float]:
    """Seconds of each layer's forward and backward pass, with the gradient of its input."""
    x, y = network.data()
    x, y = x[: network.batch // MICROBATCHES], y[: network.batch // MICROBATCHES]
    layers = lw.cut(network.model(), blocks="all", example=x[:2])
    rounds = []
    for _ in range(4):
        h, seconds = x, []
        for i, layer in enumerate(layers):
            h = h.detach().requires_grad_(i > 0)
            start = time.perf_counter()
            out = layer(h)
            loss = cross_entropy(out, y) if i == len(layers) - 1 else out.sum()
            loss.backward()
            seconds.append(time.perf_counter() - start)
            h = out
        rounds.append(seconds)
    return [statistics.median(of_layer) for of_layer in zip(*rounds[1:], strict=True)]


def simulated(
    network: Network, contenders: list[Contender], plans: dict[int, Plan]
) -> dict[str, float]:
    """Samples per second that the simulation of `layerwise plan` gives for two processes."""
    layers = [MICROBATCHES * s for s in backprop_seconds(network)]
    found = {}
    for contender in contenders:
        if contender.processes != 2 or contender.channels_last:
            continue
        if contender.kind == "local":
            found[contender.name] = plans[2].images_per_s
        elif contender.kind in ("pipeline", "delayed"):
            schedule = contender.options[0] if contender.options else DELAYED
            micro = MICROBATCHES if contender.options else 1
            one = pipelined(schedule, layers, [0.0] * len(layers), 2, micro)
            found[contender.name] = network.batch / one.seconds
    return found


def plan_cuts(network: Network) -> tuple[dict[str, Any], dict[int, Plan]]:
    """Where each contender divides the network, by times measured here with one thread."""
    torch.set_num_threads(1)
    x, y = network.data()
    blocks = lw.cut(network.model(), blocks=network.blocks, example=x[:2])
    rule = lw.rules.DGL(blocks, head=HEAD)
    plans = {n: Plan.of(rule, x, y, n) for n in (2, 3, 4) if n <= len(blocks)}
    layers = [round(1e9 * s) for s in backprop_seconds(network)]
    cuts = {
        "local": {1: [], **{n: [s.blocks[0] for s in plan.stages] for n, plan in plans.items()}},
        "backprop": {n: partition(layers, n) for n in (2, 4)},
    }
    return cuts, plans


def contenders_of(name: str) -> list[Contender]:
    """The contenders for a network."""
    segments = 8 if name == "vgg8b" else 10
    found = [
        Contender("local rule, 2 stages", "local", 2),
        Contender("local rule, serial, 1 thread", "local"),
        Contender("local rule, serial, 2 threads", "local", threads=2),
        Contender("backprop, 1 thread", "end_to_end"),
        Contender("backprop, 2 threads", "end_to_end", threads=2),
        Contender("checkpointing, 2 threads", "end_to_end", threads=2, options=(segments,)),
        Contender(
            f"{MICROBATCHES} micro-batches, 2 threads",
            "end_to_end",
            threads=2,
            options=(0, MICROBATCHES),
        ),
        Contender("delayed gradients, 2 stages", "delayed", 2),
        Contender("DDP, 2 ranks", "ddp", 2),
        *(Contender(schedule, "pipeline", 2, options=(schedule,)) for schedule in SCHEDULES),
    ]
    if name == "vgg8b":
        found += [
            Contender("local rule, 2 stages, channels_last", "local", 2, channels_last=True),
            Contender("backprop, 2 threads, channels_last", "end_to_end", 1, 2, (), True),
        ]
    return found


def race(
    network: str, contenders: list[Contender], rounds: int, steps: int
) -> tuple[list[dict[str, Any]], dict[int, Plan]]:
    """Samples per second of each contender in every round."""
    cuts, plans = plan_cuts(NETWORKS[network])
    running = []
    for contender in contenders:
        print(f"starting {contender.name}", flush=True)
        running.append(Running(network, contender, cuts))
    rates: list[list[float]] = [[] for _ in running]
    for round_ in range(1 + rounds):  # the first round is a warm-up
        for one, of_one in zip(running, rates, strict=True):
            of_one.append(one.turn(steps if round_ else 1))
            print(f"round {round_}: {of_one[-1]:8.2f}  {one.contender.name}", flush=True)
    found = [
        {
            **asdict(one.contender),
            "per_second": of_one[1:],
            "rss_bytes": one.rss_bytes,
            "parameter_bytes": one.parameter_bytes,
            "starts": starts_of(one.contender, cuts),
        }
        for one, of_one in zip(running, rates, strict=True)
    ]
    for one in running:
        one.close()
    return found, plans


def starts_of(contender: Contender, cuts: dict[str, Any]) -> list[int]:
    if contender.kind == "local":
        return cuts["local"][contender.processes]
    if contender.kind == "delayed":
        return cuts["backprop"][contender.processes]
    if contender.kind == "pipeline":
        more = contender.options[0] in ("interleaved 1F1B", *V_SHAPED)
        return cuts["backprop"][contender.processes * (2 if more else 1)]
    return []


# Two hosts in one machine: network namespaces joined by a cable.
INSIDE, FIRST, SECOND = "cable", "10.87.0.1", "10.87.0.2"


def enter(namespace: str) -> None:
    """Move this process into a network namespace."""
    with open(f"/run/netns/{namespace}") as file:
        if LIBC.setns(file.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")


@contextmanager
def hosts(name: str, rate: str | None) -> Iterator[None]:
    """Network namespaces NAME0 and NAME1, joined by a link of this rate."""

    def run(command: str) -> None:
        subprocess.run(command.split(), check=True)

    run(f"ip netns add {name}0")
    run(f"ip netns add {name}1")
    try:
        run(f"ip link add {INSIDE} netns {name}0 type veth peer name {INSIDE} netns {name}1")
        for k, address in enumerate((FIRST, SECOND)):
            inside = f"ip netns exec {name}{k} "
            run(f"{inside}ip address add {address}/24 dev {INSIDE}")
            run(f"{inside}ip link set {INSIDE} up")
            run(f"{inside}ip link set lo up")
            if rate is not None:
                shape = f"tbf rate {rate} burst 1mb latency 50ms"
                run(f"{inside}tc qdisc add dev {INSIDE} root {shape}")
        yield
    finally:
        run(f"ip netns del {name}0")
        run(f"ip netns del {name}1")


def over_link(rounds: int, steps: int) -> dict[str, Any]:
    """Stages and 1F1B on each network, over a free link and one of 1 Gb/s."""
    found = {}
    with ExitStack() as stack:
        stack.enter_context(hosts("free", None))
        stack.enter_context(hosts("slow", "1gbit"))
        for network in ("vgg8b", "transformer"):
            contenders = [
                Contender(f"{name}, {over}", kind, 2, options=options, over=over)
                for (name, kind, options), over in itertools.product(
                    [("local rule", "local", ()), ("1F1B", "pipeline", ("1F1B",))],
                    ("free", "slow"),
                )
            ]
            rows, plans = race(network, contenders, rounds, steps)
            found[network] = {"contenders": rows, "sends_bytes": plans[2].stages[0].sends_bytes}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*NETWORKS, "link"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each turn")
    given = parser.parse_args()
    about = {"benchmark": "stages", "title": given.what, **provenance()}
    if given.what == "link":
        result = {**about, "networks": over_link(given.rounds, given.steps)}
    else:
        network = NETWORKS[given.what]
        contenders = contenders_of(given.what)
        rows, plans = race(given.what, contenders, given.rounds, given.steps)
        result = {
            **about,
            "unit": network.unit,
            "batch": network.batch,
            "blocks": network.blocks,
            "heads": repr(HEAD),
            "microbatches": MICROBATCHES,
            "steps": given.steps,
            "contenders": rows,
            "simulated_per_second": simulated(network, contenders, plans),
            "predicted_per_second": {n: plan.images_per_s for n, plan in plans.items()},
            "stage_seconds": {n: [s.seconds for s in p.stages] for n, p in plans.items()},
        }
    out = RESULTS / f"stages-{given.what}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
