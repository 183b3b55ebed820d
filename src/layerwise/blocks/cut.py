"""`cut`: any network as an ordered chain of blocks.

The steps, in the order in which `cut` takes them (their files are in `cutting/`):

    1. run the network once on the example and note every call         recording.py
    2. find where exactly one tensor is alive: the candidates           graph.py, points.py
    3. run it once more, cut at all of them, and drop those that fail   trial.py
    4. choose the candidates at which the blocks begin                  points.py
    5. find the modules and parameters of each block; make the chain    division.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from layerwise.blocks.balance import Balance
from layerwise.blocks.chain import Blocks
from layerwise.blocks.cutting.division import divided
from layerwise.blocks.cutting.graph import Graph
from layerwise.blocks.cutting.points import Points, cut_candidates
from layerwise.blocks.cutting.recording import Recording, record
from layerwise.blocks.cutting.trial import try_cuts
from layerwise.blocks.unchanged import seed, trainable, unchanged
from layerwise.errors import InputError, choices, reason
from layerwise.inputs import Inputs, Take, call, describe, detached, leading, scores


def cut(
    model: nn.Module,
    blocks: int | Literal["all"] | None = None,
    *,
    at: Sequence[str] | None = None,
    example: Inputs = None,
    balance: Balance = "flops",
    output: Take = None,
) -> Blocks:
    """Divide a network into an ordered chain of blocks.

        cut(model, blocks=4, example=images)              # four blocks of about equal cost
        cut(model, blocks="all", example=images)          # every layer its own block
        cut(model, at=["layer2", "layer3"], example=images)
        cut(model, blocks=4, example={"input_ids": tokens, "attention_mask": mask})

    A block is a stretch of the network's own forward. Nothing is traced, copied or replaced: the
    forward runs as it is written, and is paused where a block ends. Modes, attributes, hooks,
    random numbers, buffers and further inputs are the network's, also if they change later.

    A block may end where exactly one tensor with a gradient crosses, so a residual connection stays
    whole. Tensors without a gradient (masks, positions) and tables that depend on parameters alone
    may cross as well. A parameter that several blocks use (tied embeddings, repeated layers)
    belongs to the last of them. The network runs on the example once in eval mode, to find the cut
    points, and once in train mode, to check that nothing else crosses there. It is left unchanged.

    Args:
        model: the network.
        blocks: how many blocks, or "all" for one per layer; by default 4. A block begins with a
            layer that costs FLOPs and has parameters. Pieces that cost nothing (normalisation,
            activation, pooling) stay with the layer before them, and a flatten goes with the layer
            that reads the vector.
        at: instead of `blocks`, names of modules (as in `model.named_modules()`); each begins a
            new block. The blocks are in the order in which the model runs them.
            `cut(model, at=chain.names[1:], ...)` gives `chain` again.
        example: the network's inputs for one batch, on the network's device: a tensor (B, ...), a
            tuple of arguments, or a dict of named arguments. If it is one tensor, two samples are
            used, unless the network needs more.
        balance: which cost the blocks share equally: "flops" of the forward pass, or "memory", the
            bytes of activations that training keeps for the backward pass. The largest block is as
            small as possible.
        output: which part of the network's output are the class scores: a key, an index or a
            function. By default the tensor that it returns; `logits`, `out` or
            `last_hidden_state`; the first of a tuple.

    Returns:
        The chain, with the shape of every block's output. A block's name is that of the first
        module in it.

    Raises:
        InputError: no such module; more than one tensor crosses at a name; fewer cut points than
            blocks; a network that cannot be paused (compiled as a whole, scripted, wrapped for
            several devices) or that cannot take the example.
    """
    _check_arguments(model, blocks, at, example, balance)
    with torch.inference_mode(False), unchanged(model), trainable(model):
        x, recording = _record(model, example)
        graph = Graph(_scores(recording, output), recording.data_nodes)
        trial = try_cuts(model, x, cut_candidates(recording, graph), output)
        known = Points(model, x, recording, graph, trial.points, trial.saved_bytes)
        if at is not None:
            starts = known.named(at)
        else:
            starts = [] if blocks == 1 else known.balanced(blocks or 4, balance)
        if starts and trial.reentrant:
            raise InputError(
                f"cut(model): {type(model).__name__} has an activation checkpoint with "
                "use_reentrant=True, which gives no gradient if its input needs none, and a "
                "block's input does not; give it use_reentrant=False (in transformers: model."
                "gradient_checkpointing_enable({'use_reentrant': False}))"
            )
        chain = divided(known, starts, trial, output)
        chain.find_layouts()
        return chain


def _check_arguments(
    model: nn.Module,
    blocks: int | str | None,
    at: Sequence[str] | None,
    example: Inputs,
    balance: str,
) -> None:
    """Check the arguments of `cut`.

    Raises:
        InputError: one cannot be used.
    """
    _check_model(model)
    if at is not None and blocks is not None:
        raise InputError(
            f"cut(blocks={blocks!r}, at={list(at)!r}): got both; give `blocks` to balance "
            "cost, or `at` to name the modules that begin a block"
        )
    if isinstance(at, str):
        raise InputError(f"cut(at={at!r}): got a string; give a list of names: at=[{at!r}]")
    number = isinstance(blocks, int) and not isinstance(blocks, bool) and blocks >= 1
    if blocks is not None and blocks != "all" and not number:
        raise InputError(f'cut(blocks={blocks!r}): give a number of blocks, at least 1, or "all"')
    if balance not in ("flops", "memory"):
        raise InputError(f"cut(balance={balance!r}): {choices(str(balance), ('flops', 'memory'))}")
    first = None if example is None else leading(example)
    if first is None or first.dim() == 0 or len(first) == 0:
        raise InputError(
            f"cut(example=): got {'none' if first is None else describe(first)}; give a batch that "
            "the model takes, with at least one sample: a tensor (B, ...), a tuple of arguments or "
            "a dict of named ones, such as cut(model, blocks=4, example=images)"
        )


def _check_model(model: nn.Module) -> None:
    """Check that the network can be paused and has its parameters.

    Raises:
        InputError: it cannot, or has not.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"cut(model): got {type(model).__name__}; give an nn.Module")
    name = type(model).__name__
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise InputError(
            f"cut(model): got {name}, which synchronises gradients in its own backward pass; cut "
            "the network inside, model.module, and train it in several processes with "
            "layerwise.runtime.DataParallel"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            f"cut(model): got {name}, which TorchScript runs without Python; give the network "
            "from which it was made"
        )
    if hasattr(model, "_orig_mod"):
        raise InputError(
            f"cut(model): got {name}, which is compiled as a whole and cannot be paused; cut the "
            "network itself and compile its blocks: for block in blocks: block.compile()"
        )
    for key, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InputError(
                f"cut(model): parameter {key!r} of {name} has no shape yet; run the network on a "
                "batch first"
            )
        if parameter.is_meta:
            raise InputError(
                f"cut(model): parameter {key!r} of {name} is on the meta device; give it memory "
                "first: model.to_empty(device=...), and initialise it"
            )


def _record(model: nn.Module, example: Inputs) -> tuple[Inputs, Recording]:
    """The part of the example that is used, and the network's run on it in eval mode.

    Raises:
        InputError: the network cannot take the example.
    """
    model.eval()
    whole = detached(example)
    tries = [whole]
    if isinstance(whole, Tensor):
        two = torch.cat([whole[:2], whole[:1]])[:2]
        tries = [two] if len(whole) <= 2 else [two, whole]
    error: Exception | None = None
    for x in tries:
        seed(leading(x).device)
        try:
            return x, record(model, lambda x=x: call(model, x), x)
        except InputError:
            raise
        except Exception as raised:
            error = error or raised
    raise InputError(
        f"cut(example=): {type(model).__name__} cannot take {describe(example)}: {reason(error)}"  # type: ignore[arg-type]
    ) from error


def _scores(recording: Recording, output: Take) -> Tensor:
    """The class scores of a recorded run.

    Raises:
        InputError: they have no gradient.
    """
    result = scores(recording.result, output)
    if result.grad_fn is None:
        raise InputError(
            "cut(model): no gradient reaches the network's output; it has no parameters, or "
            "computes without gradients"
        )
    return result
