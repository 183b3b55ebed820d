"""Backpropagation whose gradients are one step old, so that pipeline stages never wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.inputs import Inputs
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch, OnBlock, nothing
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Needs, Rule, differentiate


class DelayedGradient(Rule):
    """Backpropagation with gradients that are a step old.

    PipeDream-2BW (Narayanan et al. 2021, arXiv:2006.09503). With step t on batch t, learning rate v
    and W(t) the weights before the step:

        W(t+1) = W(t) - v d loss_{t-1}(W(t-1)) / d W(t-1)

    In one process this is backpropagation whose gradients come one call later. In stages
    (`LayerParallel`) a stage runs the next batch forward while the gradient of the one before is on
    its way back, so that it never waits: no bubble, no auxiliary networks, and staleness instead.
    A batch runs forward and back through the same weights everywhere; a stage keeps the versions
    that its graphs still need, two of them for two stages.

    With S stages the delay that leaves no bubble is S - 1 calls.

    Deviations: a delay counts calls of `backward`, not steps. If n calls make a step
    (`--accumulate n`) and the delay is d < n, the gradients of n - d of them are current and those
    of d a step old; in PipeDream-2BW all are a step old. A stage with a smaller delay than the
    number of stages needs waits. The first `delay` calls give no gradients, and those of the last
    calls are never used; a resumed training begins again in this way, so its bits are others.
    Gradients keep the `scale` of their own call: a loss scale that changes (float16) is none for
    this rule. `layerwise train` gives each block random numbers of its own, in one process and in
    stages alike, so that dropout draws others there than under `Backprop`.

    Args:
        blocks: the network's blocks.
        delay: number of calls by which gradients are late; 0 is `Backprop`, bit for bit.
        error_feedback: let `layerwise train` correct its optimizer's updates (`correct_delay`).
        criterion: the loss function of the network's output: takes class scores and labels, returns
            a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `delay` is below 0, or 0 with `error_feedback`.
    """

    needs = Needs.BACKWARD

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        delay: int = 1,
        error_feedback: bool = False,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, criterion=criterion)
        if delay < 0:
            raise InputError(f"DelayedGradient(delay={delay}): give 0 or more")
        if error_feedback and not delay:
            raise InputError(
                "DelayedGradient(delay=0, error_feedback=True): without a delay there is no error "
                "to correct; leave one of both out"
            )
        self.delay, self.error_feedback = delay, error_feedback
        self.before_block: OnBlock = nothing  # called before a block runs; set by a runtime
        self._late: Late | None = None

    def step(self, batch: Batch) -> Tensor:
        if self._late is None:
            self._late = Late(list(self.parameters()), self.delay)
        last = len(self.blocks) - 1
        h = batch.inputs
        with self._late.delayed():
            for k in range(len(self.blocks)):
                self.before_block(k)
                h = batch.run(k, h)
            loss, scores = self.loss(last, Activity(h), batch)
            differentiate(loss, batch.scale)
        batch.done(last, loss, scores)
        for k in reversed(range(last)):
            batch.done(k)
        return h

    def waiting(self) -> list[Tensor]:
        """The gradients of earlier calls that have not reached `.grad` yet."""
        return [] if self._late is None else self._late.waiting()

    def first_input(self, batch: Batch) -> Inputs:
        """The input of the first block."""
        return self.reading.first_input(batch)

    def reads_input(self, blocks: Iterable[int]) -> bool:
        """Whether any of these blocks reads the network's inputs, apart from the first block."""
        return any(k > 0 and self.blocks.reads_inputs(k) for k in blocks)


class Late:
    """Gradients of some parameters that reach `.grad` some calls later.

    Args:
        parameters: the parameters.
        calls: the number of calls; 0 for at once.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], calls: int):
        self._parameters, self._calls = list(parameters), calls
        self._waiting: deque[list[Tensor | None]] = deque()

    def add(self, gradients: list[Tensor | None]) -> None:
        """Take a call's gradients; add those that are due to `.grad`."""
        self._waiting.append(gradients)
        if len(self._waiting) <= self._calls:
            return
        for p, gradient in zip(self._parameters, self._waiting.popleft(), strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else p.grad + gradient

    def waiting(self) -> list[Tensor]:
        """The gradients that have not reached `.grad` yet."""
        return [g for gradients in self._waiting for g in gradients if g is not None]

    def delayed(self) -> _Delayed:
        """A context whose gradients are delayed; those that were in `.grad` before stay there."""
        return _Delayed(self, self._parameters)


class _Delayed:
    def __init__(self, late: Late, parameters: Sequence[nn.Parameter]):
        self.late, self.parameters = late, parameters

    def __enter__(self) -> None:
        self.before = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None

    def __exit__(self, kind: object, *_: object) -> None:
        fresh = [p.grad for p in self.parameters]
        for p, grad in zip(self.parameters, self.before, strict=True):
            p.grad = grad
        if kind is None:
            self.late.add(fresh)


def correct_delay(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer correct its updates for gradients that are one step old, by error feedback.

    In a step the update d_{t-1} of the gradient before stands in for d_t. In the next step d_t is
    known, and with it the error d_t - d_{t-1} that was made; it is made good then:

        W(t+1) = W(t) + d_{t-1} + (d_{t-1} - d_{t-2}),    d_{-1} = 0

    This is the optimizer's own update, of whatever kind, plus its change; it needs one more number
    for each weight. The idea of an error feedback of updates is that of Zmushko et al. 2026
    (arXiv:2606.30634), who find that it closes most of the gap to current gradients, and that Muon
    needs it least; the formula here is error feedback as in Karimireddy et al. 2019
    (arXiv:1901.09847), written out for a delay of one, and may differ from theirs.

    Args:
        optimizer: of any kind; its `state` gets a tensor "last_update" for each weight.
    """
    before: dict[Tensor, Tensor] = {}

    def note(*_: object) -> None:
        before.update(
            (p, p.detach().clone())
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        )

    @torch.no_grad()
    def correct(*_: object) -> None:
        for p, was in before.items():
            update = p - was
            last = optimizer.state[p].get("last_update")
            p += update if last is None else update - last
            optimizer.state[p]["last_update"] = update
        before.clear()

    optimizer.register_step_pre_hook(note)
    optimizer.register_step_post_hook(correct)
