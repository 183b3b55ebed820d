"""Backward passes through other matrices than the weights."""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from layerwise.batch import Report, identity
from layerwise.blocks import Blocks
from layerwise.blocks.as_written import as_written
from layerwise.blocks.unchanged import unchanged
from layerwise.errors import InputError
from layerwise.objectives import Classify
from layerwise.objectives.classify import Criterion
from layerwise.rule import Needs, OnBlock, Rule, Scale, differentiate

# Of the gradient of a layer's output, the layer's input and a matrix: the input's gradient, or with
# True behind them that of the matrix.
Back = Callable[..., Tensor]
# Of a weight, the matrix that the gradient goes back through; a part of a weight, as attention's
# projections take, has that part of the matrix.
Matrices = Mapping[Tensor, Tensor]

UNSEEN = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear)


class FeedbackRule(Rule):
    """Backpropagation in which the gradient of every linear and convolutional layer's input goes
    through a matrix B of the weight's shape, and not through the weight W:

        y = W x + b,    dx = B^T dy,    dW = dy x^T,    db = dy

    A layer is a call of `F.linear`, of a convolution of `torch.nn.functional`, transposed or not,
    or of `torch.addmm`, with a parameter or a part of one as its weight: `nn.Linear`, `nn.Conv*d`,
    the projections of `nn.MultiheadAttention`, and such calls in modules of one's own. Products
    written otherwise (`x @ self.weight`) keep their true gradient. No module is replaced. Compiled
    blocks run as they are written.

    Which layers there are is found by a pass of zeros; it leaves the network unchanged.

    Attributes:
        weights: of each block, the names of its layers' weights.
        sending: of these, the names of those that send a gradient back: all but those of layers
            that read the network's input.
        feedback: of each block, the matrices that are kept from step to step, under `key` of their
            weights' names.

    Raises:
        InputError: shapes between the blocks are not known; a recurrent or bilinear layer, whose
            kernel takes no other matrix; in `backward`, a layer whose weight is computed.
    """

    needs = Needs.BACKWARD

    def __init__(self, blocks: Blocks, criterion: Criterion):
        super().__init__(blocks)
        self.objectives[str(len(blocks) - 1)] = Classify(criterion=criterion)
        self.weights, self.sending = _layers(self)
        self.feedback = nn.ModuleList()

    @abstractmethod
    def matrices(self) -> Matrices:
        """This step's matrices, under the weights. One that requires grad gets its weight's
        gradient."""

    def _through(self) -> contextlib.AbstractContextManager[None]:
        """Within, layers send back through this step's matrices."""
        return through(self.matrices(), type(self).__name__)

    def _keep(self, make: Callable[[Tensor], Tensor]) -> None:
        """Keep a matrix of each weight: a parameter or a buffer, as `make` says."""
        for block, names in zip(self.blocks, self.sending, strict=True):
            module = nn.Module()
            for name in names:
                matrix = make(block.get_parameter(name))
                if isinstance(matrix, nn.Parameter):
                    module.register_parameter(key(name), matrix)
                else:
                    module.register_buffer(key(name), matrix)
            self.feedback.append(module)

    def _kept_matrices(self) -> dict[Tensor, Tensor]:
        """The kept matrices under the weights."""
        return {
            block.get_parameter(name): getattr(module, key(name))
            for block, module, names in zip(self.blocks, self.feedback, self.sending, strict=True)
            for name in names
        }

    def backward(
        self, x: Tensor, y: Tensor, *, scale: Scale = identity, on_block: OnBlock | None = None
    ) -> Report:
        batch = self._batch(x, y, scale)
        last = len(self.blocks) - 1
        # The way back is within, too: what is checkpointed runs again there.
        with self._through(), as_written(self.blocks):
            h = self.blocks(batch.x.detach())
            loss = self.objectives[str(last)](h, batch)
            differentiate(loss, scale)
        batch.finish(last, loss)
        if on_block is not None:
            for i in range(len(self.blocks)):
                on_block(i)
        return batch.report(h, len(self.blocks))


def key(name: str) -> str:
    """A parameter's name as that of its matrix, which may hold no dot."""
    return name.replace(".", "/")


def glorot(weight: Tensor, scale: float) -> Tensor:
    """A matrix of the weight's shape, uniform in +-scale sqrt(6 / (fan_in + fan_out)): Glorot's
    initialisation times `scale`."""
    return nn.init.xavier_uniform_(torch.empty_like(weight.detach()), scale)


