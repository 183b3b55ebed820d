"""Every rule on the device: its gradients, compared with the CPU's in float64, and whether a step
makes the host wait."""

from __future__ import annotations

import contextlib
import copy
import inspect
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpu.draws import same_draws
from gpu.rows import NEEDS_CUDA, Rows
from layerwise import InputError, Rule, cut, heads, models, objectives, rules
from layerwise.runs.metrics import Metrics
from layerwise.trainer.finite import FiniteCheck
from layerwise.trainer.optim import SGD

HEAD = heads.MLP(width=32)
# Rules that train one kind of network alone.
OWN = {"NoProp": "noprop_cnn", "DiffusionBlocks": "diffusion_vit"}
# A relative error of the gradient that is always allowed. More is allowed where the CPU, too, has
# more in the same precision (bfloat16 for float16): up to TIMES as much. A wrong gradient has an
# error of about 1, so nothing is learned where the CPU's own is above NOISE.
FLOORS = {"float32": 1e-4, "bfloat16": 0.02, "float16": 0.02}
TIMES = {"float32": 10, "bfloat16": 2, "float16": 2}
NOISE = 0.35
BATCH = 16


@dataclass
class Case:
    """A network, made anew by `make`, with a batch for it."""

    make: Callable[[], nn.Module]
    x: Tensor
    y: Tensor


def cases() -> dict[str, Case]:
    """A network of every kind."""
    torch.manual_seed(0)
    shape, classes = (3, 16, 16), 10
    images, labels = torch.randn(BATCH, *shape), torch.randint(classes, (BATCH,))
    tokens = torch.randint(32, (BATCH, 12))

    def of_images(make: Callable[..., nn.Module], **options: Any) -> Case:
        return Case(lambda: make(shape, classes, **options), images, labels)

    return {
        "mlp": of_images(models.mlp, layers=3, width=64),
        "basic_cnn": of_images(models.basic_cnn),
        "resnet20": of_images(models.resnet20, width=0.5),
        "vit": of_images(models.vit, patch=4, layers=3, width=32, heads=2),
        "gpt": Case(
            lambda: models.gpt((12,), 32, layers=3, width=32, heads=2), tokens, tokens.roll(-1, 1)
        ),
        "noprop_cnn": of_images(models.noprop_cnn, steps=3, channels=8, width=16),
        "diffusion_vit": of_images(models.diffusion_vit, layers=1, patch=4, width=32, heads=2),
    }


def made(name: str, case: Case) -> Rule:
    """A rule with its defaults but a small head, on the CPU in float64."""
    kind = getattr(rules, name)
    takes = inspect.signature(kind).parameters
    options: dict[str, Any] = {"head": HEAD} if "head" in takes else {}
    if "objectives" in takes:
        options["objectives"] = objectives.Classify(HEAD)
    torch.manual_seed(0)
    network = case.make().double()
    x = case.x.double() if case.x.is_floating_point() else case.x
    return kind(cut(network, blocks="all" if name in OWN else 3, example=x), **options)


@dataclass
class Gradients:
    """The gradients of one step, (parameters,) for each block, on the CPU in float64."""

    of_blocks: list[Tensor]

    @classmethod
    def of(cls, rule: Rule) -> Gradients:
        found = []
        for k in range(len(rule.blocks)):
            grads = [p.grad for p in rule.parameters_of(k) if p.grad is not None]
            found.append(
                torch.cat([g.detach().flatten().double().cpu() for g in grads])
                if grads
                else torch.zeros(0, dtype=torch.float64)
            )
        return cls(found)

    def error(self, right: Gradients) -> float:
        """The largest relative error of a block's gradient."""
        errors = [0.0]
        for mine, other in zip(self.of_blocks, right.of_blocks, strict=True):
            size = float(other.norm())
            if size > 0:
                errors.append(float((mine - other).norm()) / size)
        return max(errors)


