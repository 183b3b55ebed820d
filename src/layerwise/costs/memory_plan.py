"""Which ways to train a network fit into a memory, at what cost in time and accuracy."""

from __future__ import annotations

import copy
import json
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from layerwise.blocks import cut
from layerwise.costs.measure import Contender, Step, live_bytes, timed
from layerwise.costs.ways import LOCAL, MakeRule, Way
from layerwise.errors import InputError
from layerwise.inputs import Inputs, chosen_rows, first_rows, leading, plain
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules import DGL, DelayedGradient
from layerwise.rules.base import LocalRule
from layerwise.rules.calls.attention import Attention, replaced_attention

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{u}i": 1024**i for i, u in enumerate("kmgt", 1)}
BLOCKS = (4, 8, 16, 32)  # numbers of blocks that are tried
ROUNDS, ENOUGH_S = 3, 0.1  # at least, of the measurements of a step's time
SHORT_S = 0.05  # of a step that says little of one on more samples
CLOSE = 0.05  # share of a step's bytes by which the meta device may differ
SAME = "none: the same gradient"
NOT_MEASURED = "not measured"
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Fit:
    """One way to make a training step, as predicted.

    Attributes:
        name: of the way, as in `layerwise bench step`.
        micro: number of micro-batches.
        step_bytes: the most bytes of activations, gradients and optimizer state alive at once.
        whole_bytes: these, and parameters (the heads' too), buffers and the batch.
        time: of a step, as a ratio to backpropagation on the whole batch.
        fits: whether `whole_bytes` are at most the memory.
        accuracy: what it costs in accuracy, as far as the results that ship with the package tell.
    """

    name: str
    micro: int
    step_bytes: int
    whole_bytes: int
    time: float
    fits: bool
    accuracy: str


