"""Settings of a training that do not depend on the rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerwise.arguments import check_fields
from layerwise.errors import InputError

Precision = Literal["auto", "32", "bf16", "16"]
LONGEST_S = 365 * 24 * 3600  # a year


@dataclass(frozen=True)
class Settings:
    """Settings of a training that do not depend on the rule.

    Args:
        epochs: passes over the training split.
        batch_size: images per batch, over all replicas.
        views: augmented copies of each image in a batch; for objectives that compare views.
        accumulate: batches whose gradients are averaged for a step.
        clip_norm: largest norm of the whole gradient; null: no clipping.
        patience: epochs without a better one on the validation split after which training ends;
            null: it runs all epochs.
        lr_auxiliary: factor of the learning rate of auxiliary networks, such as heads and
            synthesizers.
        lr_last: factor of the learning rate of the last block.
        label_smoothing: share of each label spread over all classes.
        ema: decay of a moving average of the weights; the average is then evaluated; null: none.
        step_per_block: step each block as soon as its gradient is there, and free the gradient, so
            that the whole network's gradients never exist at once. Large parameters are stepped
            within the block's backward pass if the rule allows it.
        precision: 32, bf16 or 16 (mixed precision); auto takes bf16 if a step in it is faster on
            this machine, by a probe of about a second, otherwise 32.
        channels_last: keep images and feature maps channels-last in memory; auto does so if it is
            faster, by the same probe.
        keep_freed: on Linux CPUs, let glibc keep the memory of freed tensors for the next ones: a
            step is faster, and the process keeps the memory of its largest moment.
        compile: compile each block with torch.compile.
        device: cpu, cuda, cuda:0, mps, ...; auto takes an accelerator if there is one.
        eval_batch_size: images per batch of an evaluation.
        pictures: epochs between pictures; they show reconstructions of blocks and the filters of
            the first layer, always after the first and the last epoch; 0: no pictures.
        alignment_every: steps between measurements of alignment; 0: none. Measured are the angle of
            every block's gradient to backpropagation's and, for a rule with feedback matrices,
            their angle to the weights; kept in alignment.jsonl. Each costs a step of both.
        outcomes: record the outcome for each training image; after every epoch, its loss and
            whether it is right, in eval mode and without augmentation. This costs a forward pass;
            `layerwise analyze` computes difficulty from it.
        save_every: steps between checkpoints; 0: only after each epoch.
        seed: seed of weights, data order, augmentation, dropout; several, as 0,1,2, on the command
            line train a run NAME-SEED for each.
        runtime: auto, serial or layer_parallel. serial: in one process; layer_parallel: one process
            per stage and replica, where several stages need a rule whose blocks use nothing but
            forward information; auto: layer_parallel where several processes were started together,
            as by torchrun, or stages or replicas are given.
        stages: processes that layer_parallel divides blocks among; null: those that were started
            together, divided by the replicas.
        replicas: processes that hold each stage; each trains on its own part of every batch. With
            one stage this is data parallelism, for any rule.
        sync_batchnorm: replicas share BatchNorm's statistics; on accelerators.
        replay: newest batches that a stage keeps; it trains on them again instead of waiting for
            another stage. 0: stages stay in step, with the bits of the serial run.
        restarts: restarts of all processes after a failure; from the last checkpoint, of processes
            that layerwise starts itself.
        timeout: seconds without an answer before a process counts as lost.
    """

    epochs: int = 10
    batch_size: int = 128
    views: int = 1
    accumulate: int = 1
    clip_norm: float | None = None
    patience: int | None = None
    lr_auxiliary: float = 1.0
    lr_last: float = 1.0
    label_smoothing: float = 0.0
    ema: float | None = None
    step_per_block: bool = False
    precision: Precision = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    keep_freed: bool = True
    compile: bool = False
    device: str = "auto"
    eval_batch_size: int = 500
    pictures: int = 5
    alignment_every: int = 0
    outcomes: bool = False
    save_every: int = 0
    seed: int = 0
    runtime: Literal["auto", "serial", "layer_parallel"] = "auto"
    stages: int | None = None
    replicas: int = 1
    sync_batchnorm: bool = False
    replay: int = 0
    restarts: int = 0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        check_fields(self, "Settings")
        for name in ("replicas", "epochs", "batch_size", "views", "accumulate", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: give at least 1")
        if self.batch_size % self.replicas:
            raise InputError(
                f"--batch_size {self.batch_size} --replicas {self.replicas}: each replica takes an "
                f"equal part of every batch; give a multiple of {self.replicas}"
            )
        for name, low, high in (("label_smoothing", 0, 1), ("ema", 0, 1)):
            value = getattr(self, name)
            if value is not None and not low <= value < high:
                raise InputError(f"--{name} {value}: give at least {low} and less than {high}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(
                f"--clip_norm {self.clip_norm}: give a positive number, or null for no clipping"
            )
        for name in ("lr_auxiliary", "lr_last"):
            if not getattr(self, name) >= 0:
                raise InputError(f"--{name} {getattr(self, name)}: give 0 or more")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"--patience {self.patience}: give at least 1 epoch, or null")
        if self.save_every < 0:
            raise InputError(f"--save_every {self.save_every}: give 0 or more steps")
        if self.pictures < 0:
            raise InputError(f"--pictures {self.pictures}: give 0 or more epochs")
        if self.alignment_every < 0:
            raise InputError(f"--alignment_every {self.alignment_every}: give 0 or more steps")
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"--seed {self.seed}: give 0 or more, below 2^63")
        for name in ("replay", "restarts"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} {getattr(self, name)}: give 0 or more")
        if not 0 < self.timeout <= LONGEST_S:
            raise InputError(
                f"--timeout {self.timeout}: give a positive number of seconds, at most {LONGEST_S}"
            )
        if self.runtime == "layer_parallel" or self.stages is not None:
            for option, value in (("clip_norm", self.clip_norm), ("precision", self.precision)):
                if value not in (None, "auto", "32", "bf16"):
                    raise InputError(
                        f"--runtime layer_parallel contradicts --{option} {value}: it needs all "
                        "gradients at once, but each stage has its own; leave one out"
                    )
            if self.alignment_every:
                raise InputError(
                    f"--runtime layer_parallel contradicts --alignment_every "
                    f"{self.alignment_every}: backpropagation needs all blocks in one process; "
                    "leave one out"
                )
        if self.step_per_block and (self.accumulate > 1 or self.clip_norm is not None):
            other = "accumulate" if self.accumulate > 1 else "clip_norm"
            raise InputError(
                f"--step_per_block true contradicts --{other}: that needs all gradients at once; "
                "leave one out"
            )
