"""How a network is trained, whatever the rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerwise.errors import InputError

Precision = Literal["32", "bf16", "16"]


@dataclass(frozen=True)
class Settings:
    """How a network is trained, whatever the rule.

    Args:
        epochs: passes over the training split.
        batch_size: images whose gradients are computed at once.
        views: how often each image is drawn in a batch, each time augmented anew: for objectives
            that compare views of an image.
        accumulate: batches whose gradients are averaged before a step.
        clip_norm: largest norm of the whole gradient; null does not clip.
        label_smoothing: share of each label spread over all classes.
        ema: decay of an exponential moving average of the weights, which is then what is
            evaluated; null for none.
        step_per_block: step and free each block's gradients as soon as they are there, so that
            the whole network's never exist at once.
        precision: 32, bf16 or 16 (mixed).
        channels_last: keep images and feature maps in (B, H, W, C) order in memory.
        compile: compile each block with torch.compile.
        device: cpu, cuda, cuda:0, mps, ...; auto takes an accelerator if there is one.
        eval_batch_size: images evaluated at once.
        pictures: epochs between pictures of what blocks reconstruct and of the first layer's
            filters; the first and the last epoch always have them; 0 for none.
        alignment_every: steps between measurements of the angle between every block's gradient and
            backpropagation's, and between feedback matrices and weights where a rule has such, kept
            in alignment.jsonl; 0 for none. Each costs a step of both.
        outcomes: keep which training images are predicted right after each epoch, and the loss on
            each, in eval mode and without augmentation, which costs a forward pass: what
            `layerwise analyze` tells their difficulty by.
        save_every: steps between checkpoints within an epoch; 0 saves after each epoch only.
        seed: of weights, data order, augmentation and dropout.
        runtime: serial, in one process; or layer_parallel, in one per stage and replica; several
            stages are for a rule whose blocks need no more than forward information. auto:
            layer_parallel where several processes were started together, as by torchrun.
        stages: into how many processes layer_parallel divides the blocks; null: as many as were
            started together, less the replicas.
        replicas: how many processes hold each stage, each on its own part of every batch; with one
            stage, data parallelism for any rule.
        sync_batchnorm: that replicas share BatchNorm's statistics of a batch; on accelerators.
        replay: with stages, that none waits for another: each keeps so many of the newest batches
            to train on again; 0 to be in step, with the bits of the serial run.
        restarts: how often to start all processes again from the last checkpoint, after one has
            failed; for processes that layerwise starts itself.
        timeout: seconds to wait for another stage before it counts as hung.
    """

    epochs: int = 10
    batch_size: int = 128
    views: int = 1
    accumulate: int = 1
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    ema: float | None = None
    step_per_block: bool = False
    precision: Precision = "32"
    channels_last: bool = False
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
            raise InputError(f"--clip_norm {self.clip_norm}: a norm is positive")
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
        if not self.timeout > 0:
            raise InputError(f"--timeout {self.timeout}: give a positive number of seconds")
        if self.runtime == "layer_parallel" or self.stages is not None:
            for option, value in (("clip_norm", self.clip_norm), ("precision", self.precision)):
                if value not in (None, "32", "bf16"):
                    raise InputError(
                        f"--runtime layer_parallel contradicts --{option} {value}: it needs all "
                        "gradients at once, and each stage has its own; leave one out"
                    )
            if self.alignment_every:
                raise InputError(
                    f"--runtime layer_parallel contradicts --alignment_every "
                    f"{self.alignment_every}: backpropagation takes all blocks in one process; "
                    "leave one out"
                )
        if self.step_per_block and (self.accumulate > 1 or self.clip_norm is not None):
            other = "accumulate" if self.accumulate > 1 else "clip_norm"
            raise InputError(
                f"--step_per_block true contradicts --{other}: that needs all gradients at once; "
                "leave one out"
            )
