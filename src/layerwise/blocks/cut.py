"""Any network into an ordered chain of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from layerwise.blocks.balance import Balance, balanced
from layerwise.blocks.build import build
from layerwise.blocks.chain import Blocks
from layerwise.blocks.explicit import named, names_of
from layerwise.blocks.flow import Flow
from layerwise.blocks.huggingface import is_huggingface, output_of, write
from layerwise.blocks.trace import trace
from layerwise.blocks.unchanged import unchanged
from layerwise.errors import InputError, choices, reason


def cut(
    model: nn.Module,
    blocks: int | Literal["all"] | None = None,
    *,
    at: Sequence[str] | None = None,
    example: Tensor | None = None,
    balance: Balance = "flops",
) -> Blocks:
    """Divide `model` into an ordered chain of blocks that share its parameters.

    A cut lies where exactly one tensor crosses, so a residual connection stays whole. In eval mode
    the chain's output equals the model's, bit for bit, for any batch size; the model itself is
    left unchanged and goes on working.

        cut(model, blocks=4, example=images)              # four blocks of about equal cost
        cut(model, blocks="all", example=images)          # every layer its own block
        cut(model, at=["layer2", "layer3"], example=images)

    A block calls the model's own modules. Only a module that a cut divides is replaced by the
    operations of its forward, as `torch.fx` traces them in eval mode: its hooks no longer run, a
    constant that depends on train or eval mode (`F.dropout(x, training=self.training)`) follows the
    mode, and auxiliary classifiers that are there in train mode only (GoogLeNet, Inception) are
    left out. Move the model to its device before you cut it: a buffer that a divided module uses by
    itself (`x - self.mean`) is registered in its block too, and only one of the two would move.

    Args:
        model: any module that maps one tensor, (B, ...), to one tensor.
        blocks: how many, or "all" for one per cut point; 4 unless `at` is given. Layers that cost
            nothing (normalisation, activation, pooling) stay with the layer that feeds them; a
            flatten goes with the layer that reads the vector. One block is the model itself.
        at: names of modules (as in `model.named_modules()`); each begins a new block, in the order
            in which the model runs them. `cut(model, at=chain.names[1:], ...)` gives `chain` again
            wherever its names are the model's.
        example: a batch, (B, ...), on the model's device; at most two samples of it are used.
        balance: what the blocks share equally: "flops" of the forward pass, or "memory", the bytes
            of activations that training keeps for the backward pass. The largest block is as small
            as it can be.

    Returns:
        The chain, with the shape of every block's output; a block is called by the first of the
        model's modules in it.

    Raises:
        InputError: no such module; more than one tensor crosses at a name; fewer cut points than
            blocks; one parameter in two blocks; a model that cannot be followed, or cannot take the
            example.
    """
    _check_arguments(model, blocks, at, example, balance)
    assert example is not None
    x = torch.cat([example[:2], example[:1]])[:2]
    training = model.training
    with unchanged(model):
        model.eval()
        expected = _run(model, x)
        if blocks == 1 and _returns_tensor_in_training(model, x):
            parts, names = [model], [type(model).__name__]
        else:
            flow, untraced, written = _follow(model, x)
            if at is not None:
                starts = named(flow, at, untraced)
            else:
                starts = balanced(flow, 4 if blocks is None else blocks, balance)
            parts, names = build(flow, starts, written=written), names_of(flow, starts)
        chain = Blocks(parts, names=names)
        _check_and_measure(chain, x, expected)
    own = set(model.modules())
    for module in chain.modules():
        if module not in own:
            module.training = training
    return chain


def _check_arguments(
    model: nn.Module,
    blocks: int | str | None,
    at: Sequence[str] | None,
    example: Tensor | None,
    balance: str,
) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"cut(model): got {type(model).__name__}; give an nn.Module")
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
    if not isinstance(example, Tensor) or example.dim() == 0 or len(example) == 0:
        got = "none" if example is None else type(example).__name__
        if isinstance(example, Tensor):
            got = f"shape {tuple(example.shape)}"
        raise InputError(
            f"cut(example=): got {got}; give a batch that the model takes, a tensor (B, ...) "
            "with at least one sample: cut(model, blocks=4, example=images)"
        )


def _seed(device: torch.device) -> None:
    """For models that draw random numbers in eval mode; `unchanged` puts the generators back."""
    torch.default_generator.manual_seed(0)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(0)


def _run(model: nn.Module, x: Tensor) -> Tensor:
    _seed(x.device)
    try:
        with torch.no_grad():
            output = model(x)
            output = output_of(output) if is_huggingface(model) else output
    except Exception as error:
        raise InputError(
            f"cut(example=): {type(model).__name__} cannot take an input of shape "
            f"{tuple(x.shape)} and type {x.dtype}: {reason(error)}"
        ) from error
    if not isinstance(output, Tensor):
        raise InputError(
            f"cut(model): {type(model).__name__} returns {type(output).__name__}; a chain maps one "
            "tensor to one tensor: wrap the model in a module that returns one"
        )
    return output


def _returns_tensor_in_training(model: nn.Module, x: Tensor) -> bool:
    """Not so GoogLeNet and Inception, which have to be traced even for one block."""
    with unchanged(model), torch.no_grad():
        try:
            return isinstance(model.train()(x), Tensor)
        except Exception:  # two samples may be too few for it
            return isinstance(_run(model.eval(), x), Tensor)


def _follow(model: nn.Module, x: Tensor) -> tuple[Flow, dict[str, str], bool]:
    """The model's forward; which modules in it could not be followed, and why; and whether it was
    written by hand."""
    if is_huggingface(model):
        graph = write(model)
        if graph is None:
            raise InputError(
                f"cut(model): {type(model).__name__} of transformers is none that cut knows (those "
                "like BERT, GPT-2, Llama and ViT); divide it by hand: Blocks([...])"
            )
        return Flow(model, graph, x), {}, True
    try:
        graph, untraced = trace(model)
    except Exception as error:
        raise InputError(
            f"cut(model): cannot follow the forward of {type(model).__name__}: {reason(error)}; "
            "divide the model by hand: Blocks([...])"
        ) from error
    return Flow(model, graph, x), untraced, False


def _check_and_measure(chain: Blocks, x: Tensor, expected: Tensor) -> None:
    """Find the shapes, and see that the chain is the model: a forward may depend on what a trace
    does not see."""
    chain.eval()
    _seed(x.device)
    h, shapes = x.clone(), []
    with torch.no_grad():
        for name, block in zip(chain.names, chain, strict=True):
            given, version = h, h._version
            h = block(h)
            shapes.append(tuple(h.shape[1:]))
            if given._version != version and len(chain) > 1:
                raise InputError(
                    f"cut(model): block {name!r} changes its input in place, which is the output "
                    "of the block before it; give the module inplace=False, or cut elsewhere"
                )
    if h.shape != expected.shape or not torch.allclose(
        h, expected, rtol=1e-3, atol=1e-5, equal_nan=True
    ):
        raise InputError(
            "cut(model): the chain's output is not the model's, whose forward does something that "
            "a trace does not see; divide the model by hand: Blocks([...])"
        )
    chain.keep_shapes(x, shapes)
