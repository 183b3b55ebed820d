"""Checks on the pretended accelerator; `tests/contract/test_device.py` runs them in a process.

    python tests/on_pretended_device.py [NETWORK ...]

Every rule in all ways on each of the networks; every objective, networks that are cut on the
device, and the training loop. Without a network it is shorter: each rule in its first way on an
MLP. Checked are the CPU's gradients, that no operation takes tensors of two devices, and that the
host waits for the device in no step but the first. Prints a line for each failure, and exits with 1
if there is one.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import networks
import pretend
import torch
from pretend import Accelerator, Refused
from torch import Tensor, nn

from layerwise import Blocks, Rule, cut, models, objectives, rules
from layerwise.experiment import prepared, train
from layerwise.runs.metrics import Metrics
from layerwise.trainer.finite import FiniteCheck
from layerwise.trainer.loop import Trainer

pretend.register()
DEVICE = torch.device(pretend.NAME, 0)
DATA = {"name": "digits"}
TRAININGS: list[dict[str, Any]] = [
    {
        "model": {"name": "resnet20", "width": 0.25},
        "channels_last": True,
        "augment": {"crop": 1, "flip": True},
        "rule": {"name": "DGL", "head": {"name": "MLP", "width": 8}},
        "blocks": 3,
        "ema": 0.9,
        "batch_size": 512,
    },
    {
        "model": {"name": "mlp", "layers": 2, "width": 8},
        "rule": {"name": "ForwardForward"},
        "optimizer": {"name": "AdamW"},
        "step_per_block": True,
        "batch_size": 256,
    },
]


class Waits(rules.Backprop):
    """Reads the loss in every step, as a check of the checks."""

    def step(self, batch: Any) -> Tensor:
        out = super().step(batch)
        float(batch.losses[len(self.blocks) - 1])
        return out


class Mixes(rules.Backprop):
    """Makes a tensor on the CPU in every step, as a check of the checks."""

    def step(self, batch: Any) -> Tensor:
        return super().step(batch) + torch.ones(batch.rows, 1)


def agree(rule: Rule, x: Tensor, y: Tensor) -> None:
    """A step gives the CPU's gradients; later steps do not wait, nor what a trainer does with their
    results."""
    plain = copy.deepcopy(rule)
    torch.manual_seed(1)
    plain.backward(x, y)
    rule, x, y = rule.to(DEVICE), x.to(DEVICE), y.to(DEVICE)
    torch.manual_seed(1)
    rule.backward(x, y)
    got = {name: grad.cpu() for name, grad in networks.grads(rule).items()}
    # Not to the bit: attention is computed by another kernel.
    networks.assert_close(got, networks.grads(plain), atol=1e-11, rtol=1e-9)
    blocks = len(rule.blocks)
    metrics, finite = Metrics(blocks, DEVICE), FiniteCheck(rule, DEVICE, range(blocks))
    for step in range(2):
        with Accelerator.forbids_waiting():
            report = rule.backward(x, y)
            losses = metrics.add(report.local_losses, report.local_logits, report.labels)
            finite.note(losses, step)
    assert finite.losses() is None
    rule.eval().exits(x)


def of_rules(asked: list[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every rule on the networks that were asked for; a rule with networks of its own on those."""
    own = [(make, ways) for make, ways in networks.OWN_NETWORKS.values()]
    first = {name: ways[name] for ways in networks.RULES.values() for name in list(ways)[:1]}
    shared = [(networks.NETWORKS[n], networks.ALL_RULES) for n in asked] or [(networks.mlp, first)]
    for network, ways in [*shared, *own]:
        for name, make in ways.items():
            yield f"{name} on {network.__name__}", lambda n=network, m=make: _rule(n, m)


def _rule(network: Callable[..., networks.Case], make: Callable[[Blocks], Rule]) -> None:
    case = network(torch.float64)
    agree(make(case.blocks), case.x, case.y)


def of_objectives() -> Iterator[tuple[str, Callable[[], None]]]:
    given = {
        "Classify": objectives.Classify(networks.SMALL_HEAD),
        "ClassifyGroups": objectives.ClassifyGroups(networks.SMALL_HEAD, [[0, 0, 1]]),
        "Distill": objectives.Distill(
            nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double(), networks.SMALL_HEAD
        ),
        "InfoNCE": objectives.InfoNCE(grid=4, steps=1),
    }
    names = [n for n in objectives.__all__ if isinstance(getattr(objectives, n), type)]
    for name in names:
        kind = getattr(objectives, name)
        if issubclass(kind, objectives.Objective) and kind is not objectives.Objective:
            if name in ("Sum",):
                continue
            yield f"objective {name}", lambda n=name, k=kind: _objective(given.get(n) or k())


