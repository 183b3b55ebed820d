"""The training loop: data, rule, steps, evaluation, metrics, checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor, nn

from layerwise.data import Batches, Loader
from layerwise.errors import Interrupted, NonFiniteLoss
from layerwise.objectives.batch import identity, nothing
from layerwise.rules.base import Report, Rule, criterion_of
from layerwise.runs.metrics import Metrics, selected_by
from layerwise.runs.run import Run
from layerwise.runtime import Runtime, Serial, StepOptions
from layerwise.trainer.checkpoint import block_keys
from layerwise.trainer.device import seed_generators
from layerwise.trainer.epoch_metrics import Row, last_trained, line_of, measured
from layerwise.trainer.finite import FiniteCheck
from layerwise.trainer.observer import Observer
from layerwise.trainer.optim import Optimizer, Schedule
from layerwise.trainer.progress import Progress, Watched
from layerwise.trainer.settings import Settings
from layerwise.trainer.state import Position, State
from layerwise.trainer.stepper import Stepper
from layerwise.trainer.stop import Stop

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SEEDS = (1 << 63) - 1  # the largest that torch takes
SHOWN_EVERY_S = 0.5  # at most so often is the display updated


class Trainer:
    """Trains one rule.

    Args:
        network: the module that was cut into the rule's blocks.
        rule: the rule with its blocks, on the CPU; moved to the device here.
        loaders: "train", and any of "validation" and "test". The best epoch is selected on
            validation only.
        optimizer: recipe of the optimizer.
        schedule: schedule of its learning rate, per step.
        settings: everything else.
        run: where checkpoints and metrics go.
        fabric: device and precision.
        runtime: makes what runs the rule, once the rule is on its device.
        observers: watch the training, in this order.
        progress: a display.

    Attributes:
        state: where training stands.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        rule: Rule,
        loaders: Mapping[str, Loader | Batches | None],
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
        self.observers = list(observers)
        self.stop = Stop(lambda line: self.progress.say(line))
        self.progress = Watched(progress or Progress(), on_loss=self.stop.ask)
        self.train_loader: Loader | Batches = loaders["train"]  # type: ignore[assignment]
        self.eval_loaders = {
            name: loader
            for name in ("validation", "test")
            if (loader := loaders.get(name)) is not None
        }
        # Before the move to a device, which replaces buffers.
        self.network, self.block_keys = network, block_keys(network, rule)
        self.rule: Rule = rule.to(fabric.device)
        if settings.channels_last is True:
            self.rule.to(memory_format=torch.channels_last)
        self.runtime = runtime(self.rule)
        self.stepper = Stepper(
            self.rule,
            self.runtime.blocks,
            optimizer=optimizer,
            schedule=schedule,
            settings=settings,
            batches=len(self.train_loader),
            scaler=getattr(fabric.strategy.precision, "scaler", None),
        )
        if settings.compile:
            for block in rule.blocks:
                block.compile()
        self.state = State(self.rule, self.runtime, self.stepper, fabric.device)
        self.finite = FiniteCheck(rule, fabric.device, self.runtime.blocks)

    @property
    def position(self) -> Position:
        """How far training is."""
        return self.state.position

    def fit(self) -> None:
        """Train from where the trainer stands to the last epoch.

        Raises:
            NonFiniteLoss: a loss or a weight became infinite or not a number; the last checkpoint
                is kept.
            Interrupted: a signal asked to stop, or the display is lost; everything done is saved.
        """
        with self.stop.on_signals():
            while self.position.epoch < self.settings.epochs and not self._out_of_patience():
                self._train_epoch()
                results = {name: self._evaluate(at) for name, at in self.eval_loaders.items()}
                self._finish_epoch(results)
        self.runtime.close()
        if self.runtime.leader:  # only this process has all weights
            self.run.write("model.safetensors", self._network_file())

    # ---------------------------------------------------------------- an epoch's steps

    def _train_epoch(self) -> None:
        settings, loader, position = self.settings, self.train_loader, self.position
        batches = len(loader)
        self.rule.begin(self.stepper.rate.phase(position.epoch))
        self.rule.train()
        if not position.batch:
            self.rule.restart()
        images = batches * settings.batch_size
        done = position.batch * settings.batch_size
        self.progress.start(position.epoch + 1, settings.epochs, images, done)
        started = shown = time.perf_counter()
        for x, y in self._batches(loader, position.epoch, position.batch):
            first = position.batch - position.batch % settings.accumulate
            together = min(settings.accumulate, batches - first)
            if position.batch == first:
                started += self._observe_step(x, y)
            completes = position.batch + 1 == first + together
            report = self._backward(x, y, together, completes=completes)
            losses = self.state.metrics.add(report.local_losses, report.local_logits, report.labels)
            self.finite.note(losses, position.step)
            position.batch += 1
            if position.batch % settings.accumulate and position.batch < batches:
                continue
            self._finish_step()
            now = time.perf_counter()
            if now - shown > SHOWN_EVERY_S:
                self._check_finite()
                done = position.batch * settings.batch_size
                self.progress.update(done, *last_trained(self.state.metrics))
                shown = now
            due = settings.save_every and position.step % settings.save_every == 0
            stops = self.runtime.stops(self.stop.asked)
            if due or stops:
                self._check_finite(saving=True)
                self._wait()
                position.seconds += time.perf_counter() - started
                started = time.perf_counter()
                stops = self._save_last(stops)
            if stops:
                self._interrupt()
        self._check_finite(saving=True)
        self._wait()
        position.seconds += time.perf_counter() - started
        self.progress.update(images, *last_trained(self.state.metrics))

    def _batches(
        self, loader: Loader | Batches, epoch: int, start: int = 0
    ) -> Iterator[tuple[Tensor | None, Tensor]]:
        """Batches; without the images in a process that does not read them."""
        if isinstance(loader, Batches):
            for b, batch in enumerate(loader.epoch(epoch, start), start):
                if b == start > 0 and self.position.mark not in (None, loader.marks[b - 1]):
                    self._say(
                        "the loader gives other batches than before, so the run goes on, but not "
                        "to the bits of one that was never interrupted"
                    )
                yield batch
        elif self.runtime.reads_input:
            yield from loader.epoch(epoch, start)
        else:
            yield from ((None, y) for y in loader.labels(epoch, start))

    def _backward(
        self, x: Tensor | None, y: Tensor, together: int, completes: bool = True
    ) -> Report:
        """One batch's gradients; `together` batches make a step, which this one `completes`."""
        position = self.position

        def scale(loss: Tensor) -> Tensor:
            return self.stepper.scaled(loss, together)

        self.stepper.set_rate(position.step)
        number = position.epoch * len(self.train_loader) + position.batch

        def before_block(i: int) -> None:
            # Random numbers of a block on a batch depend on these two and the seed: not on how many
            # other blocks drew, nor on where those are.
            of_block = hash((self.settings.seed, number, i, self.runtime.replica)) & SEEDS
            seed_generators(self.fabric.device, of_block)

        with self.fabric.autocast(), self.stepper.early():
            options = StepOptions(
                scale=scale,
                on_block=self.stepper.step_block if self.settings.step_per_block else nothing,
                before_block=before_block,
                stops=self.stop.asked and completes,
                completes=completes,
            )
            return self.runtime.backward(x, y, options)

    def _finish_step(self) -> None:
        self.stepper.finish()
        self.position.step += 1

    # ---------------------------------------------------------------- the end of an epoch

    @torch.no_grad()
    def _evaluate(self, loader: Loader | Batches) -> Metrics:
        rule = self.stepper.evaluated
        rule.eval()
        metrics, criterion = self.state.new_metrics(), criterion_of(rule)
        with self.fabric.autocast():
            for x, y in self._batches(loader, 0):
                logits = self.runtime.exits(rule, x, y, stops=self.stop.asked)
                if self.runtime.stops(self.stop.asked):
                    self._save_last(True)  # the epoch is trained and will be evaluated on resuming
                    self._interrupt()
                losses = [None if s is None else criterion(s.float(), y) for s in logits]
                metrics.add(losses, logits, y)
        self.runtime.add_up(metrics)
        return metrics

    def _finish_epoch(self, results: Mapping[str, Metrics]) -> None:
        """Write what an epoch gave. The order matters if the process is killed in between."""
        position = self.position
        self.runtime.add_up(self.state.metrics)
        row = self._row(results)
        position.epoch, position.batch, position.seconds = position.epoch + 1, 0, 0.0
        self.state.metrics = self.state.new_metrics()
        self.run.add_metrics(row)
        line = line_of(row, self.settings.epochs, self.train_loader.unit)
        score = selected_by(row)
        improved = score is not None and (position.best is None or score > position.best)
        if improved:
            position.best, position.best_epoch = score, position.epoch
            line += "  (best)"
        self.run.log(line)
        self.progress.say(line)
        state = self.state.gathered()
        if state is not None:
            with self._shown() as rule:
                for observer in self.observers:
                    observer.before_checkpoint(position.epoch, rule)
            for name in (*(["best"] if improved else []), "last"):
                self.run.save(name, state)
        with self._shown() as rule:
            for observer in self.observers:
                observer.after_epoch(position.epoch, rule, row)

    def _row(self, results: Mapping[str, Metrics]) -> Row:
        position = self.position
        images = position.batch * self.settings.batch_size
        by_split = {"train": self.state.metrics, **results}
        return {
            "epoch": position.epoch + 1,
            "step": position.step,
            "lr": self.stepper.rate.at(max(0, position.step - 1)),
            "seconds": round(position.seconds, 3),
            "images_per_s": round(images / position.seconds, 1) if position.seconds else None,
            **measured(by_split, tokens=self.train_loader.tokens),
        }

    # ---------------------------------------------------------------- observers

    def _observe_step(self, x: Tensor | None, y: Tensor) -> float:
        """Show a step's first batch to the observers that are due; the seconds that they took,
        which do not count as training."""
        step = self.position.step
        due = [observer for observer in self.observers if observer.due(step)]
        if not due:
            return 0.0
        assert x is not None
        self._wait()
        started = time.perf_counter()
        scaler = self.stepper.scaler
        with self.fabric.autocast():
            scale = identity if scaler is None else scaler.scale
            for observer in due:
                observer.before_step(step, self.rule, x=x, y=y, scale=scale)
        self._wait()
        return time.perf_counter() - started

    @contextlib.contextmanager
    def _shown(self) -> Iterator[Rule]:
        """The rule as it is evaluated. Training continues with the same bits: random numbers that
        are drawn within do not count."""
        device = self.fabric.device
        rule = self.stepper.evaluated.eval()
        forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with torch.no_grad(), forked, self.fabric.autocast():
            yield rule

    def _out_of_patience(self) -> bool:
        """Whether training ends early, because no epoch has been the best for too long."""
        position, patience = self.position, self.settings.patience
        if patience is None or position.epoch - position.best_epoch < patience:
            return False
        self._say(
            f"stopped after epoch {position.epoch}: the best was epoch {position.best_epoch}, and "
            f"--patience is {patience}"
        )
        return True

    def _say(self, line: str) -> None:
        self.run.log(line)
        self.progress.say(line)

    # ---------------------------------------------------------------- saving and stopping

    def _save_last(self, stops: bool) -> bool:
        """Save together with the other processes; gives whether any of them stops afterwards."""
        stops = self.runtime.agree(stops)
        loader, batch = self.train_loader, self.position.batch
        known = isinstance(loader, Batches) and batch
        self.position.mark = loader.marks[batch - 1] if known else None  # type: ignore[union-attr]
        state = self.state.gathered()
        if state is not None:
            self.run.save("last", state)
        return stops

    def _check_finite(self, saving: bool = False) -> None:
        """Stop where losses are no longer finite, and before `saving` where weights are not.

        Raises:
            NonFiniteLoss: such a number was found.
        """
        found = self.finite.losses()
        if found is None and saving:
            found = self.finite.weights(self.position.step)
        if found is None:
            return
        what, step = found
        kept = self.run.checkpoints / "last.safetensors"
        message = (
            f"{what} is not finite at step {step}, "
            f"learning rate {self.stepper.rate.at(step):.3g}; "
            + (f"the last good checkpoint is {kept}; " if kept.exists() else "")
            + "try a smaller learning rate, a warm-up or --clip_norm"
        )
        self.run.log(message)
        raise NonFiniteLoss(message)

    def _interrupt(self) -> None:
        step = self.position.step
        message = f"stopped at step {step}; continue: {self.run.how_to_continue}"
        self.run.log(message)
        self.runtime.close()
        raise Interrupted(message)

    def _network_file(self) -> bytes:
        """The network under its own names; parts that a cut leaves out (auxiliary classifiers) have
        their initial weights."""
        state, whole = self.stepper.evaluated.blocks.state_dict(), self.network.state_dict()
        for name, key in self.block_keys.items():
            whole[name] = state[key]
        cloned = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in whole.items()
        }
        return safetensors.torch.save(cloned)

    def _wait(self) -> None:
        if self.fabric.device.type != "cpu":
            torch.accelerator.synchronize(self.fabric.device)
