"""Predict the labels: the local objective of decoupled greedy learning."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import checks_arguments
from layerwise.autocast import is_autocast, without_autocast
from layerwise.errors import InputError
from layerwise.heads.head import Head
from layerwise.labels import IGNORED, any_counts, class_axis, counted
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.objective import ThroughHead

Criterion = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of class scores, (), in nats: the mean over the labels that count.

    Labels are class numbers of any integer type, one for each sample, token or pixel; or
    probabilities of the classes (soft or one-hot labels), in the shape of the scores. The shapes
    tell which axis of the scores holds the classes (`labels.class_axis`): the last of (B, C) and of
    tokens (B, T, C), the second of maps (B, C, H, W). A label of -100 does not count; if none
    counts, the loss and its gradient are 0.

    A rule also refuses values that are neither classes nor probabilities, such as multi-hot labels.
    It checks them only in the first step with labels of each kind, so that later steps do not wait
    for the device.

    Args:
        logits: class scores, (B, C), (B, T, C), (B, C, H, W), ...
        y: the labels.
        label_smoothing: the share of every label that is divided equally among all classes.

    Raises:
        InputError: labels of another shape; real numbers in another shape than the scores; a single
            output, for which the loss would always be 0. Use `criterion=` of a rule for these.
    """
    axis = class_axis(logits, y)
    soft = y.dim() == logits.dim()
    counts = True if soft else any_counts(y)
    y = y.to(torch.promote_types(logits.dtype, torch.float32)) if soft else y.long()
    if axis == -1 and logits.dim() > 2:
        logits, y = logits.flatten(0, -2), y.flatten(0, -2) if soft else y.flatten()
    loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    # The mean over no labels is not a number.
    return torch.where(counts, loss, 0.0) if isinstance(counts, Tensor) else loss


def is_cross_entropy(criterion: object) -> bool:
    """Whether a criterion is the default one, with or without label smoothing."""
    if isinstance(criterion, functools.partial):
        return criterion.func is cross_entropy and not criterion.args
    return criterion is cross_entropy


class Classify(ThroughHead):
    """Predict the labels from a block's output through an auxiliary network.

    Decoupled greedy learning: Belilovsky et al. 2019 (arXiv:1812.11446) and 2020
    (arXiv:1901.08164). The loss is the mean cross-entropy in nats per label, unless another
    criterion is given.

    Args:
        head: recipe of the auxiliary network. Without one the block's output is taken as the class
            scores, which is right for the last block.
        criterion: a function of class scores and labels that returns a scalar.
        chunk_above: above this number of classes, compute the loss and its gradient over chunks of
            tokens (`F.linear_cross_entropy`, PyTorch 2.14), so that the scores of all tokens never
            exist at once. This applies if every token has a label, the head (or, under `Backprop`
            and in the last block of a local rule, the network) ends in an `nn.Linear`
            and the criterion is cross-entropy. The step's report then has no scores of the block,
            so its training accuracy is not known; `predict` still gives them. The result differs
            from the usual computation by rounding. None for never.

    Raises:
        InputError: in a step under the default criterion, labels that it cannot use; a head whose
            scores are not for the network's classes.
    """

    @checks_arguments
    def __init__(
        self,
        head: Head | None = None,
        criterion: Criterion = cross_entropy,
        chunk_above: int | None = 8192,
    ):
        super().__init__(head, "Classify")
        self.criterion = criterion
        self.chunk_above = chunk_above
        # The network's own last layer, if it is left out; in a tuple, so that it is no submodule.
        self._deferred: tuple[nn.Linear, ...] = ()
        self._classes_seen = False  # the head's classes were compared with the network's

    @property
    def reads_input(self) -> bool:
        return False

    def forward(
        self, activity: Activity, batch: Batch, scores: list[Tensor] | None = None
    ) -> Tensor:
        h, labels = activity.output, batch.labels
        if self._deferred:
            return chunked_cross_entropy(h, self._deferred[0], labels, _smoothing(self.criterion))
        if h.dim() == 3 and (linear := self._chunked(h, labels)) is not None:
            *before, _ = self.head  # type: ignore[misc]
            for layer in before:
                h = layer(h)
            return chunked_cross_entropy(h, linear, labels, _smoothing(self.criterion))
        logits = self.predict(h, batch.inputs)
        if scores is not None:
            scores.append(logits.detach())
        if not self._classes_seen and self.site is not None and is_cross_entropy(self.criterion):
            self._refuse_other_classes(logits, labels, self.site.output_shape)
            self._classes_seen = True
        return self.criterion(logits, labels)

    def _chunked(self, h: Tensor, y: Tensor) -> nn.Linear | None:
        """The head's last layer if the loss is computed in chunks; otherwise None."""
        if self.chunk_above is None or type(self.head) is not nn.Sequential:
            return None
        return self._in_chunks(self.head[-1], h, y)

    def _in_chunks(self, last: nn.Module, h: Tensor | None, y: Tensor) -> nn.Linear | None:
        """The layer, if the loss of its scores is computed in chunks; otherwise None."""
        if type(last) is not nn.Linear or last._forward_hooks or last._forward_pre_hooks:
            return None
        assert isinstance(last, nn.Linear)
        if self.chunk_above is None or last.out_features <= self.chunk_above:
            return None
        rows = y.shape if h is None else h.shape[:2]
        tokens = y.dim() == 2 and y.shape == rows and not y.is_floating_point()
        if not tokens or not is_cross_entropy(self.criterion) or not torch.is_grad_enabled():
            return None
        return last if hasattr(F, "linear_cross_entropy") else None

    @contextlib.contextmanager
    def deferring(self, last: nn.Module | None, batch: Batch) -> Iterator[bool]:
        """Within, a network's own last layer returns its input, and this objective, which has no
        head, computes the loss of its scores in chunks; yields whether this is so.

        Args:
            last: the network's last layer; None if it is not known.
            batch: the step's batch.
        """
        linear = None
        if last is not None and self.recipe is None:
            linear = self._in_chunks(last, None, batch.labels)
        if linear is None:
            yield False
            return
        linear.forward = _unchanged
        self._deferred = (linear,)
        try:
            yield True
        finally:
            del linear.forward
            self._deferred = ()

    def _refuse_other_classes(self, logits: Tensor, y: Tensor, shape: tuple[int, ...]) -> None:
        classes = logits.shape[class_axis(logits, y)]
        if shape and classes not in (shape[0], shape[-1]):
            raise InputError(
                f"Classify: the head gives class scores {tuple(logits.shape)} for {classes} "
                f"classes, but the network gives {shape} for each sample; give a head whose "
                "scores are for the network's classes"
            )


