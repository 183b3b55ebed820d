"""The kinds of things that a config names, and the module that exports the things of each kind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """The things of one kind: names in a module's `__all__`.

    Attributes:
        module: a module within `layerwise`, such as `heads`.
        base: the class from which they derive; only concrete classes count. None: every name.
        leave_out: names that do not count.
        default: the name that stands first; None for the order of `__all__`.
    """

    module: str
    base: str | None = None
    leave_out: tuple[str, ...] = ()
    default: str | None = None


KINDS = {
    "model": Kind("models"),
    "rule": Kind("rules"),
    "head": Kind("heads", "Head"),
    "decoder": Kind("heads", "Decoder"),
    "synthesizer": Kind("heads", "Synthesizer"),
    "inverse": Kind("heads", "Inverse"),
    "projector": Kind("heads", "Projector"),
    "objective": Kind("objectives", "Objective", leave_out=("Sum",), default="Classify"),
    "optimizer": Kind("trainer.optim", "Optimizer"),
    "schedule": Kind("trainer.optim", "Schedule"),
}

# Losses of class scores and labels: the default one, and those of torch.nn.
CRITERIA = {
    "cross_entropy": "Cross-entropy of classes, or of their probabilities, in nats.",
    "BCEWithLogitsLoss": "Binary cross-entropy of several classes at once; labels 0 or 1.",
    "CrossEntropyLoss": "PyTorch's cross-entropy, with its options.",
    "HuberLoss": "Squares of small differences, absolute values of large ones.",
    "L1Loss": "Mean absolute difference from labels that are real numbers.",
    "MSELoss": "Mean square of differences from labels that are real numbers.",
    "MultiMarginLoss": "Hinge loss of classes.",
    "SmoothL1Loss": "HuberLoss divided by its width.",
    "SoftMarginLoss": "Logistic loss of several classes at once; labels -1 or 1.",
}
