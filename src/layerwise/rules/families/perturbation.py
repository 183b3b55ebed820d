"""Rules that estimate gradients from derivatives of the loss along random directions."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from layerwise.autocast import without_autocast
from layerwise.blocks import Blocks
from layerwise.blocks.inplace import kept
from layerwise.errors import InputError
from layerwise.inputs import detached
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion
from layerwise.rules.base import Needs, Rule, forget_casts, refuse_without_gradients
from layerwise.rules.calls.again import Again
from layerwise.rules.calls.as_written import as_written
from layerwise.rules.calls.forward_mode import as_in_training, primal
from layerwise.rules.calls.replaced import Back, replaced

SEEDS = (1 << 63) - 1
# From a block's number to the values of its parameters to run with, by name.
Weights = Callable[[int], dict[str, Tensor]]


class PerturbationRule(Rule):
    """The base class of rules that estimate the gradient from the loss's derivatives along random
    directions v_n of all weights:

        grad = mean over n of (dL / dv_n) v_n,    E[v v^T] = 1

    The expected value is the true gradient. With d weights and N Gaussian directions, the mean
    squared error is (d + 1) / N times the squared norm of the gradient. Directions are not stored:
    they are drawn again, block by block, from a seed that each step takes from PyTorch's random
    generator.

    With `rank` = r > 0, a direction of the weight (O, I) of a linear layer or a convolution is
    v = z Q^T. Here z is random, (O, r), and Q, (I, r), is an orthonormal basis of the span of r
    random combinations of the layer's inputs in this batch. A weight's gradient is a combination of
    the layer's inputs, so nothing is lost if they span at most r dimensions; otherwise the expected
    value is the projection of the gradient on the basis. The whole space is used for weights with
    at most r inputs, for transposed and grouped convolutions, and for weights that are computed or
    used in parts.

    Args:
        blocks: the network.
        directions: number of directions that are averaged.
        rademacher: draw +1 and -1, instead of normal numbers.
        rank: r; 0 for the whole space.
        criterion: a function of class scores and labels that returns a scalar.

    Raises:
        InputError: fewer than one direction; a negative rank.
    """

    needs = Needs.FORWARD | Needs.ERROR
    stochastic = True

    def __init__(
        self, blocks: Blocks, directions: int, rademacher: bool, rank: int, criterion: Criterion
    ):
        super().__init__(blocks, criterion=criterion)
        check_directions(type(self).__name__, directions)
        if rank < 0:
            raise InputError(
                f"{type(self).__name__}(rank={rank}): give a number of dimensions, or 0 for all"
            )
        self.directions, self.rademacher, self.rank = directions, rademacher, rank

    @abstractmethod
    def derivatives(self, loss: Loss, directions: Directions) -> list[Tensor]:
        """The derivatives dL/dv_n along all directions, each ().

        Args:
            loss: the step's loss as a function of the weights. Its first call is the pass that is
                reported.
            directions: the step's directions.
        """

    def step(self, batch: Batch) -> Tensor:
        refuse_without_gradients()
        directions = Directions(self.blocks, draw_seed(), self.rademacher, self.rank)
        with torch.no_grad(), as_written(self.blocks), as_in_training():
            loss = Loss(self, batch, directions)
            derivatives = [batch.scale(d) for d in self.derivatives(loss, directions)]
        forget_casts(batch.x.device)
        last = len(self.blocks) - 1
        for k in range(last + 1):
            directions.accumulate(k, derivatives)
            batch.done(k, *((loss.value, loss.scores) if k == last else ()))
        return loss.output


class Loss:
    """A step's loss as a function of the weights.

    Every pass uses the same random numbers and starts from the same buffers. Only the first pass
    changes the buffers, as an ordinary pass of the network does.

    Args:
        rule: the rule.
        batch: the step's batch.
        directions: the step's directions; those with a rank watch the first pass.

    Attributes:
        output: the network's output in the first pass, (B, ...).
        value: the loss of the first pass, ().
        scores: the class scores of the first pass, or None.
    """

    output: Tensor
    value: Tensor
    scores: Tensor | None

    def __init__(self, rule: PerturbationRule, batch: Batch, directions: Directions):
        self.blocks = rule.blocks
        self.objective = rule.objectives[len(rule.blocks) - 1]
        self.inputs, self.batch, self.directions = detached(batch.inputs), batch, directions
        self.start = Again(rule.blocks, batch.x)
        self.moved = Moved(self.blocks, batch)
        self.first = True

    def __call__(self, weights: Weights | None = None) -> Tensor:
        """The loss, (), with the network's own weights or with others."""
        with self.directions.watch() if self.first else self.start.run():
            h = kept(self.blocks[0], self.inputs)
            for k in range(len(self.blocks)):
                h = self.batch.run(k, h) if weights is None else self.moved.run(k, weights(k), h)
            loss, scores = self.objective.loss_and_scores(Activity(h), self.batch)
        if self.first:
            self.output, self.value, self.first = primal(h), primal(loss), False
            self.scores = None if scores is None else primal(scores)
        return loss


