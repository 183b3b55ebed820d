"""Things that have a name, and how a name and options become an object.

A specification is a plain mapping, as in a config file: `{name: DGL, head: {name: MLP, width:
256}}`. The options of a class are the parameters of its signature. Objectives add up: `{name: A+B,
A: {weight: 0.5, head: ...}, B: {weight: 2}}`; a weight `[first, last]` is linear over the blocks.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from layerwise.arguments import is_finite, shortened
from layerwise.errors import InputError, choices
from layerwise.experiment import kinds, own
from layerwise.experiment.kinds import Kind
from layerwise.experiment.memory import bounded
from layerwise.heads import Decoder, Head, Inverse, Projector, Synthesizer
from layerwise.objectives import Objective, cross_entropy
from layerwise.rules.base import Rule
from layerwise.trainer.optim import Optimizer, Schedule


def _things(kind: Kind) -> dict[str, Callable[..., Any]]:
    """The things of a kind by their names, the default first."""
    module = importlib.import_module(f"layerwise.{kind.module}")
    names = [name for name in module.__all__ if name not in kind.leave_out]
    found = {
        name: getattr(module, name) for name in sorted(names, key=lambda name: name != kind.default)
    }
    if kind.base is None:
        return found
    base = getattr(module, kind.base)
    return {
        name: thing
        for name, thing in found.items()
        if inspect.isclass(thing) and issubclass(thing, base) and not inspect.isabstract(thing)
    }


# Kinds whose things are options of other things, by the annotation of such a parameter.
NESTED: dict[type, str] = {
    Head: "head",
    Decoder: "decoder",
    Synthesizer: "synthesizer",
    Inverse: "inverse",
    Projector: "projector",
    Objective: "objective",
}


def _criterion(name: str, about: str) -> Callable[..., Any]:
    found = cross_entropy if name == "cross_entropy" else getattr(nn, name)
    recipe = own.criterion(found, ("label_smoothing",) if found is cross_entropy else ())
    recipe.__doc__ = about
    return recipe


KINDS: dict[str, dict[str, Callable[..., Any]]] = {
    **{name: _things(kind) for name, kind in kinds.KINDS.items()},
    "criterion": {name: _criterion(name, about) for name, about in kinds.CRITERIA.items()},
}

# The classes from which code of your own derives; networks may be any function.
BASES: dict[str, type] = {
    **{kind: base for base, kind in NESTED.items()},
    "rule": Rule,
    "optimizer": Optimizer,
    "schedule": Schedule,
}

# Arguments that come from the data, the network and the trainer, never from a config.
GIVEN = {
    "model": {"shape", "num_classes"},
    "rule": {"blocks", "num_classes", "criterion"},
    "objective": {"criterion", "normalization"},
}


def find(kind: str, name: str) -> tuple[str, Callable[..., Any]]:
    """The registered name and the thing that it stands for; case, `-` and `_` do not matter. A
    dotted path stands for code of your own, and a name for an entry point of an installed package.

    Raises:
        InputError: no such name, or code that cannot be used.
    """
    known = KINDS[kind]
    short = str(name).removeprefix("torch.nn.")
    if kind == "criterion" and not own.is_path(short):  # a loss of torch.nn, no function below it
        name = short
    for key, thing in known.items():
        if _plain(key) == _plain(name):
            return key, thing
    if own.is_path(name):
        return name, own.imported(kind, name, BASES.get(kind))
    if (found := own.registered(kind, name, BASES.get(kind))) is not None:
        return name, found
    raise InputError(f"{kind} {name!r}: no such {kind}; {choices(str(name), known)}")


def terms(kind: str, names: str) -> dict[str, str]:
    """The terms of a sum such as `A+package.B`; only objectives have sums.

    Returns:
        For each term, the key of its options (`A`; `B`, the last part of a path), and its
        registered name or its path (`A`; `package.B`).

    Raises:
        InputError: no such name, the same name twice, or an argument that a term has of its own.
    """
    parts = [part.strip() for part in str(names).split("+")] if kind == "objective" else [names]
    found = [find(kind, part) for part in parts]
    keys = [name.rpartition(".")[2] for name, _ in found]
    for key, (name, thing) in zip(keys, found, strict=True) if len(found) > 1 else ():
        if key == "name" or "weight" in inspect.signature(thing).parameters:
            raise InputError(
                f"{kind} {name}: a term of a sum has a factor `weight` of its own, and cannot be "
                "called `name` or take an argument `weight`; rename it"
            )
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise InputError(
            f"{kind} {names}: {twice[0]} is named twice; name each once and give it a weight"
        )
    return dict(zip(keys, (name for name, _ in found), strict=True))


def _plain(name: str) -> str:
    return str(name).lower().replace("-", "").replace("_", "")


def nested(thing: Callable[..., Any]) -> dict[str, str]:
    """The parameters that are named things themselves: parameter -> kind."""
    hints = typing.get_type_hints(thing.__init__ if inspect.isclass(thing) else thing)
    return {
        parameter: kind
        for parameter, hint in hints.items()
        for base, kind in NESTED.items()
        if base in (hint, *typing.get_args(hint))
    }


def make(kind: str, specification: Mapping[str, Any], **given: Any) -> Any:
    """Build what a specification describes.

    Args:
        kind: one of KINDS.
        specification: `name`, and options of the thing of this name. For a sum of objectives,
            `name: A+B`, and under `A` and `B` the options and the `weight` of each (default 1): a
            number, or [first block, last block].
        given: arguments that are not options (`GIVEN`); those that the thing does not take are left
            out.

    Raises:
        InputError: no such name, an option that the thing does not have, or a value that it does
            not take.
    """
    names = terms(kind, specification.get("name", ""))
    if len(names) > 1:
        return _sum(kind, names, specification, given)
    name, thing = find(kind, *names.values())
    takes = inspect.signature(thing).parameters
    inner = nested(thing)
    options = {}
    for key, value in specification.items():
        if key == "name":
            continue
        if key not in takes or key in GIVEN.get(kind, ()):
            known = [k for k in takes if k not in GIVEN.get(kind, ())]
            raise InputError(f"{kind} {name}: no option {key!r}; {choices(key, known)}")
        if key in inner and isinstance(value, Mapping):
            value = make(inner[key], value, **given)
        elif isinstance(value, list):
            value = tuple(value)
        options[key] = value
    of_own = own.named(kind, name, thing) if own.is_path(name) else contextlib.nullcontext()
    try:
        with bounded(f"{kind} {name}"), of_own:
            return thing(**options, **{key: value for key, value in given.items() if key in takes})
    except InputError:
        raise
    except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{kind} {name}: cannot be made with these options: {reason}") from error


def _sum(
    kind: str, names: dict[str, str], specification: Mapping[str, Any], given: Mapping[str, Any]
) -> Any:
    for key in specification:
        if key not in ("name", *names):
            raise InputError(
                f"{kind} {'+'.join(names.values())}: no term {key!r}; {choices(key, names)}"
            )
    made = []
    for key, name in names.items():
        options = specification.get(key, {})
        if not isinstance(options, Mapping):
            raise InputError(f"{kind} {name}: {options!r}; give its options, such as {{weight: 1}}")
        options = dict(options)
        weight = options.pop("weight", 1.0)
        made.append(
            _weight(weight, f"{kind} {name}") * make(kind, {**options, "name": name}, **given)
        )
    return sum(made)


def _weight(weight: Any, asked_by: str) -> float | tuple[float, float]:
    """A finite number, or one for the first block and one for the last."""
    pair = isinstance(weight, list | tuple)
    numbers = weight if pair else [weight]
    if not all(map(is_finite, numbers)) or len(numbers) != (2 if pair else 1):
        raise InputError(
            f"{asked_by}: weight {shortened(weight)}; give a finite number, or two: [first block, "
            "last]"
        )
    return (numbers[0], numbers[1]) if pair else weight
