"""The one training loop: data, rule, optimizer, schedule, checkpoints, metrics."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from layerwise.data import Loader
from layerwise.errors import Interrupted, NonFiniteLoss
from layerwise.objectives.batch import Report, identity
from layerwise.objectives.classify import Criterion, cross_entropy, is_cross_entropy
from layerwise.rules.base import Rule
from layerwise.runs.run import Run
from layerwise.runs.tally import Tally, selected_by
from layerwise.runtime import Runtime, Serial
from layerwise.trainer.checkpoint import (
    block_keys,
    load_optimizer_state,
    load_rule,
    names_of_blocks,
    optimizer_state,
    renamed,
)
from layerwise.trainer.observer import Observer
from layerwise.trainer.optim import Optimizer, Schedule
from layerwise.trainer.progress import Progress
from layerwise.trainer.rate import LearningRate
from layerwise.trainer.row import Row, last_trained, line_of, measured
from layerwise.trainer.settings import Settings
from layerwise.trainer.stop import Stop
from layerwise.trainer.watch import Watch

SEEDS = (1 << 63) - 1  # the largest that torch takes


class Trainer:
    """Trains one rule.

    Args:
        network: the module that was cut into the rule's blocks.
        rule: the rule with its blocks, on the CPU; moved to the device here.
        loaders: "train", and any of "validation" and "test". The best epoch is selected on
            validation only.
        optimizer: recipe of the optimizer.
        schedule: of its learning rate, per step.
        settings: everything else.
        run: where checkpoints and metrics go.
        fabric: device and precision.
        runtime: makes what runs the rule, once that is on its device.
        observers: watch the training, in this order.
        progress: a display.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        rule: Rule,
        loaders: Mapping[str, Loader | None],
        optimizer: Optimizer,
        schedule: Schedule,
        settings: Settings,
        run: Run,
        fabric: Fabric,
        runtime: Callable[[Rule], Runtime] = Serial,
        observers: Sequence[Observer] = (),
        progress: Progress | None = None,
    ):
        self.settings, self.run, self.fabric = settings, run, fabric
        self.observers, self.progress = list(observers), progress or Progress()
        self.train_loader: Loader = loaders["train"]  # type: ignore[assignment]
        self.eval_loaders = {
            name: loader
            for name in ("validation", "test")
            if (loader := loaders.get(name)) is not None
        }
        # Found before the move to a device, which makes buffers anew.
        self.network, self.block_keys = network, block_keys(network, rule)
        self.rule: Rule = rule.to(fabric.device)
        if settings.channels_last:
            self.rule.to(memory_format=torch.channels_last)
        self.runtime = runtime(self.rule)
        of_blocks = {i: rule.parameters_of(i) for i in self.runtime.blocks}
        parts = (
            of_blocks
            if settings.step_per_block
            else {0: [p for parameters in of_blocks.values() for p in parameters]}
        )
        self.optimizers = {
            i: optimizer(part) if any(p.requires_grad for p in part) else None
            for i, part in parts.items()
        }
        self.scaler: torch.amp.GradScaler | None = getattr(
            fabric.strategy.precision, "scaler", None
        )
        self.steps_per_epoch = math.ceil(len(self.train_loader) / settings.accumulate)
        self.rate = LearningRate(
            optimizer.lr,  # type: ignore[attr-defined]
            schedule,
            rule.phases(settings.epochs),
            self.steps_per_epoch,
        )
        self.ema = (
            AveragedModel(rule, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)
            if settings.ema is not None
            else None
        )
        if settings.compile:
            for block in rule.blocks:
                block.compile()
        self.epoch = 0  # epochs completed
        self.batch = 0  # batches completed of the epoch under way
        self.step = 0  # optimizer steps completed
        self.seconds = 0.0  # of the epoch under way, training only
        self.best: float | None = None
        self.tally = self._new_tally()
        self.watch = Watch(rule, fabric.device, self.runtime.blocks)
        self.stop = Stop(self.progress.say)

    # ---------------------------------------------------------------- the loop

    def fit(self) -> None:
        """Train from where the trainer stands to the last epoch.

        Raises:
            NonFiniteLoss: a loss or a weight became infinite or not a number; the last checkpoint
                is kept.
            Interrupted: a signal asked to stop; what was done is saved.
        """
        with self.stop.on_signals():
            while self.epoch < self.settings.epochs:
                self._train_epoch()
                results = {name: self._evaluate(at) for name, at in self.eval_loaders.items()}
                self._finish_epoch(results)
        self.runtime.close()
        self.run.write("model.safetensors", self._network_file())

    def _train_epoch(self) -> None:
        settings, loader = self.settings, self.train_loader
        batches = len(loader)
        self.rule.begin(self.rate.phase(self.epoch))
        self.rule.train()
        images = batches * settings.batch_size
        self.progress.start(
            self.epoch + 1, settings.epochs, images, self.batch * settings.batch_size
        )
        started = shown = time.perf_counter()
        for x, y in self._batches(loader, self.epoch, self.batch):
            first = self.batch - self.batch % settings.accumulate
            together = min(settings.accumulate, batches - first)
            if self.batch == first:
                started += self._observe_step(x, y)
            report = self._backward(x, y, together, completes=self.batch + 1 == first + together)
            losses = self.tally.add(report.local_losses, report.local_logits, report.y)
            self.watch.note(losses, self.step)
            self.batch += 1
            if self.batch % settings.accumulate and self.batch < batches:
                continue
            self._finish_step()
            now = time.perf_counter()
            if now - shown > 0.5:
                self._guard()
                done = self.batch * settings.batch_size
                self.progress.update(done, *last_trained(self.tally))
                shown = now
            due = settings.save_every and self.step % settings.save_every == 0
            stops = self.runtime.stops(self.stop.asked)
            if due or stops:
                self._guard(saving=True)
                self._wait()
                self.seconds += time.perf_counter() - started
                started = time.perf_counter()
                self._save("last")
            if stops:
                self._interrupt()
        self._guard(saving=True)
        self._wait()
        self.seconds += time.perf_counter() - started
        self.progress.update(images, *last_trained(self.tally))

    def _batches(
        self, loader: Loader, epoch: int, start: int = 0
    ) -> Iterator[tuple[Tensor | None, Tensor]]:
        """Batches; without the images where this process does without."""
        if self.runtime.reads_input:
            yield from loader.epoch(epoch, start)
        else:
            yield from ((None, y) for y in loader.labels(epoch, start))

    def _backward(
        self, x: Tensor | None, y: Tensor, together: int, completes: bool = True
    ) -> Report:
        """One batch's gradients; `together` batches make a step, which this one `completes`."""

        def scale(loss: Tensor) -> Tensor:
            if together > 1:
                loss = loss / together
            return loss if self.scaler is None else self.scaler.scale(loss)

        self._set_lr()
        number = self.epoch * len(self.train_loader) + self.batch

        def before_block(i: int) -> None:
            # Random numbers of a block on a batch depend on these two and the seed: not on how many
            # other blocks drew, nor on where those are.
            torch.manual_seed(hash((self.settings.seed, number, i, self.runtime.replica)) & SEEDS)

        with self.fabric.autocast():
            return self.runtime.backward(
                x,
                y,
                scale=scale,
                on_block=self._step_block if self.settings.step_per_block else None,
                before_block=before_block,
                stops=self.stop.asked and completes,
                completes=completes,
            )

    def _observe_step(self, x: Tensor | None, y: Tensor) -> float:
        """Show a step's first batch to the observers that are due; the seconds that they took,
        which do not count as training."""
        due = [observer for observer in self.observers if observer.due(self.step)]
        if not due:
            return 0.0
        assert x is not None
        self._wait()
        started = time.perf_counter()
        with self.fabric.autocast():
            scale = identity if self.scaler is None else self.scaler.scale
            for observer in due:
                observer.before_step(self.step, self.rule, x=x, y=y, scale=scale)
        self._wait()
        return time.perf_counter() - started

    def _step_block(self, i: int) -> None:
        if (optimizer := self.optimizers[i]) is None:
            return
        if self.settings.clip_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.rule.parameters(), self.settings.clip_norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    def _finish_step(self) -> None:
        if not self.settings.step_per_block:
            self._step_block(0)  # the one optimizer of all blocks here
        if self.scaler is not None:
            self.scaler.update()  # once all blocks have stepped: they share one scale
        self.step += 1
        if self.ema is not None:
            self.ema.update_parameters(self.rule)

    def _set_lr(self) -> None:
        lr = self.rate.at(self.step)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = lr

    @torch.no_grad()
    def _evaluate(self, loader: Loader) -> Tally:
        rule = self._evaluated_rule()
        rule.eval()
        tally, criterion = self._new_tally(), _criterion(rule)
        with self.fabric.autocast():
            for x, y in self._batches(loader, 0):
                logits = self.runtime.exits(rule, x, y, stops=self.stop.asked)
                if self.runtime.stops(self.stop.asked):
                    self._save("last")  # the epoch is trained and will be evaluated on resuming
                    self._interrupt()
                losses = [None if s is None else criterion(s.float(), y) for s in logits]
                tally.add(losses, logits, y)
        self.runtime.add_up(tally)
        return tally

    def _finish_epoch(self, results: Mapping[str, Tally]) -> None:
        self.runtime.add_up(self.tally)
        row = self._row(results)
        self.epoch, self.batch, self.seconds = self.epoch + 1, 0, 0.0
        self.tally = self._new_tally()
        self.run.add_metrics(row)
        line = line_of(row, self.settings.epochs, self.train_loader.unit)
        score = selected_by(row)
        improved = score is not None and (self.best is None or score > self.best)
        if improved:
            self.best = score
            line += "  (best)"
        self.run.log(line)
        self.progress.say(line)
        state = self._gathered()
        if state is not None:
            with self._shown() as rule:
                for observer in self.observers:
                    observer.before_checkpoint(self.epoch, rule)
            for name in (*(["best"] if improved else []), "last"):
                self.run.save(name, state)
        # Last: an epoch that is trained again after a crash must not be observed twice.
        with self._shown() as rule:
            for observer in self.observers:
                observer.after_epoch(self.epoch, rule, row)

    @contextlib.contextmanager
    def _shown(self) -> Iterator[Rule]:
        """The rule as it is evaluated. Training continues with the same bits: random numbers that
        are drawn within do not count."""
        device = self.fabric.device
        rule = self._evaluated_rule().eval()
        forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with torch.no_grad(), forked, self.fabric.autocast():
            yield rule

    def _row(self, results: Mapping[str, Tally]) -> Row:
        images = self.batch * self.settings.batch_size
        return {
            "epoch": self.epoch + 1,
            "step": self.step,
            "lr": self.rate.at(max(0, self.step - 1)),
            "seconds": round(self.seconds, 3),
            "images_per_s": round(images / self.seconds, 1) if self.seconds else None,
            **measured({"train": self.tally, **results}, tokens=self.train_loader.tokens),
        }

    # ---------------------------------------------------------------- keeping and finding again

    def _save(self, name: str) -> None:
        """Write a checkpoint."""
        state = self._gathered()
        if state is not None:
            self.run.save(name, state)

    def _gathered(self) -> dict[str, Any] | None:
        """The state of all blocks; where some are elsewhere, they are fetched. None in a process
        that does not keep the run's files."""
        state = self.runtime.gather(self.state_dict())
        if state is not None and len(self.runtime.blocks) < len(self.rule.blocks):
            self._load_weights(state)
        return state

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, of the blocks that are here."""
        here = names_of_blocks(self.rule, self.runtime.blocks)
        tally = copy.deepcopy(self.tally)
        self.runtime.add_up(tally)
        rng = {"cpu": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "rule": {name: t for name, t in self.rule.state_dict().items() if name in here},
            "optimizers": optimizer_state(self.rule, self.optimizers.values()),
            "ema": None if self.ema is None else self._ema_state(here),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "tally": tally.state_dict(),
            "rng": rng,
        }

    def _ema_state(self, here: Container[str]) -> dict[str, Tensor]:
        assert self.ema is not None
        prefix = "module."
        state = self.ema.state_dict()
        return {n: t for n, t in state.items() if n.removeprefix(prefix) in here or prefix not in n}

    def _load_weights(self, state: Mapping[str, Any]) -> None:
        load_rule(self.rule, state["rule"])
        if self.ema is not None:
            self.ema.load_state_dict(renamed(state["ema"]))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where `state_dict` was taken, of all blocks."""
        self._load_weights(state)
        load_optimizer_state(self.rule, self.optimizers.values(), state["optimizers"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.tally.load_state_dict(state["tally"])
        self.tally.only(self.runtime.blocks if self.runtime.counts else ())
        for name in ("epoch", "batch", "step", "seconds", "best"):
            setattr(self, name, state[name])
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"] and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.fabric.device)

    # ---------------------------------------------------------------- stopping

    def _guard(self, saving: bool = False) -> None:
        """Stop where numbers are no longer finite: losses, and before `saving` weights too."""
        found = self.watch.losses() or (self.watch.weights(self.step) if saving else None)
        if found is None:
            return
        what, step = found
        kept = self.run.checkpoints / "last.safetensors"
        message = (
            f"{what} is not finite at step {step}, "
            f"learning rate {self.rate.at(step):.3g}; "
            + (f"the last good checkpoint is {kept}; " if kept.exists() else "")
            + "try a smaller learning rate, a warm-up or --clip_norm"
        )
        self.run.log(message)
        raise NonFiniteLoss(message)

    def _interrupt(self) -> None:
        message = f"stopped at step {self.step}; continue: layerwise train --resume {self.run.path}"
        self.run.log(message)
        self.runtime.close()
        raise Interrupted(message)

    def _network_file(self) -> bytes:
        """The network by its own names; what a cut left out (auxiliary classifiers) as it began."""
        state, whole = self._evaluated_rule().blocks.state_dict(), self.network.state_dict()
        for name, key in self.block_keys.items():
            whole[name] = state[key]
        cloned = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in whole.items()
        }
        return safetensors.torch.save(cloned)

    def _evaluated_rule(self) -> Rule:
        return self.rule if self.ema is None else self.ema.module  # type: ignore[return-value]

    def _new_tally(self) -> Tally:
        return Tally(len(self.rule.blocks), self.fabric.device)

    def _wait(self) -> None:
        if self.fabric.device.type != "cpu":
            torch.accelerator.synchronize(self.fabric.device)


def _criterion(rule: Rule) -> Criterion:
    """What class scores are evaluated by: cross-entropy without label smoothing, or a criterion of
    the user's."""
    last = rule.objectives[str(len(rule.blocks) - 1)]
    found = getattr(last, "criterion", getattr(rule, "criterion", cross_entropy))
    return cross_entropy if is_cross_entropy(found) else found  # type: ignore[return-value]
