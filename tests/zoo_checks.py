"""What is checked of every network in the zoo, against a plain training loop on a copy of it."""

from __future__ import annotations

import copy
import random
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from zoo import Case, Network, call, seed

import layerwise as lw
from layerwise.errors import InputError

MOST_BLOCKS = 4
NO_LABELS = "which have no labels"  # so DGL refuses a block of other tokens than the scores'


@dataclass
class Finding:
    """What was found for one network. A list of names is empty where all is well; None means that
    the check was not reached.

    Attributes:
        blocks: how many blocks it was cut into, at most 4; 0 where it was not cut.
        names: the blocks' names.
        refusals: under the name of the step (cut, evaluate, backprop, dgl), why the library says
            that it cannot be done, one line each. Under cut also where fewer blocks were possible.
        errors: under the name of the step, the traceback of an exception that is no refusal.
        changed: what cut left behind in the model: modules and attributes, tensors, generators.
        eval_equal: whether the blocks' output is the model's, bit for bit.
        exits_equal: the same of the last of `exits`, where the blocks run one after another.
        loss_equal: whether backpropagation's loss is the plain loop's.
        gradients_differ: parameters whose gradient is not the plain loop's, bit for bit.
        buffers_differ: buffers that are not the plain loop's after the step.
        at: where it was cut for DGL, if not as for the rest: where the tokens are the scores'.
        unreached: parameters that have a gradient in the plain loop and none under DGL.
        isolated: whether the first block's gradient under DGL stays the same, bit for bit, when the
            weights of later blocks change; None with one block.
        seconds: for all checks.
    """

    name: str
    library: str
    kind: str
    stands_for: tuple[str, ...] = ()
    blocks: int = 0
    names: tuple[str, ...] = ()
    refusals: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    changed: list[str] | None = None
    eval_equal: bool | None = None
    exits_equal: bool | None = None
    loss_equal: bool | None = None
    gradients_differ: list[str] | None = None
    buffers_differ: list[str] | None = None
    at: tuple[str, ...] = ()
    unreached: list[str] | None = None
    isolated: bool | None = None
    seconds: float = 0.0

    def problems(self) -> list[str]:
        """One line for everything that is not as it must be; refusals are not among them."""
        found = [f"{step}: {error.splitlines()[-1]}" for step, error in self.errors.items()]
        found += [f"cut changed {what}" for what in self.changed or ()]
        for name in ("eval_equal", "exits_equal", "loss_equal", "isolated"):
            if getattr(self, name) is False:
                found.append(f"not {name.replace('_', ' ')}")
        for name in ("gradients_differ", "buffers_differ", "unreached"):
            if names := getattr(self, name):
                found.append(f"{name.replace('_', ' ')}: {_short(names)}")
        return found

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(network: Network) -> Finding:
    """Build the network and check it."""
    found = Finding(network.name, network.library, network.kind, network.stands_for)
    started = time.perf_counter()
    with _Step(found, "build"):
        case = network.build()
        _check(case, found)
    found.seconds = round(time.perf_counter() - started, 2)
    return found


def _check(case: Case, found: Finding) -> None:
    plain = copy.deepcopy(case.model)
    blocks = _cut(case, found)
    if blocks is None:
        return
    with _Step(found, "evaluate"):
        _evaluate(case, plain, blocks, found)
    gradients: dict[str, Tensor | None] = {}
    with _Step(found, "plain loop"):
        gradients, loss, buffers = _plain_loop(case, plain)
        del plain
    if "plain loop" in found.errors:
        return
    start = {name: b.clone() for name, b in case.model.named_buffers()}
    with _Step(found, "backprop"):
        rule = lw.rules.Backprop(blocks, **_criterion(case))
        report = _step(rule, case)
        found.loss_equal = report.loss is not None and torch.equal(report.loss, loss)
        got = {name: p.grad for name, p in case.model.named_parameters()}
        found.gradients_differ = [n for n, g in gradients.items() if not _same(got[n], g)]
        moved = dict(case.model.named_buffers())
        found.buffers_differ = [n for n, b in buffers.items() if not _same(moved.get(n), b)]
        del rule, report, got
    wanted = [n for n, g in gradients.items() if g is not None]
    with _Step(found, "dgl"):
        _local(case, blocks, start, wanted, found)
    if NO_LABELS in found.refusals.get("dgl", ""):
        with _Step(found, "dgl elsewhere"):
            blocks = _cut_at_labels(case)
            if len(blocks) > 1:
                _local(case, blocks, start, wanted, found)
                found.at = tuple(blocks.names[1:])


