"""An ordered chain of tensor -> tensor modules, f_K o ... o f_1."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from layerwise.errors import InputError, reason

Shape = tuple[int, ...]


class Blocks(nn.Module):
    """An ordered chain of blocks, each a module that maps one tensor to one tensor.

    The blocks are used as they are: no parameter is copied, so training them trains the network
    that they came from. `cut` makes them from any network; this constructor takes them by hand.

    Args:
        blocks: the blocks in the order in which data flows.
        example: a batch for the first block (any batch size). With it the shape of every block's
            output is found by a dry run, which rules need that attach heads.
        names: what each block is called in reports; by default where it stands in the chain.

    Attributes:
        input_shape: shape of the first block's input without the batch dimension, or None.
        input_dtype: type of the first block's input: of tokens an integer one; or None.
        shapes: shape of each block's output without the batch dimension, or None.

    Raises:
        InputError: no block; one parameter in two blocks; an example that does not pass through.
    """

    input_shape: Shape | None = None
    input_dtype: torch.dtype | None = None
    shapes: tuple[Shape, ...] | None = None

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

    def forward(self, x: Tensor) -> Tensor:
        """The network's output: every block in turn."""
        for block in self:
            x = block(x)
        return x

    def outputs(self, x: Tensor) -> list[Tensor]:
        """What every block gives in `forward`."""
        found = []
        for block in self:
            x = block(x)
            found.append(x)
        return found

    def _find_shapes(self, example: Tensor) -> None:
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

    def keep_shapes(self, example: Tensor, shapes: Sequence[Shape]) -> None:
        """Keep what a dry run on `example` has shown."""
        self.input_shape, self.input_dtype = tuple(example.shape[1:]), example.dtype
        self.shapes = tuple(shapes)

    def known_shapes(self, asked_by: str, lacking: str) -> tuple[Shape, tuple[Shape, ...]]:
        """`input_shape` and `shapes`.

        Args:
            asked_by: the call, for errors.
            lacking: what follows where they are not known, such as "no head can be made".

        Raises:
            InputError: the blocks were made without an example.
        """
        if self.input_shape is None or self.shapes is None:
            raise InputError(
                f"{asked_by}(blocks): the shapes between these blocks are not known, so {lacking}; "
                "give an example: Blocks([...], example=x)"
            )
        return self.input_shape, self.shapes

    def zeros(self, rows: int, like: Tensor) -> Tensor:
        """An input of nought, (rows, ...), on the device of `like` and, but for tokens, of its
        type."""
        assert self.input_shape is not None, "made with an example"
        assert self.input_dtype is not None
        dtype = like.dtype if self.input_dtype.is_floating_point else self.input_dtype
        return torch.zeros(rows, *self.input_shape, device=like.device, dtype=dtype)


@contextlib.contextmanager
def dry_run(module: nn.Module) -> Iterator[None]:
    """Run `module` for its shapes only: eval mode, no graph; modes are put back after."""
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
