"""A stage of backpropagation with delayed gradients (`rules.DelayedGradient`)."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from layerwise.errors import InputError
from layerwise.inputs import Inputs
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch, OnBlock, identity
from layerwise.rules.base import differentiate
from layerwise.rules.delayed_gradient import DelayedGradient, Late
from layerwise.runtime.neighbours import Downstream, Upstream


class _Open(NamedTuple):
    """A batch that ran forward and not yet back; the last stage has a loss in place of outputs."""

    h: Inputs
    end: Tensor
    weights: list[Tensor]
    batch: Batch


class DelayedStage:
    """The blocks of one stage: in a call they run the newest batch forward, and the batch back
    whose gradient has arrived.

    With S stages, delay d and r the number of the stage, batch t goes back in call
    t + min(d, S-1-r), in which its gradient has arrived if all stages are equally fast; what is
    left of the delay, its gradients wait. All stages therefore run batch t forward after the same
    steps.

    Args:
        rule: the rule.
        blocks: numbers of this stage's blocks.
        after: number of stages after this one.
    """

    def __init__(self, rule: DelayedGradient, blocks: range, after: int):
        self.rule, self.blocks, self.lag = rule, blocks, min(rule.delay, after)
        own = {p for k in blocks for p in rule.parameters_of(k)}
        self.places = [
            (module, key, p)
            for module in rule.modules()
            for key, p in module._parameters.items()
            if p is not None and p in own
        ]
        self.parameters: list[nn.Parameter] = list(dict.fromkeys(p for *_, p in self.places))
        self._late = Late(self.parameters, rule.delay - self.lag)
        self._open: deque[_Open] = deque()
        self._weights: list[Tensor] = []

    def train(
        self,
        batch: Batch,
        h: Inputs,
        before: Upstream,
        after: Downstream | None,
        before_block: OnBlock,
        completes: bool = True,
    ) -> Tensor:
        """Make this stage's part of a call; returns its output, (B, ...), detached. `completes`
        tells whether an optimizer step follows."""
        if not before.first:
            assert isinstance(h, Tensor)
            h = h.detach().requires_grad_(h.is_floating_point())
        weights = self._version()
        out = h
        with self._running_on(weights):
            for k in self.blocks:
                before_block(k)
                out = batch.run(k, out, keep=k == self.blocks[0] and not before.first)
        end, scores = out, None
        if after is None:
            end, scores = self.rule.loss(self.blocks[-1], Activity(out), batch)
        else:
            after.give(out.detach(), stopping=before.stopping)
        loss = end.detach() if after is None else None
        self._open.append(_Open(h, end, weights, batch))
        if len(self._open) > self.lag:
            self._back(self._open.popleft(), before, after)
        for k in reversed(self.blocks):
            last = k == self.blocks[-1]
            batch.done(k, loss if last else None, scores if last else None)
        if completes:
            self._weights = []
        return out.detach()

    def _back(self, open_: _Open, before: Upstream, after: Downstream | None) -> None:
        """Run a batch back, and send the gradient of this stage's input on."""
        with self._late.delayed() if not open_.weights else contextlib.nullcontext():
            if after is None:
                differentiate(open_.end, open_.batch.scale)
            else:
                differentiate(open_.end, identity, gradient=after.receive_back())
        if open_.weights:
            # A frozen parameter stands for its own copy.
            pairs = list(zip(open_.weights, self.parameters, strict=True))
            self._late.add([None if w is p else w.grad for w, p in pairs])
            for w, p in pairs:
                if w is not p:
                    w.grad = None
        if not before.first:
            assert isinstance(open_.h, Tensor)
            before.send_back(open_.h.grad)

    def _version(self) -> list[Tensor]:
        """Copies of the weights for a graph that outlives the next steps; none in a stage that goes
        back at once. Calls between two steps share them."""
        if self.lag and not self._weights:
            self._weights = [
                p.detach().clone().requires_grad_() if p.requires_grad else p
                for p in self.parameters
            ]
        return self._weights

    @contextlib.contextmanager
    def _running_on(self, weights: list[Tensor]) -> Iterator[None]:
        """Within, the modules compute with these weights."""
        of = dict(zip(self.parameters, weights, strict=True)) if weights else {}
        try:
            for module, key, p in self.places if weights else ():
                module._parameters[key] = of[p]  # type: ignore[assignment]
            yield
        finally:
            for module, key, p in self.places:
                module._parameters[key] = p


def check_delayed(rule: DelayedGradient, replicas: int, replay: int) -> None:
    """Refuse options that delayed gradients do not have.

    Raises:
        InputError: several replicas, or replay.
    """
    if replicas > 1 or replay:
        raise InputError(
            f"--runtime layer_parallel: {type(rule).__name__} runs with --replicas 1 and without "
            f"--replay, and got --replicas {replicas} --replay {replay}"
        )
