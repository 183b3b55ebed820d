"""An ordered chain of blocks, f_K o ... o f_1, and a batch's passes through it.

`Blocks` and `Passes` say what rules may ask of any chain. Here each block is a module given by
hand; `Stretches` (`stretches.py`) and `ForwardPasses` (`passes.py`) are their counterparts for a
network that was cut.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from layerwise.blocks.layout import Shape, laid_out, of_image
from layerwise.blocks.unchanged import unchanged
from layerwise.errors import InputError, reason
from layerwise.inputs import Inputs, chosen_rows, describe, leading, plain, tensors

# Before version 2.11, autocast also keeps the weights that it cast without gradients. It would use
# them where gradients are wanted, and the weights would silently get none.
MIXES_CASTS = torch.__version__ < "2.11"


class Blocks(nn.Module):
    """An ordered chain of blocks, each a module that maps one tensor to one tensor.

    The blocks are used as they are: no parameter is copied, so training them trains the network
    that they came from. `cut` makes them from any network; this constructor takes them by hand.

    Args:
        blocks: the blocks in the order in which data flows.
        example: a batch for the first block (any batch size). A dry run on it finds the shape of
            every block's output, which rules that attach heads need.
        names: each block's name in reports; by default its position in the chain.

    Attributes:
        input_shape: shape of the first block's input without the batch dimension, or None.
        input_dtype: type of the first block's input (an integer type for tokens), or None.
        shapes: shape of each block's output without the batch dimension, or None. For feature maps
            with channels last it is a `ChannelsLastShape` (`layout.py`).
        example: samples with which the network can be run, or None.
        shares: whether blocks share a tensor that depends on parameters alone.
        shared: the parameters that several blocks use: by name, the numbers of these blocks.

    Raises:
        InputError: no block; one parameter in two blocks; an example that does not pass through.
    """

    input_shape: Shape | None = None
    input_dtype: torch.dtype | None = None
    shapes: tuple[Shape, ...] | None = None
    example: Inputs = None
    shares = False
    shared: Mapping[str, Sequence[int]] = MappingProxyType({})

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        example: Tensor | None = None,
        names: Sequence[str] | None = None,
    ):
        super().__init__()
        blocks = list(blocks)
        if not blocks:
            raise InputError("Blocks(blocks): got no block; give at least one module")
        for i, block in enumerate(blocks):
            if not isinstance(block, nn.Module):
                raise InputError(
                    f"Blocks(blocks): block {i} is {type(block).__name__}; each is an nn.Module"
                )
            self.add_module(str(i), block)
        self.names = tuple(names) if names is not None else tuple(map(str, range(len(blocks))))
        _refuse_shared_parameters(blocks, self.names)
        if example is not None:
            self._find_shapes(example)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> nn.Module:
        return list(self)[i]

    def forward(self, inputs: Inputs) -> Tensor:
        """The network's output."""
        h = inputs
        for block in self:
            h = block(h)
        return h

    def outputs(self, inputs: Inputs) -> list[Tensor]:
        """The output of every block in `forward`, (B, ...) each."""
        found, h = [], inputs
        with self.passes(inputs) as passes:
            for k in range(len(self)):
                h = passes.run(k, h)
                found.append(h)
        return found

    def passes(self, inputs: Inputs) -> Passes:
        """A context in which a batch runs through the blocks one by one.

            with blocks.passes(inputs) as passes:
                h = passes.run(0, inputs)
                h = passes.run(1, h)

        Args:
            inputs: the network's inputs for the batch.
        """
        return Passes(self, inputs)

    def keep(self, blocks: Iterable[int]) -> None:
        """Keep only the weights of these blocks on their device.

        The other blocks' weights move to the CPU, and these blocks no longer run here.

        Raises:
            InputError: several blocks use one parameter; the first block kept does not run by
                itself.
        """
        for k in set(range(len(self))) - set(blocks):
            self[k].to("cpu")

    def up_to(self, k: int) -> nn.Module:
        """The network up to block k, as a module that is called as the network is.

        Nothing after block k runs.
        """
        return nn.Sequential(*list(self)[: k + 1])

    def key(self, k: int, name: str) -> str:
        """The name in this module's state dict of a tensor that block k calls `name`."""
        return f"{k}.{name}"

    def reads_inputs(self, k: int) -> bool:
        """Whether block k > 0 depends on the network's inputs other than through its own input."""
        return False

    def check_alone(self, k: int) -> None:
        """Check that block k runs by itself.

        Raises:
            InputError: it does not.
        """

    def _find_shapes(self, example: Tensor) -> None:
        if not isinstance(example, Tensor):
            raise InputError(
                f"Blocks(example=): got {describe(example)}; blocks given by hand map one tensor "
                "to one tensor: give a tensor, or cut a network that takes several inputs: lw.cut"
            )
        h, shapes = example, []
        with dry_run(self):
            for name, block in zip(self.names, self, strict=True):
                try:
                    h = block(h)
                except (RuntimeError, TypeError, ValueError, IndexError) as error:
                    raise InputError(
                        f"Blocks(example=): block {name!r} cannot take an input of shape "
                        f"{tuple(h.shape)}: {reason(error)}"
                    ) from error
                if not isinstance(h, Tensor):
                    raise InputError(
                        f"Blocks(example=): block {name!r} returned {type(h).__name__}; "
                        "a block maps one tensor to one tensor"
                    )
                shapes.append(tuple(h.shape[1:]))
        self.keep_shapes(example, shapes)
        self.example = example[:2].detach()
        self.find_layouts()

    def keep_shapes(self, example: Tensor, shapes: Sequence[Shape]) -> None:
        """Store the shapes that a dry run on `example` has shown.

        Args:
            example: the first block's input, (B, ...).
            shapes: of each block's output, without the batch dimension.
        """
        self.input_shape, self.input_dtype = tuple(example.shape[1:]), example.dtype
        self.shapes = tuple(shapes)

    def find_layouts(self) -> None:
        """Find out where feature maps have their channels last: their shapes become
        `ChannelsLastShape`."""
        assert self.shapes is not None
        assert self.input_shape is not None
        # The first of the inputs that can be images; the others may be conditions.
        given = tensors(self.example)
        x = next((t for t in given if t.dim() > 3 and t.is_floating_point()), given[0])
        image, *shapes = laid_out(
            of_image(x.shape[1:]), self.shapes, functools.partial(self._shapes_on_larger, x)
        )
        self.shapes = tuple(shapes)
        if self.input_shape == image:
            self.input_shape = image

    def _shapes_on_larger(self, x: Tensor, axis: int) -> Iterator[Shape]:
        """The shapes of blocks' outputs for an example whose tensor x is twice as long on one axis,
        up to a block that fails."""
        twice = pytree.tree_map(
            lambda part: torch.cat([x, x], axis) if part is x else part, plain(self.example)
        )
        with unchanged(self), dry_run(self), self.passes(twice) as passes:
            h = twice
            for k in range(len(self)):
                h = passes.run(k, h)
                yield tuple(h.shape[1:])

    def known_shapes(self, asked_by: str, lacking: str) -> tuple[Shape, tuple[Shape, ...]]:
        """`input_shape` and `shapes`, if they are known.

        Args:
            asked_by: the call, for errors.
            lacking: the consequence if they are not known, such as "no head can be made".

        Raises:
            InputError: the blocks were made without an example.
        """
        if self.input_shape is None or self.shapes is None:
            raise InputError(
                f"{asked_by}(blocks): the shapes between these blocks are not known, so {lacking}; "
                "give an example: Blocks([...], example=x)"
            )
        return self.input_shape, self.shapes

    def zeros(self, rows: int, like: Tensor) -> Inputs:
        """Inputs to run the network on for its shapes, on the device of `like`.

        Args:
            rows: how many samples.
            like: a tensor with the device and, except for tokens, the type.

        Returns:
            Zeros, (rows, ...). For a network that takes several inputs, the example's samples
            repeated, because zeros may mean something in a mask.
        """
        assert self.input_shape is not None, "made with an example"
        assert self.input_dtype is not None
        if not isinstance(self.example, Tensor):
            return repeated(self.example, rows, like.device)
        dtype = like.dtype if self.input_dtype.is_floating_point else self.input_dtype
        return torch.zeros(rows, *self.input_shape, device=like.device, dtype=dtype)


