"""Comparing training steps of backpropagation, of a rule, and of what saves memory in either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.costs.measure import fused_optimizer, measure
from layerwise.costs.step_table import StepTable
from layerwise.costs.ways import LOCAL, Way
from layerwise.costs.ways import rivals as ways_of_rivals
from layerwise.errors import InputError
from layerwise.inputs import Inputs, leading
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Rule
from layerwise.runs.provenance import provenance


def compare_steps(
    network: nn.Module,
    rule: Callable[[Blocks], Rule],
    x: Inputs,
    y: Tensor,
    *,
    blocks: int | Literal["all"] = "all",
    segments: int | Literal["all"] | None = None,
    balance: Literal["flops", "memory"] = "memory",
    rounds: int = 5,
    warmup: int = 0,
    rivals: bool = False,
    micro_batches: Sequence[int] = (4, 16),
    channels_last: bool = False,
    keep_freed: bool = False,
    lr: float = 0.01,
    momentum: float = 0.9,
    optimizer: Literal["SGD", "AdamW"] = "SGD",
    seed: int = 0,
    title: str | None = None,
    criterion: Criterion = cross_entropy,
) -> StepTable:
    """Compare training steps of backpropagation, activation checkpointing and a local rule.

    Every contender gets its own copy of the same weights. The rule steps parameters and
    frees their gradients as soon as they are complete (`early_steps`). A step is forward, backward,
    optimizer step and zero_grad(set_to_none=True). FLOPs and bytes are measured in two separate
    steps, which also warm up. In the timed rounds the contenders take turns, and each is compared
    with backpropagation in the same round. Torch's number of threads is not changed.

    Memory is the largest number of bytes of tensors alive at the same time, above parameters (the
    heads' included), buffers and the batch: saved activations, temporaries between operators,
    gradients and optimizer state. Memory that a kernel uses internally, and an allocator's
    rounding, are not included.

    Args:
        network: the network to train; it is copied and left unchanged.
        rule: makes the learning rule from the network's blocks.
        x: a batch, (B, ...), or the network's arguments in a tuple or dict.
        y: its labels.
        blocks: number of the rule's blocks, or "all" that can be cut.
        segments: number of segments for activation checkpointing; null: the number of blocks.
        balance: what the cuts make equal: FLOPs, or the bytes that a block saves for its backward.
        rounds: number of timed steps of each contender.
        warmup: number of untimed steps of each contender before them.
        rivals: also measure accumulation over micro-batches, selective checkpointing, torch's
            activation memory budget, the optimizer's step within the backward pass, optimizer state
            of a quarter of the blocks at a time (BAdam, Luo et al. 2024, arXiv:2404.02827), and
            combinations of these, for backpropagation and for the rule (`ways.rivals`).
        micro_batches: numbers of micro-batches of these rows.
        channels_last: images and convolutions in the channels-last memory format.
        keep_freed: on Linux CPUs, time as many rounds again while glibc keeps freed memory for the
            next tensors, as `layerwise train` lets it. It does so from then on.
        lr: learning rate.
        momentum: of SGD; 0 keeps no optimizer state.
        optimizer: its kind; AdamW keeps two numbers for every weight.
        seed: of the heads' weights and of dropout.
        title: names the comparison in tables; null for the network's class.
        criterion: the loss that backpropagation minimises.

    Returns:
        Times in s, bytes, FLOPs and their ratios; rich prints it, and `save(path)` writes JSON.

    Raises:
        InputError: `rounds` is below 1; the labels do not fit; the network cannot be cut so.
    """
    first = leading(x)
    if len(first) != len(y):
        raise InputError(
            f"bench(x, y): got {len(first)} inputs and {len(y)} labels; give one for each"
        )
    if channels_last and not (isinstance(x, Tensor) and x.dim() == 4):
        raise InputError(
            f"bench(channels_last=true): the batch is {tuple(first.shape)}, but only images "
            "(B, C, H, W) have a channel dimension; leave it out"
        )
    memory_format = torch.channels_last if channels_last else torch.preserve_format
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    segments = blocks if segments is None else segments
    basic = [Way(), Way(checkpoint=True), Way(LOCAL, when="early")]
    ways = ways_of_rivals(micro_batches, len(first)) if rivals else basic

    make_optimizer = partial(fused_optimizer, optimizer, lr=lr, momentum=momentum)
    with torch.random.fork_rng([first.device] if first.device.type == "cuda" else []):
        contenders = [
            way.contender(
                network,
                rule,
                x,
                y,
                blocks=blocks,
                segments=segments,
                balance=balance,
                seed=seed,
                memory_format=memory_format,
                criterion=criterion,
            )
            for way in ways
        ]
        made = provenance()  # before the allocator changes
        measured = measure(
            contenders, x, y, make_optimizer, rounds=rounds, warmup=warmup, keep_freed=keep_freed
        )
    [ours] = [c.rule for w, c in zip(ways, contenders, strict=True) if w == basic[2]]
    return StepTable(
        title=title or type(network).__name__,
        batch=tuple(first.shape),
        setting={
            "dtype": str(next(network.parameters(), first).dtype).removeprefix("torch."),
            "memory_format": "channels_last" if channels_last else "contiguous",
            "balance": balance,
            "optimizer": f"SGD(lr={lr}, momentum={momentum}, fused=True)"
            if optimizer == "SGD"
            else f"AdamW(lr={lr}, fused=True)",
            "heads": _heads(ours),
            "blocks": list(ours.blocks.names),
            "warmup": warmup,
            "seed": seed,
        },
        provenance=made,
        contenders=measured,
    )


def _heads(rule: Rule) -> str:
    """The recipe of the first auxiliary network; without one, the kinds of objectives."""
    for part in (rule, *rule.objectives.children()):
        if (recipe := getattr(part, "recipe", None)) is not None:
            return repr(recipe)
    return ", ".join({type(objective).__name__ for objective in rule.objectives.children()})