def chunked_cross_entropy(
    h: Tensor, linear: nn.Linear, y: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """`cross_entropy(linear(h), y)`, (), computed without the scores of all tokens at once.

    PyTorch's `F.linear_cross_entropy` computes the gradient together with the loss, chunk by chunk,
    so it can be differentiated only once and only in reverse mode. It keeps the gradients of h and
    of the weights; in 16 bits it keeps h and the weights and computes the gradients in the backward
    pass. Under autocast h and the weights have autocast's type, and sums are in single precision.

    With label smoothing s the loss of a token is -log p_y + s (z_y - mean_c z_c). The second term
    needs no scores of all classes: z_y - mean_c z_c = h . (W_y - mean_c W_c) + b_y - mean_c b_c.

    Args:
        h: features, (B, T, D).
        linear: the layer from features to class scores.
        y: class numbers, (B, T), int64.
        label_smoothing: as in `cross_entropy`.
    """
    weight, bias = linear.weight, linear.bias
    if is_autocast(h.device):
        dtype = torch.get_autocast_dtype(h.device.type)
        h, weight = h.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with without_autocast(h.device):
        h_ND, y_N = h.flatten(0, 1), y.flatten()
        wide = torch.promote_types(h.dtype, torch.float32)
        # A sum in 16 bits would be rounded or overflow; a mean over no labels is not a number.
        loss = F.linear_cross_entropy(
            h_ND,
            weight,
            y_N,
            linear_bias=bias,
            reduction="sum" if h.dtype == wide else "none",
            options=nn.LinearCrossEntropyOptions(),
        ).sum(dtype=wide)
        if label_smoothing:
            known_N = y_N.clamp(min=0)
            over_N = (h_ND * (F.embedding(known_N, weight) - weight.mean(0))).sum(1, dtype=wide)
            if bias is not None:
                over_N = over_N + (bias[known_N] - bias.mean())
            loss = loss + label_smoothing * torch.where(y_N != IGNORED, over_N, 0.0).sum()
        return loss / counted(y_N)


def with_scores(objective: nn.Module) -> None:
    """Make an objective compute all class scores at once, so that its loss can be differentiated
    more than once and in forward mode."""
    for part in objective.modules():
        if isinstance(part, Classify):
            part.chunk_above = None


def _unchanged(input: Tensor) -> Tensor:
    return input


def _smoothing(criterion: Criterion) -> float:
    given = criterion.keywords if isinstance(criterion, functools.partial) else {}
    return given.get("label_smoothing", 0.0)