def deviation(weight: Tensor) -> float:
    """The standard deviation of Glorot's initialisation."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    return math.sqrt(2 / (fan_in + fan_out))


@contextlib.contextmanager
def through(matrices: Matrices, asked_by: str, signed: bool = False) -> Iterator[None]:
    """Within, layers send gradients back through `matrices`.

    Args:
        matrices: under the weights.
        asked_by: the call, for errors.
        signed: `matrices` are magnitudes, each of the weight's shape or (); the weight's signs are
            put to them on the way back, so that there is one such product at a time.
    """

    def matrix_of(name: str, weight: Tensor, x: Tensor) -> Tensor | None:
        if weight in matrices:
            return matrices[weight]
        whole = weight._base
        if whole is not None and whole in matrices:
            matrix = matrices[whole]
            if not matrix.dim():
                return matrix
            if matrix.stride() != whole.stride():
                matrix = torch.empty_like(whole).copy_(matrix)
            offset = weight.storage_offset() - whole.storage_offset() + matrix.storage_offset()
            return matrix.as_strided(weight.shape, weight.stride(), offset)
        if weight.requires_grad and x.requires_grad and name != "addmm":
            raise InputError(
                f"{asked_by}: {name} was called with a weight of shape {tuple(weight.shape)} that "
                "is computed, or was not used when the rule was made; only a parameter, or a part "
                "of one, has a feedback matrix: remove the parametrization"
            )
        return None

    def layer(
        name: str, op: Callable[..., Tensor], back: Back, x: Tensor, weight: Tensor
    ) -> Tensor:
        matrix = matrix_of(name, weight, x)
        if matrix is None or not torch.is_grad_enabled():
            return op(x, weight)
        if matrix.requires_grad:
            weight, matrix = _Alike.apply(weight, matrix), matrix.detach()
        if not x.requires_grad:
            return op(x, weight)
        y = op(x.detach(), weight)
        return _Through.apply(y, x, matrix, weight.detach() if signed else None, back)

    with layers_replaced(layer):
        yield


def _layers(rule: Rule) -> tuple[list[list[str]], list[list[str]]]:
    """Of each block, the names of the parameters that its layers have as weights; and of those
    whose layers' input has a gradient, once all parameters are trained."""
    blocks = rule.blocks
    call = type(rule).__name__
    if blocks.input_shape is None:
        raise InputError(
            f"{call}(blocks): the shapes between these blocks are not known, so its layers are not "
            "either; give an example: Blocks([...], example=x)"
        )
    for name, block in zip(blocks.names, blocks, strict=True):
        for module in block.modules():
            if isinstance(module, UNSEEN):
                raise InputError(
                    f"{call}: block {name!r} has a {type(module).__name__}, whose kernel takes no "
                    "other matrix on the way back; build it of linear layers"
                )
    used: set[Tensor] = set()
    sending: set[Tensor] = set()

    def layer(
        name: str, op: Callable[..., Tensor], back: Back, x: Tensor, weight: Tensor
    ) -> Tensor:
        whole = weight if weight._base is None else weight._base
        used.add(whole)
        if x.requires_grad:
            sending.add(whole)
        return op(x, weight)

    like = next((p for p in blocks.parameters() if p.is_floating_point()), torch.zeros(()))
    with _trained(blocks), unchanged(blocks), layers_replaced(layer), as_written(blocks):
        blocks.train()  # in eval mode attention may be one kernel
        blocks(blocks.zeros(2, like))

    def names(among: set[Tensor]) -> list[list[str]]:
        return [[name for name, p in block.named_parameters() if p in among] for block in blocks]

    return names(used), names(sending)


@contextlib.contextmanager
def _trained(module: nn.Module) -> Iterator[None]:
    """Within, every parameter of `module` requires grad, frozen or not."""
    frozen = [p for p in module.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_()
        with torch.enable_grad():
            yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


class _Alike(torch.autograd.Function):
    """The weight; its gradient is the matrix's, too."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, matrix: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return dw, dw


class _Through(torch.autograd.Function):
    """y as it is, and on the way to x another matrix than y was made with."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, matrix: Tensor, signs: Tensor | None, back: Back
    ) -> Tensor:
        ctx.mark_dirty(y)  # not a view of y: what follows may work in place
        ctx.save_for_backward(x, matrix, signs)
        ctx.back = back
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        x, matrix, signs = ctx.saved_tensors
        if signs is not None:
            matrix = signs.sign().mul_(matrix)
        dx = ctx.back(dy, x.to(dy.dtype), matrix.to(dy.dtype))
        return dy, dx.to(x.dtype), None, None, None


# (name, the operation but for x and the weight, its way back, x, the weight) -> y
Layer = Callable[[str, Callable[..., Tensor], Back, Tensor, Tensor], Tensor]


