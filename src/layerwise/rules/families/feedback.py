"""Rules whose backward pass goes through other matrices than the weights."""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.inputs import detached
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion
from layerwise.rules.base import Needs, Rule, differentiate
from layerwise.rules.calls.as_written import as_written
from layerwise.rules.calls.layer_calls import layer_calls
from layerwise.rules.calls.replaced import Back, replaced
from layerwise.rules.calls.sent_gradients import Through

# From a weight to the matrix through which the gradient goes back. A part of a weight, such as
# those of attention's projections, has the same part of the matrix.
Matrices = Mapping[Tensor, Tensor]

UNSEEN = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear)


class FeedbackRule(Rule):
    """The base class of feedback alignment and its relatives: backpropagation in which every linear
    and convolutional layer sends the gradient back through a matrix B of the weight's shape,
    instead of the weight W.

        y = W x + b,    dx = B^T dy,    dW = dy x^T,    db = dy

    A layer is a call of `F.linear`, of a convolution in `torch.nn.functional`, transposed or not,
    or of `torch.addmm`, whose weight is a parameter or a part of one. This includes `nn.Linear`,
    `nn.Conv*d`, the projections of `nn.MultiheadAttention`, and such calls in the user's own
    modules. Other products (`x @ self.weight`) keep their true gradient. No module is replaced.
    Compiled blocks run without compilation.

    The constructor finds the layers with one pass of zeros, which leaves the network unchanged.

    Args:
        blocks: the network, made with an example.
        criterion: a function of class scores and labels that returns a scalar.

    Attributes:
        weights: for each block, the names of its layers' weights.
        sending: for each block, the names of those weights whose layers send a gradient back. These
            are all layers except those that read the network's input.
        feedback: for each block, the matrices that are kept from step to step, under `key(name)`
            with the weight's name.

    Raises:
        InputError: shapes between the blocks are not known; a recurrent or bilinear layer, whose
            kernel cannot use another matrix; in `backward`, a layer whose weight is computed.
    """

    needs = Needs.BACKWARD

    def __init__(self, blocks: Blocks, criterion: Criterion):
        super().__init__(blocks, criterion=criterion)
        call = type(self).__name__
        _refuse_unseen(blocks, call)
        calls = layer_calls(blocks, call)
        self.weights = [[n for n, p in b.named_parameters() if p in calls] for b in blocks]
        sends = {weight for weight, found in calls.items() if any(c.sends for c in found)}
        self.sending = [[n for n, p in b.named_parameters() if p in sends] for b in blocks]
        self.feedback = nn.ModuleList()

    @abstractmethod
    def matrices(self) -> Matrices:
        """This step's matrices, by weight. A matrix that requires grad gets the same gradient as
        its weight."""

    def _through(self) -> contextlib.AbstractContextManager[None]:
        """Within, layers send gradients back through this step's matrices."""
        return through(self.matrices(), type(self).__name__)

    def _keep(self, make: Callable[[Tensor], Tensor]) -> None:
        """Register a matrix for each weight in `sending`, as a parameter if `make` returns one,
        otherwise as a buffer."""
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
        """The registered matrices, by weight."""
        return {
            block.get_parameter(name): getattr(module, key(name))
            for block, module, names in zip(self.blocks, self.feedback, self.sending, strict=True)
            for name in names
        }

    def step(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        # The backward pass is inside, too, because it runs checkpointed layers again.
        with self._through(), as_written(self.blocks):
            h = self.blocks(detached(batch.inputs))
            loss, scores = self.loss(last, Activity(h), batch)
            differentiate(loss, batch.scale)
        for k in range(last):
            batch.done(k)
        batch.done(last, loss, scores)
        return h


def key(name: str) -> str:
    """The name of the matrix of the parameter `name`; PyTorch allows no dots in it."""
    return name.replace(".", "/")


def glorot(weight: Tensor, scale: float) -> Tensor:
    """A random matrix of the weight's shape: Glorot's initialisation times `scale`, uniform in
    +-scale sqrt(6 / (fan_in + fan_out))."""
    return nn.init.xavier_uniform_(torch.empty_like(weight.detach()), scale)


def deviation(weight: Tensor) -> float:
    """The standard deviation of Glorot's initialisation of a weight."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    return math.sqrt(2 / (fan_in + fan_out))


@contextlib.contextmanager
def through(matrices: Matrices, asked_by: str, signed: bool = False) -> Iterator[None]:
    """Within, layers send gradients back through `matrices`.

    Args:
        matrices: the matrices, by weight.
        asked_by: name of the rule, for errors.
        signed: whether `matrices` are magnitudes, each of the weight's shape or (). They are
            multiplied by the signs of the weight during the backward pass, so that only one such
            product exists at a time.

    Raises:
        InputError: in the forward pass, a layer whose weight is computed.
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
        return Through.apply(y, x, matrix, weight.detach() if signed else None, back)

    with replaced(layer):
        yield


def _refuse_unseen(blocks: Blocks, call: str) -> None:
    for name, block in zip(blocks.names, blocks, strict=True):
        for module in block.modules():
            if isinstance(module, UNSEEN):
                raise InputError(
                    f"{call}: block {name!r} has a {type(module).__name__}, whose kernel cannot "
                    "use another matrix in the backward pass; build it from linear layers"
                )


class _Alike(torch.autograd.Function):
    """Return the weight; its gradient goes to the matrix, too."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, matrix: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return dw, dw
