"""Labels: which kinds there are, and how they relate to class scores.

Shapes: B batch, C classes, T tokens, H and W the height and width of maps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from layerwise.errors import InputError

Shape = tuple[int, ...]

IGNORED = -100  # the label of a position to leave out, as in `F.cross_entropy`
OTHERWISE = (
    "for several classes at once give criterion=F.binary_cross_entropy_with_logits, for real "
    "numbers criterion=F.mse_loss"
)


def class_axis(scores: Tensor, y: Tensor, asked_by: str = "cross_entropy") -> int:
    """The axis of class scores that holds the classes, 1 or -1.

    Labels are class numbers, of any integer type, in the scores' shape without that axis; or
    probabilities of the classes (soft or one-hot labels), in the scores' shape:

        scores (B, C)                  labels (B,)             or (B, C)          axis -1
        scores (B, T, C)               labels (B, T)           or (B, T, C)       axis -1
        scores (B, C, T)               labels (B, T), T != C                      axis 1
        scores (B, C, H, W)            labels (B, H, W)        or (B, C, H, W)    axis 1
        scores (B, H, W, C)            labels (B, H, W), if axis 1 does not fit   axis -1
        scores (B, C, T, H, W)         labels (B, T, H, W)     or as the scores   axis 1

    If both axes fit scores of three axes (T = C), the classes are last, which is this library's
    convention for tokens. A rule whose network ends in a one-dimensional convolution refuses such
    a batch (`prepared`), because there the other axis is meant. If both fit scores of more axes,
    the classes are at axis 1, which is PyTorch's convention for maps.

    Args:
        scores: the class scores.
        y: the labels.
        asked_by: the call, for errors.

    Raises:
        InputError: labels of another shape; real numbers that are not probabilities; a single
            output, whose cross-entropy is always 0.
    """
    shape = scores.shape
    plain = len(shape) == 2 and shape[:1] == y.shape and shape[1] > 1
    if plain and not (y.is_floating_point() or y.is_complex()):
        return -1  # the common case, first because every block asks
    axis = _axis(scores.shape, y)
    if axis is None or scores.shape[axis] == 1:
        refuse(tuple(scores.shape), y, asked_by)
    return axis


def _axis(shape: Shape | torch.Size, y: Tensor) -> int | None:
    """The axis of the classes in scores of this shape; None if the labels do not fit."""
    given, maps = y.shape, len(shape) > 3
    if len(shape) < 2:
        return None
    if given == shape:
        return 1 if maps else -1
    if y.is_floating_point() or y.is_complex():
        return None
    last, first = given == shape[:-1], given == (*shape[:1], *shape[2:])
    if last and not (maps and first):
        return -1
    return 1 if first else None


def refuse(shape: Shape, y: Tensor, asked_by: str) -> NoReturn:
    """Raise the error that fits labels which do not match class scores.

    Args:
        shape: the scores' shape, including the batch.
        y: the labels.
        asked_by: the call, for errors.

    Raises:
        InputError: always.
    """
    got = f"{asked_by}: got class scores {shape} with labels {_seen(y)}"
    if len(shape) < 2 or shape[-1] == 1 or (len(shape) > 3 and shape[1] == 1):
        raise InputError(
            f"{got}, and the cross-entropy of a single output is always 0; for two classes give "
            "criterion=F.binary_cross_entropy_with_logits, for real numbers criterion=F.mse_loss"
        )
    if y.is_floating_point() or y.is_complex():
        raise InputError(
            f"{got}; real numbers are labels only if they are the classes' probabilities, in the "
            "scores' shape: for class numbers give y.long(), for real numbers criterion=F.mse_loss"
        )
    raise InputError(
        f"{got}; class numbers have the scores' shape without the axis of the classes, "
        "probabilities have their shape: reshape the labels, or give a loss of your own as "
        "criterion="
    )


def refuse_no_labels(y: object) -> None:
    """Check that labels are a tensor with an axis of samples.

    Raises:
        InputError: they are not.
    """
    if not isinstance(y, Tensor):
        raise InputError(
            f"backward(x, y): got labels of type {type(y).__name__}; give a tensor, such as "
            "torch.as_tensor(y)"
        )
    if y.dim() == 0:
        raise InputError(
            "backward(x, y): got a single label, (); give one for each sample, (B,): y.unsqueeze(0)"
        )


def prepared(y: Tensor, output_shape: Shape, axis: int, asked_by: str, look: bool) -> Tensor:
    """Labels as every rule reads them under the default criterion.

    Args:
        y: the labels, (B, ...).
        output_shape: the shape of the network's class scores, without the batch dimension. In this
            batch the number of tokens, or the size of maps, may differ from it.
        axis: that of the classes in the scores, 1 or -1: `heads.layout.scores_axis`.
        asked_by: the call, for errors.
        look: whether to check the labels' values as well, for which the host waits for the device.

    Returns:
        Class numbers (int64), also for one-hot labels of an integer type; or probabilities.

    Raises:
        InputError: as `class_axis`; with `look` also probabilities that do not sum to 1, and class
            numbers that no class has.
    """
    shape = (len(y), *output_shape)
    usual = 1 if len(shape) > 3 else -1  # where both axes fit, `class_axis` takes this one
    if len(shape) < 2 or shape[axis] == 1:
        refuse(shape, y, asked_by)
    classes = shape[axis]
    if y.dim() == len(shape) and y.shape[axis] == classes:
        if len(shape) > 2 and axis != usual:
            _refuse_unusual(y, axis, "probabilities are read", asked_by)
        if look:
            _refuse_unless_probabilities(y, axis, asked_by)
        return y if y.is_floating_point() else y.argmax(axis)
    if y.is_floating_point() or y.is_complex() or y.dim() != len(shape) - 1:
        refuse(shape, y, asked_by)
    if len(shape) > 2 and axis != usual and all(n == classes for n in y.shape[1:]):
        _refuse_unusual(y, axis, f"with {classes} of each, scores are read", asked_by)
    if look or y.device.type == "cpu":  # where nothing is to be waited for
        # If the shapes allow it, the other axis may be that of the classes.
        other = -1 if axis == 1 else 1
        fits = tuple(y.shape[1:]) == (shape[1:-1] if axis == 1 else shape[2:])
        _refuse_unless_classes(y, max(classes, shape[other]) if fits else classes, asked_by)
    return y


def _refuse_unusual(y: Tensor, axis: int, what: str, asked_by: str) -> NoReturn:
    """Raise the error that fits labels of a network whose scores have their classes where they are
    not looked for.

    Raises:
        InputError: always.
    """
    got = f"{asked_by}: got labels {_seen(y)} for a network that"
    if axis == 1:
        raise InputError(
            f"{got} ends in a one-dimensional convolution and gives (classes, tokens); {what} as "
            "(B, T, C): give criterion=F.cross_entropy, which reads (B, C, T)"
        )
    raise InputError(
        f"{got} gives maps with the classes last, (B, H, W, C); {what} as (B, C, H, W): let the "
        "network end in (B, C, H, W), or give class numbers, (B, H, W), with H or W other than C"
    )


def _refuse_unless_probabilities(y: Tensor, axis: int, asked_by: str) -> None:
    """Check that the values along `axis` are not negative and sum to 1.

    Raises:
        InputError: they do not.
    """
    wide = torch.promote_types(y.dtype, torch.float32) if y.is_floating_point() else torch.float32
    sums = y.sum(axis, dtype=wide)
    near = 1e-2 if y.dtype in (torch.bfloat16, torch.float16) else 1e-3
    if y.numel() and not bool((y >= 0).all() & ((sums - 1).abs() <= near).all()):
        raise InputError(
            f"{asked_by}: got labels {_seen(y)} that are not the classes' probabilities: they sum "
            f"to {sums.min().item():.4g} up to {sums.max().item():.4g}, not to 1; {OTHERWISE}"
        )


def _refuse_unless_classes(y: Tensor, classes: int, asked_by: str) -> None:
    """Check that class numbers are 0 to classes - 1, or `IGNORED`.

    Raises:
        InputError: one is not.
    """
    if not y.numel() or y.device.type == "meta":
        return
    least, most = y.aminmax()
    if least.item() >= 0 and most.item() < classes:
        return
    wrong = ((y < 0) & (y != IGNORED)) | (y >= classes)
    if bool(wrong.any()):
        raise InputError(
            f"{asked_by}: got the label {int(y[wrong][0])} with {classes} classes; give 0 to "
            f"{classes - 1}, and {IGNORED} for a label to leave out; to leave out another number "
            "give criterion=functools.partial(F.cross_entropy, ignore_index=...)"
        )


def true_classes(scores: Tensor, y: Tensor) -> tuple[Tensor, int] | None:
    """The true classes of labels, and the axis of the classes in `scores`.

    Returns:
        Class numbers, `IGNORED` among them, in the scores' shape without that axis (for
        probabilities, the most probable class); and the axis. None if the labels are not classes
        of these scores.
    """
    axis = _axis(scores.shape, y)
    if axis is None or scores.shape[axis] == 1:
        return None
    return (y.argmax(axis) if y.shape == scores.shape else y), axis


def rows_of(matrix: Tensor, y: Tensor) -> Tensor:
    """The rows of a matrix that labels select: onehot(y) @ matrix.

    Args:
        matrix: (C, D), a row for each class.
        y: class numbers, (B,) or (B, T); `IGNORED` selects zeros. Or weights of the classes, of a
            floating-point type, (..., C).

    Returns:
        (B, D), (B, T, D) or (..., D).
    """
    if y.is_floating_point():
        return y.to(matrix.dtype) @ matrix
    return matrix[y.clamp(min=0)] * (y >= 0).unsqueeze(-1)


def counted(y: Tensor) -> Tensor:
    """The number of class numbers that are not `IGNORED`, (); at least 1, so that it can divide."""
    return (y != IGNORED).sum().clamp(min=1)


def any_counts(y: Tensor) -> Tensor | bool:
    """Whether any class number is not `IGNORED`, found once for all blocks that read the labels.

    Returns:
        On the CPU True if there is one. Otherwise a bool tensor, (), which stays on the device so
        that the host does not wait for it.
    """
    global _asked
    of, version, answer = _asked
    if of() is y and version == y._version:
        return answer
    found = (y != IGNORED).any()
    # Under `torch.vmap` no value can be read, and a tensor of inference mode has no version.
    if torch._C._functorch.is_batchedtensor(y) or y.is_inference():
        return found
    answer = True if y.is_cpu and bool(found) else found
    _asked = weakref.ref(y), y._version, answer
    return answer


_asked: tuple[Callable[[], Tensor | None], int, Tensor | bool] = lambda: None, 0, True


def mean_of_counted(each: Tensor, y: Tensor) -> Tensor:
    """The mean of `each` over the samples whose label is not `IGNORED`, (); 0 if there are none.

    Args:
        each: a value for each sample, (B,).
        y: class numbers, (B,); or probabilities, which all count.
    """
    if y.is_floating_point():
        return each.mean()
    # The factor is exactly 1 if no label is ignored.
    return torch.where(y != IGNORED, each, 0.0).mean() * (len(y) / counted(y).to(each.dtype))


def class_numbers(y: Tensor, asked_by: str) -> Tensor:
    """`y`, if it is class numbers.

    Raises:
        InputError: it is probabilities or other real numbers.
    """
    if y.is_floating_point():
        raise InputError(
            f"{asked_by}: got labels {_seen(y)}; it needs the class of each sample, not "
            "probabilities: give class numbers, such as y.argmax(1)"
        )
    return y


def _seen(y: Tensor) -> str:
    """The shape and type of labels, for errors."""
    return f"{tuple(y.shape)} of {str(y.dtype).removeprefix('torch.')}"
