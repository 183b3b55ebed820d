"""The default criterion on labels of every kind, against PyTorch's cross-entropy and by hand."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from layerwise import Batch, InputError, objectives
from layerwise.labels import class_axis, mean_of_counted, prepared, rows_of, true_classes
from layerwise.objectives import cross_entropy

SMOOTHINGS = pytest.mark.parametrize("smoothing", [0.0, 0.1])


def drawn(scores: tuple[int, ...], axis: int) -> tuple[Tensor, Tensor]:
    """Scores in float64, and class numbers for them."""
    z = torch.randn(scores, dtype=torch.float64)
    shape = [size for k, size in enumerate(scores) if k != axis]
    return z, torch.randint(0, scores[axis], shape)


SHAPES = [
    ((5, 4), 1),
    ((5, 7, 4), 2),
    ((5, 4, 7), 1),
    ((5, 4, 6, 4), 1),  # W = C, which the last axis would fit, too
    ((5, 4, 4, 4), 1),
    ((5, 6, 7, 4), 3),
    ((5, 4, 2, 6, 4), 1),
    ((5, 2, 6, 7, 4), 4),
]


@SMOOTHINGS
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_class_numbers(
    shape: tuple[int, ...], axis: int, dtype: torch.dtype, smoothing: float
) -> None:
    z, y = drawn(shape, axis)
    wanted = F.cross_entropy(z.movedim(axis, 1), y, label_smoothing=smoothing)
    got = cross_entropy(z, y.to(dtype), label_smoothing=smoothing)
    torch.testing.assert_close(got, wanted)


@SMOOTHINGS
@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 4), 1), ((5, 7, 4), 2), ((5, 4, 6, 3), 1), ((5, 4, 2, 6, 3), 1)]
)
def test_soft_and_one_hot_labels(shape: tuple[int, ...], axis: int, smoothing: float) -> None:
    z, y = drawn(shape, axis)
    soft = torch.rand(shape, dtype=torch.float64).softmax(axis)
    hot = F.one_hot(y, shape[axis]).movedim(-1, axis)
    for given, meant in ((soft, soft), (soft.float(), soft), (hot, y), (hot.bool(), y)):
        target = meant if meant is y else meant.movedim(axis, 1)
        wanted = F.cross_entropy(z.movedim(axis, 1), target, label_smoothing=smoothing)
        got = cross_entropy(z, given, label_smoothing=smoothing)
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)


def test_by_hand() -> None:
    """Of scores (0, ln 3) the probabilities are 1/4 and 3/4."""
    z = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert cross_entropy(z, torch.tensor([0, 1])).item() == pytest.approx(
        (math.log(4) + math.log(4 / 3)) / 2
    )
    assert cross_entropy(z, torch.tensor([0, -100])).item() == pytest.approx(math.log(4))
    soft = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    wanted = (0.5 * math.log(4) + 0.5 * math.log(4 / 3) + math.log(4)) / 2
    assert cross_entropy(z, soft).item() == pytest.approx(wanted)


@SMOOTHINGS
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_labels_that_do_not_count(shape: tuple[int, ...], axis: int, smoothing: float) -> None:
    z, y = drawn(shape, axis)
    y[1:3] = -100
    rows = z.movedim(axis, -1).flatten(0, -2)[y.flatten() >= 0]
    wanted = F.cross_entropy(rows, y[y >= 0], label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(z, y, smoothing), wanted)

    z.requires_grad_()
    loss = cross_entropy(z, torch.full_like(y, -100), smoothing)
    (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
    assert loss == 0
    assert not gradient.any()
    (second,) = torch.autograd.grad(gradient.sum(), z)
    assert not second.any()


def test_labels_of_a_batch_of_which_all_count_keep_their_bits() -> None:
    z, y = torch.randn(64, 10, requires_grad=True), torch.randint(0, 10, (64,))
    for smoothing in (0.0, 0.1):
        losses = cross_entropy(z, y, smoothing), F.cross_entropy(z, y, label_smoothing=smoothing)
        first, second = (torch.autograd.grad(loss, z)[0] for loss in losses)
        assert torch.equal(*losses)
        assert torch.equal(first, second)


def test_precisions() -> None:
    """Probabilities do not round a loss: of scores in 16 bits it is in single precision."""
    z, soft = torch.randn(5, 4, dtype=torch.bfloat16), torch.rand(5, 4).softmax(1)
    loss = cross_entropy(z, soft)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(z.float(), soft), atol=2e-2, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert cross_entropy(z.float(), soft).isfinite()


@pytest.mark.parametrize(
    ("scores", "y", "says"),
    [
        ((5, 1), torch.zeros(5, dtype=torch.long), "criterion=F.binary_cross_entropy_with_logits"),
        ((5,), torch.zeros(5), "criterion=F.binary_cross_entropy_with_logits"),
        ((5, 1), torch.zeros(5, 1), "criterion=F.mse_loss"),
        ((5, 1, 6, 7), torch.zeros(5, 6, 7, dtype=torch.long), "criterion=F.binary_cross"),
        ((5, 4), torch.randn(5), "criterion=F.mse_loss"),
        ((5, 4), torch.randn(5, 3), "criterion=F.mse_loss"),
        ((5, 7, 4), torch.randn(5, 7), "criterion=F.mse_loss"),
        ((5, 4), torch.zeros(5, 1, dtype=torch.long), "criterion="),
        ((5, 4), torch.zeros(4, dtype=torch.long), "criterion="),
        ((5, 4, 6, 7), torch.zeros(5, 1, 6, 7, dtype=torch.long), "criterion="),
        ((5, 4, 3), torch.zeros(5, 7, dtype=torch.long), "criterion="),
    ],
)
def test_labels_that_cannot_be_meant(scores: tuple[int, ...], y: Tensor, says: str) -> None:
    with pytest.raises(InputError) as error:
        cross_entropy(torch.randn(scores), y)
    message = str(error.value)
    assert message.startswith(f"cross_entropy: got class scores {scores} with labels")
    assert says in message
    assert "\n" not in message


def test_the_axis_of_the_classes() -> None:
    tokens = torch.zeros(5, 4, dtype=torch.long)
    assert class_axis(torch.zeros(5, 4, 4), tokens) == -1
    assert class_axis(torch.zeros(5, 3, 4), tokens) == 1
    assert class_axis(torch.zeros(5, 4, 3), tokens) == -1
    assert class_axis(torch.zeros(5, 4, 3), torch.zeros(5, 4, 3)) == -1


def test_class_numbers_are_checked_against_the_classes_that_may_be_meant() -> None:
    """Of (tokens, classes) = (8, 10) in the example: in a batch of other lengths, too."""
    y = torch.full((2, 9), 9)
    assert prepared(y, (8, 10), -1, "DGL", True) is y
    with pytest.raises(InputError, match="got the label 10 with 10 classes; give 0 to 9"):
        prepared(y + 1, (8, 10), -1, "DGL", True)
    with pytest.raises(InputError, match=r"got the label 255 with 4 classes.*ignore_index"):
        prepared(torch.full((2, 6, 7), 255), (4, 6, 7), 1, "DGL", True)
    with pytest.raises(InputError, match="got the label 10 with 10 classes"):
        prepared(y + 1, (8, 10), -1, "DGL", False)  # on the CPU nothing waits for the values
    prepared((y + 1).to("meta"), (8, 10), -1, "DGL", False)  # elsewhere they are not read


def test_maps_channels_last_are_classes_where_nothing_else_fits() -> None:
    y = torch.full((2, 6, 7), 3)
    assert prepared(y, (6, 7, 4), -1, "DGL", True) is y


def test_true_classes() -> None:
    z, y = drawn((5, 4, 6, 3), 1)
    soft = F.one_hot(y, 4).movedim(-1, 1).double()
    for given in (y, soft):
        classes, axis = true_classes(z, given)
        assert torch.equal(classes, y)
        assert axis == 1
    assert true_classes(z, torch.randn(5)) is None
    assert true_classes(torch.randn(5, 1), torch.zeros(5, 1)) is None


def test_rows_and_means() -> None:
    matrix = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    y = torch.tensor([1, -100, 0])
    assert rows_of(matrix, y).tolist() == [[3, 4], [0, 0], [1, 2]]
    assert rows_of(matrix, torch.tensor([[0.5, 0.5]])).tolist() == [[2, 3]]
    each = torch.tensor([1.0, 5.0, 3.0])
    assert mean_of_counted(each, y) == 2
    assert mean_of_counted(each, torch.full((3,), -100)) == 0
    assert mean_of_counted(each, torch.rand(3, 2)) == 3
    assert torch.equal(mean_of_counted(each, y.clamp(min=0)), each.mean())


def test_a_partial_of_the_default_is_the_default() -> None:
    smoothed = functools.partial(cross_entropy, label_smoothing=0.1)
    assert objectives.classify.is_cross_entropy(cross_entropy)
    assert objectives.classify.is_cross_entropy(smoothed)
    assert not objectives.classify.is_cross_entropy(F.cross_entropy)


OBJECTIVES = {
    "SimilarityMatching": objectives.SimilarityMatching,
    "SimilarityMatching projected": lambda: objectives.SimilarityMatching(projection=5),
    "PredictProjection": lambda: objectives.PredictProjection(8),
    "KernelSeparation": objectives.KernelSeparation,
    "KernelSeparation negative": lambda: objectives.KernelSeparation("l2", negative_only=True),
    "SupervisedContrastive": objectives.SupervisedContrastive,
    "ClassifyGroups": lambda: objectives.ClassifyGroups(groups=[[0, 0, 1, 1]]),
}


def placed(name: str) -> objectives.Objective:
    torch.manual_seed(1)
    objective = OBJECTIVES[name]()
    objective.place(objectives.Site(0, 2, (6,), (6,), (6,), (4,)))
    return objective.double()


def loss_of(objective: objectives.Objective, h: Tensor, y: Tensor) -> Tensor:
    return objective(objectives.Activity(h, augmented=h.unsqueeze(0)), Batch(h, y))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_leave_out_what_does_not_count(name: str) -> None:
    """With the samples that do not count last, the loss is that of the others."""
    objective, h = placed(name), torch.randn(9, 6, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2, -100, -100])
    if name == "SupervisedContrastive":  # others keep away from samples of no class
        y[-2:] = torch.tensor([5, 6])
        wanted = loss_of(objective, h, y)
        y[-2:] = -100
    else:
        wanted = loss_of(objective, h[:7], y[:7])
    torch.testing.assert_close(loss_of(objective, h, y), wanted)
    assert loss_of(objective, h, torch.full_like(y, -100)).isfinite()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_of_soft_labels(name: str) -> None:
    objective, h = placed(name), torch.randn(9, 6, dtype=torch.float64)
    y = torch.arange(9) % 4
    hot = F.one_hot(y, 4).double()
    if name.startswith(("KernelSeparation", "SupervisedContrastive")):
        with pytest.raises(InputError, match=r"needs the class of each sample.*y\.argmax\(1\)"):
            loss_of(objective, h, hot)
        return
    torch.testing.assert_close(loss_of(objective, h, hot), loss_of(objective, h, y))


def test_groups_of_soft_labels_by_hand() -> None:
    """Classes 0 and 1 are group 0: of (0.1, 0.2, 0.3, 0.4) the groups' are (0.3, 0.7)."""
    objective, h = placed("ClassifyGroups"), torch.randn(1, 6, dtype=torch.float64)
    soft = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    wanted = F.cross_entropy(objective.head(h), torch.tensor([[0.3, 0.7]], dtype=torch.float64))
    torch.testing.assert_close(loss_of(objective, h, soft), wanted)
