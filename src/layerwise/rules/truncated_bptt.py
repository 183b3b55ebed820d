"""Truncated backpropagation through time, also with synthetic gradients at the ends of windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import at_least, checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads import Synthesizer
from layerwise.inputs import Inputs, describe, leading
from layerwise.labels import IGNORED
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy, is_cross_entropy
from layerwise.rules.base import Needs, Rule, differentiate
from layerwise.rules.calls.recurrent import Recurrent


class TruncatedBPTT(Rule):
    """Backpropagation through windows of time; a synthetic gradient can stand for all later
    windows.

    A sequence is read in windows. Window w begins with the state s_{w-1} in which the window before
    it ended, detached, and has the loss L_w; L_w,b is the loss of sequence b. M is a synthesizer,
    `a` is `synthetic`, and sg[] stops the gradient. After Jaderberg et al. 2017 (arXiv:1608.05343),
    section 2.2:

        d^_w = M(s_w)                                        predicts d sum_{v>w} L_v,b / d s_w
        grad = sum_w d (L_w + a mean_b <sg[d^_w], s_w>) / d f
        d_w-1 = d (L_w,b + a <sg[d^_w], s_w>) / d s_{w-1}    M's target, bootstrapped
        loss of M = mean (d^_w-1 - sg[d_w-1])^2

    d^ is 0 where sequences end. With `synthetic` 0 there is no synthesizer, and this is truncated
    backpropagation through time. If M is right and `synthetic` is 1, it is backpropagation through
    all windows. With one window and without `carry` it is `Backprop`.

    Every call of `backward` is one window, or several: with `window`, sequences (B, L) are read in
    windows of that length, whose gradients add up in one step, and L_w is the part of the window in
    the mean over all labels. With `carry`, the next call continues where this one ended, and the
    rule's `state_dict()` holds the state.

    The state is that of the network's recurrent layers (`nn.RNN`, `nn.LSTM`, `nn.GRU`), wherever
    they are in it; the synthesizer reads all of it, h and c, and predicts the gradient of all of
    it.

    Deviations: a synthesizer predicts the gradient of a sequence's own loss instead of the batch
    mean's; its error is a mean over elements; `synthetic` also discounts the gradient with which
    synthesizers are bootstrapped; one optimizer steps the network and the synthesizer; the
    auxiliary task, in which the network predicts later synthetic gradients, is left out.

    Args:
        blocks: the network's blocks.
        window: number of steps in a window; null for one window in every call.
        carry: whether the next call of `backward` continues these sequences, row by row. It may be
            changed between calls: set it to False before the last window of sequences. In
            evaluation, `exits` continues in the same way, and eval mode begins anew.
        synthetic: the factor of the synthetic gradient, 0 to 1; 0 for none.
        synthesizer: the recipe of the synthesizer.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            a scalar.

    Attributes:
        state: the state in which the last call ended, (B, S), if the next one continues; None
            before a sequence.

    Raises:
        InputError: `blocks` is not a `Blocks`; a number outside its range; a network without a
            recurrent layer, unless the defaults are used, or with a bidirectional one; in
            `backward` with `window`, inputs or labels without the same steps on their second axis;
            with `carry`, more sequences than in the call before; a recurrent layer that a forward
            does not call exactly once.
    """

    needs = Needs.BACKWARD

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        window: int | None = None,
        carry: bool = False,
        synthetic: float = 0.0,
        synthesizer: Synthesizer = Synthesizer(layers=1, batch_norm=False),
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, criterion=criterion)
        at_least(1, "TruncatedBPTT", window=window)
        at_least(0, "TruncatedBPTT", most=1, synthetic=synthetic)
        self.window, self.carry, self.synthetic = window, carry, synthetic
        self.state: Tensor | None = None
        self._read: Tensor | None = None  # the same in evaluation
        self._recurrent: Recurrent | None = None
        self.synthesizer: nn.Module | None = None
        if window is None and not carry and not synthetic:
            return
        self._recurrent = Recurrent(blocks, "TruncatedBPTT")
        if not self._recurrent.size:
            raise InputError(
                f"TruncatedBPTT(window={window}, carry={carry}, synthetic={synthetic}): the "
                "network has no recurrent layer (nn.RNN, nn.LSTM, nn.GRU), so nothing passes from "
                "window to window; take such a network, as models.lstm, or the rule Backprop"
            )
        if synthetic:
            self.synthesizer = self.moved(
                len(blocks) - 1, synthesizer((self._recurrent.size,), None)
            )

    def auxiliary(self, k: int) -> list[nn.Module]:
        found = super().auxiliary(k)
        if k == len(self.blocks) - 1 and self.synthesizer is not None:
            found.append(self.synthesizer)
        return found

    def step(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        windows = self._windows(batch)
        state = self._continued(self.state, batch.rows)
        synthetic = None if state is None else self._synthesize(state)
        losses, outputs = [], []
        for n, (x, y, share) in enumerate(windows):
            h, end = self._run(x, state)
            loss, _ = self.loss(last, Activity(h), Batch(x, y, batch.scale))
            loss = loss if share is None else loss * share  # L_w
            losses.append(loss.detach())
            outputs.append(h.detach())
            goes_on = end is not None and (self.carry or n < len(windows) - 1)
            ahead = self._synthesize(end) if end is not None and goes_on else None  # d^_w
            differentiate(loss, batch.scale, also=self._injected(end, ahead, batch))
            if synthetic is not None and state is not None:
                self._learn(synthetic, state.grad, batch)
            state, synthetic = None, ahead
            if end is not None and goes_on:
                state = end.detach().requires_grad_(ahead is not None)
        self.state = None if state is None else state.detach()
        output = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]
        for k in range(last):
            batch.done(k)
        batch.done(last, torch.stack(losses).sum() if len(losses) > 1 else losses[0], output)
        return output

    def _windows(self, batch: Batch) -> list[tuple[Inputs, Tensor, Tensor | float | None]]:
        """Inputs and labels of each window, and its share in the mean over all labels."""
        x, y, size = batch.inputs, batch.labels, self.window
        if size is None:
            return [(x, y, None)]
        if not isinstance(x, Tensor):
            raise InputError(
                f"TruncatedBPTT(window={size}): got inputs of {describe(x)}; windows are cut from "
                "one tensor of sequences, (B, L, ...): give that alone, or leave window out and "
                "call backward for each window, with carry=True"
            )
        if x.dim() < 2 or y.shape[:2] != x.shape[:2]:
            raise InputError(
                f"TruncatedBPTT(window={size}): got inputs {tuple(x.shape)} with labels "
                f"{tuple(y.shape)}; give one tensor of sequences, (B, L, ...), and a label for "
                "every step, (B, L)"
            )
        if x.shape[1] <= size:
            return [(x, y, None)]
        if y.is_floating_point() or not is_cross_entropy(self._criterion):
            shares: Any = [part.shape[1] / y.shape[1] for part in y.split(size, 1)]
        else:
            weight = self.weight_at(0)
            like = torch.float32 if weight is None else weight.dtype
            counts = torch.stack([(part != IGNORED).sum() for part in y.split(size, 1)])
            counts = counts.to(torch.promote_types(like, torch.float32))
            shares = (counts / counts.sum().clamp(min=1)).unbind()
        return list(zip(x.split(size, 1), y.split(size, 1), shares, strict=True))

    @property
    def _criterion(self) -> object:
        return getattr(self.objectives[len(self.blocks) - 1], "criterion", None)

    def _run(self, x: Inputs, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The network's output, and the state in which it ends."""
        if self._recurrent is None:
            return self.blocks(x), None
        with self._recurrent.started(state) as ends:
            h = self.blocks(x)
        return h, ends[0]

    def _continued(self, state: Tensor | None, rows: int) -> Tensor | None:
        """The state with which `rows` sequences begin; sequences that are missing have ended."""
        if state is None:
            return None
        if rows > len(state):
            raise InputError(
                f"TruncatedBPTT(carry=True): got {rows} sequences, and the call before had "
                f"{len(state)}; give the same ones, or call restart() where others begin"
            )
        weight = self.weight_at(0)
        state = state[:rows] if weight is None else state[:rows].to(weight.device)
        return state.detach().requires_grad_(self.synthesizer is not None)

    def _synthesize(self, state: Tensor) -> Tensor | None:
        return None if self.synthesizer is None else self.synthesizer(state.detach(), None)

    def _injected(
        self, end: Tensor | None, synthetic: Tensor | None, batch: Batch
    ) -> list[tuple[Tensor, Tensor]]:
        """The gradient that the state at a window's end receives: a mean_b of d^_w."""
        if end is None or synthetic is None or not end.requires_grad:
            return []
        gradient = synthetic.detach().to(end.dtype) * (self.synthetic / batch.rows)
        return [(end, gradient * batch.scaled_one(gradient))]

    def _learn(self, synthetic: Tensor, gradient: Tensor | None, batch: Batch) -> None:
        """The synthesizer learns the gradient that was found for the state before the window."""
        if gradient is None:  # everything is frozen
            return
        d = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        d = d * (batch.rows / batch.scaled_one(d))  # of each sequence's own loss
        differentiate(F.mse_loss(synthetic.to(d.dtype), d), batch.scale)

    # ------------------------------------------------------------ the state between calls

    def exits(self, inputs: Inputs) -> tuple[Tensor | None, ...]:
        if self._recurrent is None or not self.carry:
            return super().exits(inputs)
        state = self._continued(self._read, len(leading(inputs)))
        with self._recurrent.started(state) as ends:
            found = super().exits(inputs)
        self._read = ends[0].detach()
        return found

    def train(self, mode: bool = True) -> TruncatedBPTT:
        self._read = None
        return super().train(mode)

    def restart(self) -> None:
        self.state = None

    def get_extra_state(self) -> Tensor:
        return torch.empty(0) if self.state is None else self.state

    def set_extra_state(self, state: Tensor) -> None:
        self.state = state if state.numel() else None
