"""What a training step costs on the device, and what a block costs when it is small."""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpu.rows import Rows
from layerwise import Blocks, heads, models, rules
from layerwise.costs import compare_steps

MIB = 2**20
LAYERS, BATCH, WIDTH = 8, 32, 256


def times_ms(
    steps: Sequence[Callable[[], object]], device: torch.device, rounds: int, each: int
) -> list[float]:
    """The median time of each step in ms, measured in turns: by CUDA events around `each` calls,
    on the CPU by the clock."""
    found: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for step, so_far in zip(steps, found, strict=True):
            so_far.append(_time_ms(step, device, each) / each)
    return [statistics.median(each) for each in found]


def _time_ms(step: Callable[[], object], device: torch.device, each: int) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(each):
            step()
        return 1e3 * (time.perf_counter() - began)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    for _ in range(each):
        step()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end)


# ---------------------------------------------------------------- bench step


def step(rows: Rows) -> None:
    """`layerwise bench step`: the allocator's peak beside the library's own meter."""
    torch.manual_seed(0)
    batch = 128 if rows.cuda else 8
    shape = (3, 32, 32) if rows.cuda else (3, 16, 16)
    networks: dict[str, nn.Module] = {"ResNet-20": models.resnet20(shape, 10)}
    if rows.cuda:
        networks["ResNet-110"] = models.resnet110(shape, 10)
        networks["ViT 6x384"] = models.vit(shape, 10, patch=4, layers=6, width=384, heads=6)
    make = functools.partial(rules.DGL, head=heads.Linear())
    for name, network in networks.items():
        if rows.late():
            rows.add(name, False, "no time was left")
            return
        x = torch.randn(batch, *shape, device=rows.device)
        y = torch.randint(10, (batch,), device=rows.device)
        try:
            table = compare_steps(
                network.to(rows.device),
                make,
                x,
                y,
                blocks=4,
                rounds=1 if rows.quick else 10,
                warmup=0 if rows.quick else 3,
                channels_last=name.startswith("ResNet"),
            )
        except Exception as error:
            rows.failed(name, error)
            continue
        base = statistics.median(table.contenders[0].times_s)
        for found in table.contenders:
            ours = found.peak.activations + found.peak.gradients
            theirs = found.cuda_peak_bytes
            text = (
                f"{1e3 * statistics.median(found.times_s):.2f} ms, "
                f"{statistics.median(found.times_s) / base:.2f} of backprop; peak "
                f"{ours / MIB:.1f} MiB"
            )
            if theirs is not None:
                text += f", by the allocator {theirs / MIB:.1f}"
            # The allocator also counts what kernels need, so ours is not more than its.
            sound = theirs is None or ours <= 1.02 * theirs + MIB
            rows.add(
                f"{name}, {found.name}",
                sound,
                text,
                times_s=list(found.times_s),
                peak_bytes=ours,
                cuda_peak_bytes=theirs,
            )


# ---------------------------------------------------------------- overhead of a block


def network() -> list[nn.Module]:
    """Eight layers of an MLP, one a block."""
    torch.manual_seed(0)
    hidden = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(LAYERS - 1)]
    return [*hidden, nn.Linear(WIDTH, 10)]


def greedy(blocks: Sequence[nn.Module], predict: Sequence[nn.Module], x: Tensor, y: Tensor) -> None:
    """The shortest loop that trains every block on its own loss."""
    h = x
    for block, head in zip(blocks, predict, strict=True):
        h = block(h)
        F.cross_entropy(head(h), y).backward()
        h = h.detach()


def overhead(rows: Rows) -> None:
    """What a block of a small network costs over a loop that is written by hand."""
    x = torch.randn(BATCH, WIDTH, device=rows.device)
    y = torch.randint(10, (BATCH,), device=rows.device)

    def blocks() -> Blocks:
        return Blocks(network(), example=x.cpu()).to(rows.device)

    local, backprop = rules.DGL(blocks(), head=heads.Linear()), rules.Backprop(blocks())
    plain = nn.Sequential(*network()).to(rows.device)
    by_hand = [block.to(rows.device) for block in network()]
    predict = [nn.Linear(WIDTH, 10).to(rows.device) for _ in range(LAYERS - 1)]
    predict.append(nn.Identity())
    steps: dict[str, Callable[[], object]] = {
        "loss.backward()": lambda: F.cross_entropy(plain(x), y).backward(),
        "Backprop": lambda: backprop.backward(x, y),
        "greedy loop by hand": lambda: greedy(by_hand, predict, x, y),
        "DGL": lambda: local.backward(x, y),
    }
    rounds, each = (1, 2) if rows.quick else (15, 20)
    for one in steps.values():
        for _ in range(1 if rows.quick else 5):
            one()
    found = dict(zip(steps, times_ms(list(steps.values()), rows.device, rounds, each), strict=True))
    reference = {"Backprop": "loss.backward()", "DGL": "greedy loop by hand"}
    for name, ms in found.items():
        text = f"{1e3 * ms:.0f} us"
        if name in reference:
            extra = 1e3 * (ms - found[reference[name]])
            text += f", {extra / LAYERS:+.1f} us a block over the {reference[name]}"
        rows.add(name, True, text, ms=ms)
    _graph(rows, local, x, y)
    _compiled(rows, blocks(), x, y, found["DGL"])


def _graph(rows: Rows, rule: rules.DGL, x: Tensor, y: Tensor) -> None:
    """A whole step as a CUDA graph gives the gradients of a step that is not one."""
    name = "DGL as a CUDA graph"
    if not rows.cuda:
        rows.skip(name)
        return
    try:
        rule = copy.deepcopy(rule)
        rule.zero_grad(set_to_none=False)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                rule.backward(x, y)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            rule.backward(x, y)
        rule.zero_grad(set_to_none=False)
        rule.backward(x, y)
        wanted = [p.grad.clone() for p in rule.parameters() if p.grad is not None]
        rule.zero_grad(set_to_none=False)
        graph.replay()
        torch.cuda.synchronize()
        got = [p.grad for p in rule.parameters() if p.grad is not None]
        right = all(
            torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(got, wanted, strict=True)
        )
        (ms,) = times_ms([graph.replay], rows.device, 15, 20)
        rows.add(name, right, f"{1e3 * ms:.0f} us" + ("" if right else "; other gradients"), ms=ms)
    except Exception as error:
        rows.failed(name, error)


def _compiled(rows: Rows, blocks: Blocks, x: Tensor, y: Tensor, eager_ms: float) -> None:
    """Blocks that are compiled, as by `--compile true`; and with CUDA graphs for each."""
    for mode in ("default", "reduce-overhead"):
        name = f"DGL, blocks compiled, {mode}"
        if not rows.cuda:
            rows.skip(name)
            continue
        if rows.late():
            rows.add(name, False, "no time was left")
            continue
        try:
            torch.compiler.reset()
            rule = rules.DGL(copy.deepcopy(blocks), head=heads.Linear())
            for block in rule.blocks:
                block.compile(mode=mode)
            began = time.perf_counter()
            for _ in range(4):
                rule.backward(x, y)
            first_s = time.perf_counter() - began
            (ms,) = times_ms([lambda r=rule: r.backward(x, y)], rows.device, 15, 20)
            rows.add(
                name,
                True,
                f"{1e3 * ms:.0f} us, {ms / eager_ms:.2f} of eager; compiled in {first_s:.0f} s",
                ms=ms,
            )
        except Exception as error:
            rows.failed(name, error)