def step(
    rule: Rule, case: Case, device: torch.device, dtype: torch.dtype, mixed: bool
) -> Gradients:
    """The gradients of one step of a copy of the rule in type `dtype`; if `mixed`, in float32 with
    autocast to it."""
    weights = torch.float32 if mixed else dtype
    rule = copy.deepcopy(rule).to(device, weights)
    x = case.x.to(device, weights) if case.x.is_floating_point() else case.x.to(device)
    scaler = torch.amp.GradScaler(device.type) if dtype is torch.float16 else None
    with same_draws(1), torch.autocast(device.type, dtype, enabled=mixed):
        if scaler is None:
            rule.backward(x, case.y.to(device))
        else:
            rule.backward(x, case.y.to(device), scale=scaler.scale)
    found = Gradients.of(rule)
    if scaler is not None:
        found = Gradients([g / scaler.get_scale() for g in found.of_blocks])
    return found


def check(rows: Rows) -> None:
    """A row for each rule and precision, and one for the waiting host."""
    torch.set_num_threads(min(4, torch.get_num_threads()))  # small networks
    known = cases()
    sample = ["mlp"] if rows.quick else ["mlp", "basic_cnn", "resnet20", "vit", "gpt"]
    for name in rules.__all__[:: 5 if rows.quick else 1]:
        if rows.late():
            rows.add(f"{name} and later rules", False, "no time was left")
            return
        networks = [OWN[name]] if name in OWN else sample
        try:
            _rule(rows, name, {network: known[network] for network in networks})
        except Exception as error:
            rows.failed(name, error)


def _rule(rows: Rows, name: str, networks: dict[str, Case]) -> None:
    cpu = torch.device("cpu")
    errors: dict[str, dict[str, tuple[float, float]]] = {}
    waits: list[str] = []
    stochastic = False
    for network, case in networks.items():
        try:
            rule = made(name, case)
            right = step(rule, case, cpu, torch.float64, mixed=False)
        except InputError:  # not for this kind of network
            continue
        stochastic = rule.stochastic
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            if dtype is torch.float16 and not rows.cuda:
                continue
            mixed = dtype is not torch.float32
            there = step(rule, case, rows.device, dtype, mixed)
            same = torch.bfloat16 if dtype is torch.float16 else dtype
            here = step(rule, case, cpu, same, mixed)
            found = errors.setdefault(str(dtype).removeprefix("torch."), {})
            found[network] = there.error(right), here.error(right)
        if rows.cuda and (where := _waits(rule, case, rows.device)):
            waits.append(f"{network}: {where}")
    drawn = "; draws on the CPU in this check" if stochastic else ""
    for dtype, found in errors.items():
        noise = [network for network, (_, here) in found.items() if here > NOISE]
        heard = {network: pair for network, pair in found.items() if network not in noise}
        wrong = [
            network
            for network, (there, here) in heard.items()
            if not there <= max(FLOORS[dtype], min(TIMES[dtype] * here, 2 * NOISE))
        ]
        text = "no network"
        if heard:
            worst = max(heard, key=lambda network: heard[network][0])
            there, here = heard[worst]
            text = f"{len(heard)} networks, error {there:.1e}, CPU's {here:.1e}, {worst}{drawn}"
        text += f"; noise on the CPU, too: {', '.join(noise)}" if noise else ""
        text += f"; wrong: {', '.join(wrong)}" if wrong else ""
        rows.add(f"{name}, {dtype}", not wrong if heard else None, text, errors=found)
    if not errors:
        rows.skip(name, "no network of the sample fits")
    elif rows.cuda:
        rows.add(f"{name}, waits", not waits, "; ".join(waits) or "never")
    else:
        rows.skip(f"{name}, waits", NEEDS_CUDA)


def _waits(rule: Rule, case: Case, device: torch.device) -> str:
    """Where a training step makes the host wait for the device; empty if nowhere."""
    rule = copy.deepcopy(rule).to(device, torch.float32).train()
    x = case.x.to(device, torch.float32) if case.x.is_floating_point() else case.x.to(device)
    y, blocks = case.y.to(device), len(rule.blocks)
    metrics, finite = Metrics(blocks, device), FiniteCheck(rule, device, range(blocks))
    optimizer = SGD()(rule.parameters())

    def train() -> None:
        report = rule.backward(x, y)
        losses = metrics.add(report.local_losses, report.local_logits, report.labels)
        finite.note(losses, 0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):  # labels are read in the first
        train()
    try:
        with _waiting_is_an_error():
            train()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        last = next((f for f in reversed(frames) if "/layerwise/" in f.filename), frames[-1])
        return f"{last.filename.rpartition('/layerwise/')[2]}:{last.lineno}"
    return ""


@contextlib.contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