class Passes:
    """A batch's passes through blocks: runs them one by one, and again if a rule asks for it.

    Args:
        blocks: the blocks.
        inputs: the network's inputs for the batch.
    """

    def __init__(self, blocks: Blocks, inputs: Inputs):
        self.blocks, self.inputs = blocks, inputs
        self._keeps_casts = True  # autocast's setting outside the context

    def run(self, k: int, h: Any, stream: int = 0) -> Tensor:
        """Block k's output, (B, ...), in the network's own forward, after the blocks before it.

        Args:
            k: the number of the block.
            h: its input, (B, ...); for the first block the network's inputs.
            stream: the number of the forward, if several batches go through side by side.
        """
        return self.blocks[k](h)

    def again(self, k: int, h: Any, stream: int = 0) -> Tensor:
        """Block k's output, (B, ...), by itself: the paused forward of the network does not move.

        Args:
            k: the number of the block.
            h: its input, (B, ...); for the first block the network's inputs.
            stream: the number of the forward whose inputs the block may read.
        """
        return self.blocks[k](h)

    def close(self) -> None:
        """Give up the rest of every forward."""

    def __enter__(self) -> Passes:
        if MIXES_CASTS:
            self._keeps_casts = torch.is_autocast_cache_enabled()
            torch.set_autocast_cache_enabled(False)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if MIXES_CASTS:
            torch.set_autocast_cache_enabled(self._keeps_casts)


def repeated(inputs: Inputs, rows: int, device: torch.device) -> Inputs:
    """The samples of a batch, repeated until there are `rows` of them, on `device`."""
    chosen = chosen_rows(inputs, torch.arange(rows) % len(leading(inputs)))
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), chosen)


@contextlib.contextmanager
def dry_run(module: nn.Module) -> Iterator[None]:
    """A context to run `module` for shapes only: eval mode, no graph; modes are restored after."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, training in modes:
            m.training = training


def _refuse_shared_parameters(blocks: Sequence[nn.Module], names: Sequence[str]) -> None:
    owner: dict[nn.Parameter, str] = {}
    for name, block in zip(names, blocks, strict=True):
        for key, parameter in block.named_parameters():
            first = owner.setdefault(parameter, name)
            if first != name:
                raise InputError(
                    f"Blocks: parameter {key!r} of block {name!r} is also in block {first!r}; a "
                    "parameter belongs to one block: untie it, or keep both uses in one block"
                )