@dataclass(frozen=True)
class MemoryPlan:
    """Every way that was tried; rich prints it as a table. First those that fit, fastest first.

    Attributes:
        memory: in bytes.
        batch_size: samples of a step.
        fits: the ways.
    """

    memory: int
    batch_size: int
    fits: tuple[Fit, ...]

    def as_dict(self) -> dict[str, Any]:
        """The plan for a JSON file."""
        return asdict(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(
            title=f"steps on {self.batch_size} samples in {_mebibytes(self.memory)} MiB",
            title_justify="left",
            box=box.SIMPLE,
            pad_edge=False,
        )
        table.add_column("")
        for column in ("fits", "time", "step, MiB", "whole, MiB"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("cost in accuracy, points")
        for fit in self.fits:
            table.add_row(
                fit.name,
                "yes" if fit.fits else "no",
                f"{fit.time:.2f}",
                _mebibytes(fit.step_bytes),
                _mebibytes(fit.whole_bytes),
                fit.accuracy,
            )
        yield table
        yield (
            "time: over backpropagation's on the whole batch, predicted from smaller ones; step: "
            "activations, gradients and optimizer state; whole: parameters and the batch too"
        )


def _mebibytes(count: int) -> str:
    """A number of bytes in MiB, with at least two digits that tell something."""
    found = count / 2**20
    return f"{found:,.0f}" if found >= 10 else f"{found:.2g}"


def bytes_of(memory: str | int) -> int:
    """A number of bytes, as in 2GiB, 500MB or 4096.

    Raises:
        InputError: it is no such number.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", str(memory), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise InputError(f"--memory {memory}: give a number of bytes, as in 2GiB or 500MB")
    return round(float(found[1]) * UNITS[(found[2] or "").lower()])


def plan(
    model: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    *,
    memory: str | int,
    batch_size: int | None = None,
    rule: MakeRule = DGL,
    blocks: Sequence[int | Literal["all"]] = BLOCKS,
    optimizer: MakeOptimizer | None = None,
    criterion: Criterion = cross_entropy,
) -> MemoryPlan:
    """Find the ways to train a network within a memory.

    Tried are backpropagation with micro-batches, activation checkpointing, both, and the
    optimizer's step within the backward pass; and the rule with several numbers of blocks, a step
    for each block and micro-batches. Of each way the smallest number of micro-batches is given that
    fits, a power of two; if none fits, the number of the fewest bytes. Bytes are those of a step on
    the whole batch on the meta device, which computes nothing and holds nothing. Fused optimizers
    do not run there (`measure.fused_optimizer`). Where the network does not run there, or keeps
    more than 5 % more or less than on its own device, as recurrent layers do, bytes are measured on
    the samples and on half of them and extrapolated: within 5 % for those layers, but they are too
    low where more samples move the peak to another moment of the step. Seconds come from steps on 2
    and on all samples and on 2 micro-batches of 2, as a + n (c + d b) for n micro-batches of b; on
    more, up to the whole batch, where a step takes less than 50 ms and its time says little of a
    larger one.

    Args:
        model: the network; it is left unchanged.
        inputs: a batch of at least 8 samples, as the network is called with.
        labels: its labels.
        memory: bytes, or text such as "2GiB", for parameters, buffers, batch and step.
        batch_size: samples of a step; by default those of `inputs`.
        rule: makes the local rule from blocks.
        blocks: numbers of blocks to try; "all" that can be cut.
        optimizer: makes an optimizer of parameters; by default SGD with momentum.
        criterion: the loss that backpropagation minimises.

    Raises:
        InputError: fewer than 8 samples; `memory` is no number of bytes; `batch_size` is below 1.
    """
    limit, rows = bytes_of(memory), len(labels)
    if rows < 8 or (batch_size is not None and batch_size < 1):
        raise InputError(
            f"plan(batch_size={batch_size}): got {rows} samples; give at least 8 to try, and a "
            "batch size of at least 1"
        )
    x = leading(inputs)
    sgd: MakeOptimizer = lambda p: torch.optim.SGD(p, 0.0, 0.9)  # noqa: E731
    made = optimizer or sgd
    size = batch_size or rows
    batch_bytes = size * (_bytes(x) // len(x) + _bytes(labels) // rows)
    norms = any(isinstance(module, _BatchNorm) for module in model.modules())
    found: list[Fit] = []
    whole_s, exact = 0.0, dict[str, bool]()
    for way, contender in _tried(model, inputs, labels, rule, blocks, criterion):
        seconds = Seconds.of(contender, inputs, labels, made, size)
        whole_s = whole_s or seconds(1, size)
        held = sum(map(_bytes, [*contender.rule.parameters(), *contender.rule.buffers()]))
        several = contender.when == "end" or way.family == LOCAL
        bytes_ = Bytes(contender, inputs, labels, made, size, exact.get(way.family))
        exact[way.family] = bytes_.exact
        n, step = _fewest(bytes_, size if several else 1, limit - held - batch_bytes)
        whole = step + held + batch_bytes
        found.append(
            Fit(
                name=replace(way, micro=n).name(
                    type(contender.rule).__name__, len(contender.rule.blocks)
                ),
                micro=n,
                step_bytes=step,
                whole_bytes=whole,
                time=seconds(n, size / n) / whole_s,
                fits=whole <= limit,
                accuracy=accuracy_of(way, type(contender.rule).__name__, n, norms),
            )
        )
    found.sort(key=lambda fit: (not fit.fits, fit.time))
    return MemoryPlan(limit, size, tuple(found))


def _fewest(bytes_of_step: Callable[[int], float], most: int, limit: int) -> tuple[int, int]:
    """The smallest power of two of micro-batches, up to `most`, whose step fits, and its bytes.

    If none fits: 1 or the largest possible, whichever has fewer bytes. From 2 on, bytes fall.
    """
    bytes_of = cache(bytes_of_step)
    counts = [2**i for i in range(most.bit_length())]
    n = 1
    if bytes_of(1) > limit:
        while math.isinf(bytes_of(counts[-1])):
            counts.pop()
        n = min(1, counts[-1], key=bytes_of)
        if bytes_of(n) <= limit:
            n = counts[bisect_left(counts, True, key=lambda n: bytes_of(n) <= limit)]
    return n, int(bytes_of(n))


def accuracy_of(way: Way, rule: str, micro: int, norms: bool) -> str:
    """The cost in accuracy of a way, from the results that ship with the package.

    Args:
        way: the way.
        rule: name of its rule.
        micro: number of micro-batches.
        norms: whether the network has BatchNorm, which sees micro-batches.
    """
    seen = [f"{NOT_MEASURED}: BatchNorm of micro-batches"] if norms and micro > 1 else []
    if way.family != LOCAL:
        return "; ".join(seen) or SAME
    text = resources.files("layerwise.costs").joinpath("accuracies.json").read_text()
    known = json.loads(text).get(rule, {})
    known_to = [
        f"{' to '.join(f'{p:+.1f}' for p in sorted({min(ps), max(ps)}))} ({setting})"
        for setting, ps in known.items()
    ]
    return "; ".join([*(known_to or [NOT_MEASURED]), *seen])


def _tried(
    model: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    rule: MakeRule,
    blocks: Sequence[int | Literal["all"]],
    criterion: Criterion,
) -> Iterator[tuple[Way, Contender]]:
    """The ways to try, one after the other, so that one copy of the network exists at a time."""
    example = first_rows(inputs, 2)
    possible = len(cut(model, blocks="all", example=example))
    numbers = sorted({possible if n == "all" else min(n, possible) for n in blocks})
    local = [(Way(LOCAL, when="early"), n) for n in numbers]
    segments = max(1, round(possible**0.5))  # Chen et al. 2016
    for way, pieces in [
        (Way(), 1),
        (Way(when="early"), 1),
        (Way(checkpoint=True), segments),
        (Way(checkpoint=True, when="early"), segments),
        *local,
    ]:
        yield (
            way,
            way.contender(
                model,
                rule,
                example,
                labels[:2],
                blocks=pieces,
                segments=pieces,
                balance="memory",
                seed=0,
                criterion=criterion,
            ),
        )


class Bytes:
    """The most bytes alive in a step on n micro-batches of `size` samples.

    They are those of a step on the meta device, if a step on few samples keeps there what it keeps
    on the labels' device. It does not where kernels differ, as those of recurrent layers, or where
    something reads values. Then bytes are measured in steps on few samples and extrapolated.

    Args:
        contender, inputs, labels, optimizer: as in `Step`.
        size: samples of the batch.
        exact: whether the meta device keeps the same; None to find out.
    """

    def __init__(
        self,
        contender: Contender,
        inputs: Inputs,
        labels: Tensor,
        optimizer: MakeOptimizer,
        size: int,
        exact: bool | None = None,
    ):
        self.contender, self.optimizer, self.size = contender, optimizer, size
        self.inputs, self.labels = plain(inputs), labels
        self._measured: dict[tuple[int, int], int] = {}
        rule = contender.rule
        # Optimizer state exists after one step, and late gradients wait after some.
        self._first = 1 + (rule.delay if isinstance(rule, DelayedGradient) else 0)
        self._in_turn = contender.when == "early" and isinstance(rule, LocalRule)
        self._in_turn = self._in_turn and rule.accumulates
        self.exact = exact is not False
        if self.exact:
            on_meta = replace(contender, rule=copy.deepcopy(rule).to("meta"), micro=1)
            try:
                self._step = Step(on_meta, *self._batch(len(labels)), optimizer)
                for _ in range(self._first):
                    self._on_meta([len(labels)])
                self.exact = exact or self._same()
            except Exception:  # something reads values, or knows other devices only
                self.exact = False

    def __call__(self, n: int) -> float:
        """The bytes; infinite if so few samples are refused, as by BatchNorm."""
        sizes = [len(part) for part in torch.arange(self.size).tensor_split(n)]
        last = sizes[-1:] if sizes[-1] < sizes[0] else []
        rest = self.size - 3 * sizes[0] - sum(last)
        try:
            if not self.exact:
                return self._extrapolated(n, sizes[0], last)
            if not self._in_turn:  # after the second micro-batch nothing more is kept
                return self._on_meta([*sizes[:2], *(last if n > 2 else [])])
            if rest <= 2 * sizes[0]:
                return self._on_meta(sizes)
            return self._on_meta([*sizes[:1] * 2, rest, *sizes[:1], *last], rest)
        except (RuntimeError, ValueError):
            if n == 1:
                raise
            return math.inf

    def _same(self) -> bool:
        """Whether a step keeps the same on both devices."""
        rows = len(self.labels)
        missed = abs(self._on_meta([rows]) - self._here(rows, 1)) * max(1, self.size / rows)
        return missed <= CLOSE * self._on_meta([self.size])

    def _on_meta(self, sizes: list[int], unseen: int = 0) -> int:
        """The bytes of a step on the meta device.

        Args:
            sizes: of the micro-batches.
            unseen: size of the micro-batch that stands for several. Blocks keep its outputs, but
                the moments at which one runs on it do not count.
        """
        self._step.rule.zero_grad()
        self._step.parts = [self._batch(rows) for rows in sizes]
        with replaced_attention(_by_kernel):
            return live_bytes(self._step, unseen).peak().bytes

    def _batch(self, rows: int) -> tuple[Inputs, Tensor]:
        """A batch on the meta device."""

        def made(t: Tensor) -> Tensor:
            own = t.dim() and len(t) == len(self.labels)
            shape = (rows, *t.shape[1:]) if own else t.shape
            return torch.empty(shape, dtype=t.dtype, device="meta")

        return pytree.tree_map_only(Tensor, made, self.inputs), made(self.labels)

    def _here(self, rows: int, parts: int) -> int:
        """The bytes of a step on 1, 2 or 4 micro-batches of so many of the given samples."""
        if (rows, parts) not in self._measured:
            few = replace(self.contender, micro=parts)
            samples = _repeated(self.inputs, self.labels, rows * parts)
            step = Step(few, *samples, self.optimizer)
            for _ in range(self._first):
                step()
            self._measured[rows, parts] = live_bytes(step).peak().bytes
        return self._measured[rows, parts]

    def _extrapolated(self, n: int, rows: int, last: list[int]) -> float:
        """The bytes of n micro-batches, from those of 2, in which all gradients exist."""
        most, few, parts = len(self.labels), len(self.labels) // 2, min(n, 2)
        for small in last:
            self._here(min(small, most), 1)  # such a step is possible
        found: float = self._here(min(rows, most), parts)
        if rows > most:
            found += (rows - most) * (found - self._here(few, parts)) / (most - few)
        if self._in_turn and n > 2:  # what blocks keep of each micro-batch
            kept = (self._here(few, 4) - self._here(few, 2)) / (2 * few)
            found += (self.size - 2 * rows) * max(0.0, kept)
        return round(found)


def _by_kernel(plain: Attention) -> Attention:
    """Attention that on the meta device keeps what it keeps on others, which is not the matrix of
    its weights. PyTorch itself would run separate operators there, which keep it."""

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        fused = torch.backends.cuda.flash_sdp_enabled() and not dropout_p and query.dim() == 4
        if not query.is_meta or not fused:
            return plain(query, key, value, attn_mask, dropout_p, is_causal, **options)
        mask = None if attn_mask is None else attn_mask.to(query.dtype)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        scale = options.get("scale")
        return kernel(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)[0]

    return attention


@dataclass(frozen=True)
class Seconds:
    """Seconds of a step on n micro-batches of b samples, once + n (fixed + b of_sample)."""

    once: float
    fixed: float
    of_sample: float

    @classmethod
    def of(
        cls,
        contender: Contender,
        inputs: Inputs,
        labels: Tensor,
        optimizer: MakeOptimizer,
        size: int,
    ) -> Seconds:
        def seconds(rows: int, micro: int = 1) -> float:
            tried = replace(contender, micro=micro)
            step = Step(tried, *_repeated(inputs, labels, rows), optimizer)
            timed(step)
            found: list[float] = []
            # Waiting for a processor that others use is no time of one thread's step.
            mine = labels.device.type == "cpu" and torch.get_num_threads() == 1
            while len(found) < ROUNDS or len(found) * min(found) < ENOUGH_S:
                times = timed(step)
                found.append(times.cpu_s if mine else times.wall_s)
            return min(found)  # the least disturbed

        few, many = 2, max(8, min(len(labels), size))
        least, most = seconds(few), seconds(many)
        while most < SHORT_S and many < size:
            many = min(4 * many, size)
            most = seconds(many)
        of_sample = max(0.0, (most - least) / (many - few))
        whole = max(0.0, most - of_sample * many)  # once + fixed
        more = seconds(2 * few, micro=2) - least  # fixed + few of_sample
        fixed = min(max(0.0, more - of_sample * few), whole)
        return cls(whole - fixed, fixed, of_sample)

    def __call__(self, n: int, b: float) -> float:
        return self.once + n * (self.fixed + self.of_sample * b)


def _repeated(inputs: Inputs, labels: Tensor, rows: int) -> tuple[Inputs, Tensor]:
    """A batch of so many samples: those that are given, as often as needed."""
    chosen = torch.arange(rows, device=labels.device) % len(labels)
    return chosen_rows(inputs, chosen), labels[chosen]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