@contextlib.contextmanager
def layers_replaced(layer: Layer) -> Iterator[None]:
    """Within, what is a layer calls `layer`.

    By their names, for that is how modules find them: a mode would not see the calls inside
    `F.multi_head_attention_forward`.
    """
    places = [(F, "linear", _linear), (torch, "addmm", _addmm)]
    places += [(F, f"conv{n}d", _convolution(n)) for n in (1, 2, 3)]
    places += [(F, f"conv_transpose{n}d", _transposed(n)) for n in (1, 2, 3)]
    before = [(module, name, getattr(module, name)) for module, name, _ in places]
    try:
        for module, name, make in places:
            setattr(module, name, make(getattr(module, name), layer))
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def _linear(function: Callable[..., Tensor], layer: Layer) -> Callable[..., Tensor]:
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])  # as PyTorch does: (B, ..., I) -> (N, I)
        y = layer(
            "F.linear",
            lambda x, w: function(x, w, bias),
            lambda dy, x, b, of_matrix=False: dy.T @ x if of_matrix else dy @ b,
            rows,
            weight,
        )
        if input.dim() == 2:
            return y
        # No view, as in F.linear: what follows may work in place, and on a view that takes copies.
        return torch.ops.aten._unsafe_view(y, [*input.shape[:-1], y.shape[-1]])

    return linear


def _addmm(function: Callable[..., Tensor], layer: Layer) -> Callable[..., Tensor]:
    def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, **options: Any) -> Tensor:
        if options:
            return function(input, mat1, mat2, **options)
        return layer(
            "addmm",
            lambda x, w: function(input, x, w),
            lambda dy, x, b, of_matrix=False: x.T @ dy if of_matrix else dy @ b.T,
            mat1,
            mat2,
        )

    return addmm


def _convolution(n: int) -> Callable[..., Any]:
    def make(function: Callable[..., Tensor], layer: Layer) -> Callable[..., Tensor]:
        def convolution(
            input: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: int | Sequence[int] = 1,
            padding: int | Sequence[int] | str = 0,
            dilation: int | Sequence[int] = 1,
            groups: int = 1,
        ) -> Tensor:
            single = input.dim() == n + 1
            x = input.unsqueeze(0) if single else input
            s, d = _each(stride, n), _each(dilation, n)
            if padding == "same":
                total = [a * (k - 1) for a, k in zip(d, weight.shape[2:], strict=True)]
                p = [t // 2 for t in total]
                if any(t % 2 for t in total):  # one more behind
                    x = F.pad(x, [e for t in reversed(total) for e in (0, t % 2)])
            else:
                p = _each(0 if isinstance(padding, str) else padding, n)

            def back(dy: Tensor, x: Tensor, b: Tensor, of_matrix: bool = False) -> Tensor:
                return _back(of_matrix, dy, x, b, s, p, d, False, [0] * n, groups)

            y = layer(
                f"F.conv{n}d",
                lambda x, w: function(x, w, bias, s, p, d, groups),
                back,
                x,
                weight,
            )
            return y.squeeze(0) if single else y

        return convolution

    return make


def _transposed(n: int) -> Callable[..., Any]:
    def make(function: Callable[..., Tensor], layer: Layer) -> Callable[..., Tensor]:
        def transposed(
            input: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: int | Sequence[int] = 1,
            padding: int | Sequence[int] = 0,
            output_padding: int | Sequence[int] = 0,
            groups: int = 1,
            dilation: int | Sequence[int] = 1,
        ) -> Tensor:
            single = input.dim() == n + 1
            x = input.unsqueeze(0) if single else input
            s, p, o, d = (_each(v, n) for v in (stride, padding, output_padding, dilation))

            def back(dy: Tensor, x: Tensor, b: Tensor, of_matrix: bool = False) -> Tensor:
                return _back(of_matrix, dy, x, b, s, p, d, True, o, groups)

            y = layer(
                f"F.conv_transpose{n}d",
                lambda x, w: function(x, w, bias, s, p, o, groups, d),
                back,
                x,
                weight,
            )
            return y.squeeze(0) if single else y

        return transposed

    return make


def _back(of_matrix: bool, dy: Tensor, x: Tensor, matrix: Tensor, *how: Any) -> Tensor:
    """The gradient of a convolution's input, or of its matrix."""
    wanted = [not of_matrix, of_matrix, False]
    found = torch.ops.aten.convolution_backward(dy, x, matrix, None, *how, wanted)
    return found[of_matrix]


def _each(value: int | Sequence[int], n: int) -> list[int]:
    """One number for each of n dimensions."""
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values
