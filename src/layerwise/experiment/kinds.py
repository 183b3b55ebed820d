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