def _objective(objective: objectives.Objective) -> None:
    net = [
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 8 * 8, 3)),
    ]
    x = torch.rand(6 * max(1, objective.needs_views), 3, 8, 8, dtype=torch.float64)
    rule = rules.Greedy(Blocks([b.double() for b in net], example=x[:2]), objective)
    agree(rule, x, torch.arange(6) % 3)


def of_cuts(short: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """Networks that are cut after they have moved to the device."""
    images, tokens = torch.randn(4, 3, 8, 8), torch.randint(0, 11, (4, 6))
    y = torch.arange(4) % 3
    nets: list[tuple[Callable[[], nn.Module], Tensor, Tensor]] = [
        (lambda: models.resnet20((3, 8, 8), 3, width=0.25), images, y),
        (lambda: models.vit((3, 8, 8), 3, patch=4, layers=2, width=8, heads=2), images, y),
        (lambda: models.gpt((6,), 11, layers=2, width=8, heads=2), tokens, tokens),
    ]
    checkpointing = functools.partial(rules.Backprop, checkpoint=True)
    for network, x, y in nets:
        for make in (checkpointing,) if short else (rules.DGL, rules.AugLocal, checkpointing):
            yield (
                f"{make} on a cut network",
                lambda n=network, x=x, y=y, m=make: _cut(n(), x, y, m),
            )


def _cut(network: nn.Module, x: Tensor, y: Tensor, make: Callable[[Blocks], Rule]) -> None:
    network, x, y = network.to(DEVICE), x.to(DEVICE), y.to(DEVICE)
    rule = make(cut(network, blocks=3, example=x))
    threads: set[int] = set()
    last = list(network.parameters())[-1]
    hook = last.register_post_accumulate_grad_hook(lambda _: threads.add(threading.get_ident()))
    rule.backward(x, y)
    hook.remove()
    # As on CUDA, autograd runs in a thread of the device, and so does what checkpointing repeats.
    assert threads, "no gradient"
    assert threading.get_ident() not in threads
    with Accelerator.forbids_waiting():
        rule.backward(x, y)


class _Fabric:
    """Lightning Fabric does not know the pretended device."""

    device, strategy = DEVICE, types.SimpleNamespace(precision=None)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def of_trainings(short: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    for config in TRAININGS[1:] if short else TRAININGS:
        yield f"training {config['model']['name']}", lambda c=config: _training(c)


def _training(config: dict[str, Any]) -> None:
    """An epoch gives the CPU's bits, and the host waits in no step but the first."""
    config = {"data": DATA, "blocks": "all", "epochs": 1, **config}
    with tempfile.TemporaryDirectory() as runs, contextlib.ExitStack() as patched:
        wanted = train({**config, "device": "cpu"}, runs=runs).checkpoint("last")
        patched.enter_context(mock.patch.object(prepared, "fabric_for", return_value=_Fabric()))
        for name in ("_backward", "_finish_step"):
            patched.enter_context(mock.patch.object(Trainer, name, _without_waiting(name)))
        got = train(config, runs=runs).checkpoint("last")
    networks.assert_same(got["rule"], wanted["rule"])


def _without_waiting(name: str) -> Callable[..., Any]:
    method = getattr(Trainer, name)

    def call(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        later = trainer.position.step > 0
        with Accelerator.forbids_waiting() if later else contextlib.nullcontext():
            return method(trainer, *args, **kwargs)

    return call


def the_checks_fail() -> Iterator[tuple[str, Callable[[], None]]]:
    for make in (Waits, Mixes):
        yield f"{make.__name__} is found", lambda m=make: _found(m)


def _found(make: Callable[[Blocks], Rule]) -> None:
    case = networks.mlp()
    rule = make(case.blocks).to(DEVICE)
    x, y = case.x.to(DEVICE), case.y.to(DEVICE)
    with contextlib.suppress(Refused), Accelerator.forbids_waiting():
        rule.backward(x, y)
        raise AssertionError("it was not found")


def main(asked: list[str]) -> int:
    failed, short = 0, not asked
    checks = [
        the_checks_fail(),
        of_rules(asked),
        of_objectives(),
        of_cuts(short),
        of_trainings(short),
    ]
    for name, check in (pair for each in checks for pair in each):
        torch.manual_seed(0)
        try:
            with Accelerator():
                check()
        except Exception as error:
            failed += 1
            frames = traceback.extract_tb(error.__traceback__)
            where = next(f for f in reversed(frames) if "pretend" not in f.filename)
            text = " ".join(str(error).split())[:200]
            print(f"{name}: {type(error).__name__}: {text} at {where.filename}:{where.lineno}")
    print(f"{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    pretend.leave(main(sys.argv[1:]))