class Moved(nn.Module):
    """Runs blocks with other weights than their own."""

    def __init__(self, blocks: Blocks, batch: Batch):
        super().__init__()
        self.blocks, self.batch = blocks, batch

    def forward(self, i: int, h: Any) -> Tensor:
        return self.batch.run(i, h)

    def run(self, i: int, weights: Mapping[str, Tensor], h: Any) -> Tensor:
        """Block i's output for the input h, (B, ...), with the given weights, by name."""
        moved = {f"blocks.{self.blocks.key(i, name)}": w for name, w in weights.items()}
        return functional_call(self, moved, (i, h))


class Directions:
    """Random directions of the weights, which are drawn again from the seed at every use.

    Args:
        blocks: the blocks with the weights.
        seed: seed of all directions.
        rademacher, rank: as in `PerturbationRule`.
    """

    def __init__(
        self, blocks: Iterable[nn.Module], seed: int, rademacher: bool = False, rank: int = 0
    ):
        self.blocks, self.seed = list(blocks), seed
        self.rademacher, self.rank = rademacher, rank
        # For each weight: r random combinations of its inputs, (r, I), and their basis, (I, r),
        # which is computed at its first use.
        self.sketches: dict[Tensor, Tensor] = {}
        self.bases: dict[Tensor, Tensor] = {}

    def along(self, i: int, n: int) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """The name, the value and the direction number n of every trained parameter of block i."""
        for number, (name, p) in enumerate(self.blocks[i].named_parameters()):
            if p.requires_grad:
                yield name, p, self._draw(p, generator(p.device, self.seed, i, n, number))

    @torch.no_grad()
    def accumulate(self, i: int, derivatives: list[Tensor]) -> None:
        """Add to the gradients of block i the mean of its directions, each times the derivative
        along it."""
        for drawn in zip(*(self.along(i, n) for n in range(len(derivatives))), strict=True):
            p = drawn[0][1]
            gradient = torch.zeros_like(p)
            for d, (_, _, v) in zip(derivatives, drawn, strict=True):
                gradient += d * v / len(derivatives)
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Within, record the random combinations of each weight's inputs, if a rank is given."""
        if not self.rank:
            yield
            return
        weights = {p for block in self.blocks for p in block.parameters() if p.dim() > 1}
        device = next(iter(weights)).device if weights else torch.device("cpu")
        source = generator(device, self.seed)

        def layer(
            name: str, op: Callable[..., Tensor], back: Back, x: Tensor, weight: Tensor
        ) -> Tensor:
            y = op(x, weight)
            inputs = weight[0].numel()
            whole = "transpose" in name or name == "addmm" or x.shape[1] != weight.shape[1]
            if weight not in weights or whole or inputs <= self.rank:
                return y
            with without_autocast(x.device):
                like = weight.new_empty(self.rank, *weight.shape[1:])
                some = torch.randn(
                    len(y), self.rank, *y.shape[2:], generator=source, device=x.device
                ).to(weight.dtype)
                # (r, I): a weight's gradient is its inputs combined by the outputs' gradients.
                sketch = back(some, x.to(weight.dtype), like, True).reshape(self.rank, inputs)
                self.sketches[weight] = self.sketches.get(weight, 0) + sketch
            return y

        with replaced(layer):
            yield

    def _draw(self, p: Tensor, source: torch.Generator) -> Tensor:
        if p not in self.sketches:
            return draw(p, source, self.rademacher)
        if p not in self.bases:
            wide = torch.promote_types(
                p.dtype, torch.float32
            )  # QR does not exist in half precision
            self.bases[p] = torch.linalg.qr(self.sketches[p].to(wide).T)[0].to(p.dtype)
        z = draw(p.new_empty(len(p), self.rank), source, self.rademacher)
        return (z @ self.bases[p].T).view(p.shape)


def draw_seed() -> int:
    """The seed of a step's directions, from PyTorch's random generator."""
    return int(torch.randint(SEEDS, ()))


def generator(device: torch.device, *seed: int) -> torch.Generator:
    """A random generator that is seeded with a tuple of numbers."""
    device = torch.device("cpu") if device.type == "meta" else device  # which draws nothing
    return torch.Generator(device).manual_seed(hash(seed) & SEEDS)


def draw(like: Tensor, source: torch.Generator, rademacher: bool = False) -> Tensor:
    """Random numbers with mean 0 and variance 1, in the shape of `like`."""
    if rademacher:
        coins = torch.randint(2, like.shape, generator=source, device=like.device)
        return coins.to(like.dtype).mul_(2).sub_(1)
    return torch.randn(like.shape, generator=source, device=like.device, dtype=like.dtype)


def check_directions(call: str, directions: int) -> None:
    """Refuse a rule without directions.

    Raises:
        InputError: fewer than one direction.
    """
    if directions < 1:
        raise InputError(f"{call}(directions={directions}): give at least 1")