def _cut(case: Case, found: Finding) -> Any:
    """The model in four blocks, or as many as there can be; None where two are too many."""
    before, twin = _State(case.model), copy.deepcopy(case)
    blocks = None
    with _Step(found, "cut"):
        for count in range(MOST_BLOCKS, 1, -1):
            try:
                blocks = lw.cut(case.model, blocks=count, example=case.inputs, output=case.output)
                break
            except InputError as error:
                found.refusals.setdefault("cut", _line(error))
    generators = _generators()
    # A model's own forward may leave attributes and hooks behind, which are then not cut's.
    for mode in (False, True):
        with torch.no_grad():
            call(twin.model.train(mode), twin.inputs)
    found.changed = before.changes(case.model, _State(twin.model))
    if generators != before.generators:
        found.changed.append("a random generator")
    try:
        copy.deepcopy(case.model)
    except RuntimeError as error:
        found.changed.append(f"that it can be copied ({str(error).splitlines()[0]})")
    if blocks is not None:
        found.blocks, found.names = len(blocks), tuple(blocks.names)
    return blocks


def _cut_at_labels(case: Case) -> Any:
    """The model in at most four blocks that give as many tokens as there are scores of, as in a
    decoder; as one block where there is no such place."""
    every = lw.cut(case.model, "all", example=case.inputs, output=case.output)
    tokens = every.shapes[-1][0]
    fits = [
        name
        for name, shape in zip(every.names[1:], every.shapes, strict=False)
        if len(shape) == 2 and shape[0] == tokens and every.names.count(name) == 1
    ]
    at = fits[:: -(-len(fits) // (MOST_BLOCKS - 1)) or 1]
    return lw.cut(case.model, at=at, example=case.inputs, output=case.output) if at else every[:1]


def _evaluate(case: Case, plain: nn.Module, blocks: Any, found: Finding) -> None:
    """Blocks and exits beside the model, in eval mode."""
    rule = lw.rules.Backprop(blocks, **_criterion(case))
    case.model.eval()
    plain.eval()
    rule.eval()
    with torch.no_grad():
        seed(1)
        expected = case.scores(plain)
        seed(1)
        found.eval_equal = _same(blocks(case.inputs), expected)
        seed(1)
        found.exits_equal = _same(rule.exits(case.inputs)[-1], expected)


def _plain_loop(
    case: Case, model: nn.Module
) -> tuple[dict[str, Tensor | None], Tensor, dict[str, Tensor]]:
    """One step of the loop that everyone writes: gradients, loss, and the buffers after it."""
    model.train()
    seed(2)
    loss = case.loss(case.scores(model))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return gradients, loss.detach(), {name: b.clone() for name, b in model.named_buffers()}


def _step(rule: Any, case: Case) -> Any:
    """The same step by a rule."""
    case.model.train()
    rule.train()
    rule.zero_grad(set_to_none=True)
    seed(2)
    return rule.backward(case.inputs, case.labels)


def _local(
    case: Case, blocks: Any, start: dict[str, Tensor], wanted: Iterable[str], found: Finding
) -> None:
    """DGL: which parameters it reaches, and that the first block learns by itself."""
    seed(3)
    rule = lw.rules.DGL(blocks, **_criterion(case))
    _restore(case.model, start)
    _step(rule, case)
    parameters = dict(case.model.named_parameters())
    found.unreached = [name for name in wanted if parameters[name].grad is None]
    if len(blocks) == 1:
        return
    first = [p for p in rule.parameters_of(0) if p.grad is not None]
    before = [p.grad for p in first]
    _restore(case.model, start)
    with torch.no_grad():
        for p in _later(rule, case, len(blocks)):
            p.mul_(1.25)
    _restore(case.model, start)
    _step(rule, case)
    after = [p.grad for p in first]
    found.isolated = bool(first) and all(map(_same, after, before))


def _later(rule: Any, case: Case, count: int) -> list[nn.Parameter]:
    """The later blocks' parameters that the first block's exit does not depend on: a tied
    parameter belongs to a later block and is used in the first. One that has no gradient is read
    where gradients are off, which no graph tells."""
    later = [p for k in range(1, count) for p in rule.parameters_of(k) if p.grad is not None]
    with torch.enable_grad():
        seed(2)
        scores = rule.exits(case.inputs)[0]
        trained = [p for p in later if p.requires_grad]
        uses = torch.autograd.grad(scores.sum(), trained, allow_unused=True)
    used = {id(p) for p, use in zip(trained, uses, strict=True) if use is not None}
    return [p for p in later if id(p) not in used]


def _criterion(case: Case) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    return {} if case.criterion is None else {"criterion": case.criterion}


def _restore(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Bit for bit, not-a-number included."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(torch.equal(a, b) or torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)))


def _line(error: BaseException) -> str:
    """A refusal as it stands, or what is wrong with its form."""
    text = str(error)
    return text if text and "\n" not in text else f"NOT ONE LINE: {text!r}"


def _short(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


class _Step:
    """Books what is raised inside, and goes on."""

    def __init__(self, found: Finding, name: str):
        self.found, self.name = found, name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> bool:
        if isinstance(error, InputError):
            self.found.refusals[self.name] = _line(error)
        elif isinstance(error, Exception):
            self.found.errors[self.name] = "".join(traceback.format_exception(error))
        return isinstance(error, Exception)


class _State:
    """All of a model that cut must leave as it is, and the random generators."""

    def __init__(self, model: nn.Module):
        self.tensors = {name: t.clone() for name, t in model.state_dict().items()}
        self.modes = {name: m.training for name, m in model.named_modules()}
        self.attributes = {name: set(vars(m)) for name, m in model.named_modules()}
        self.hooks = {name: _hooks(m) for name, m in model.named_modules()}
        self.trained = {name: p.requires_grad for name, p in model.named_parameters()}
        self.generators = _generators()

    def changes(self, model: nn.Module, run: _State) -> list[str]:
        """What is different in the model now. Its own forward may leave attributes and hooks
        behind: either all are as they were, or all are as in a copy that was `run`."""
        now = _State(model)
        found = [name for name, t in self.tensors.items() if not _same(now.tensors.get(name), t)]
        found += [f"the mode of {n!r}" for n, mode in self.modes.items() if now.modes[n] != mode]
        for name, p in model.named_parameters():
            if p.requires_grad != self.trained[name] or p.grad is not None:
                found.append(f"what is trained of {name}")
        return found + min(now.left(self), now.left(run), key=len)

    def left(self, other: _State) -> list[str]:
        """Attributes and numbers of hooks that are not the other's."""
        found = []
        for name, attributes in self.attributes.items():
            different = attributes ^ other.attributes.get(name, set())
            found += [f"{name}.{attribute}" for attribute in sorted(different)]
            if self.hooks[name] != other.hooks.get(name):
                found.append(f"the hooks of {name!r}")
        return found


def _hooks(module: nn.Module) -> dict[str, int]:
    return {name: len(kept) for name, kept in vars(module).items() if name.endswith("_hooks")}


def _generators() -> tuple[Any, ...]:
    return (
        torch.get_rng_state().numpy().tobytes(),
        repr([np.random.get_state()[1].tolist(), np.random.get_state()[2:]]),
        repr(random.getstate()),
    )
