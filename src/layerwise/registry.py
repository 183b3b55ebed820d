"""What can be asked for by name, and how a named thing and its options become an object.

A specification is a plain mapping, as it stands in a config file: `{name: DGL, head: {name: MLP,
width: 256}}`. What options there are is read off the class's own signature.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from layerwise import heads, models, objectives, optim, rules
from layerwise.errors import InputError, choices
from layerwise.heads import Head
from layerwise.objectives import Objective


def _public(module: ModuleType, *without: str) -> dict[str, Callable[..., Any]]:
    return {name: getattr(module, name) for name in module.__all__ if name not in without}


KINDS: dict[str, dict[str, Callable[..., Any]]] = {
    "model": _public(models),
    "rule": _public(rules),
    "head": _public(heads, "Head"),
    "objective": _public(objectives, "Objective", "Site", "Sum", "cross_entropy"),
    "optimizer": {"SGD": optim.SGD, "AdamW": optim.AdamW},
    "schedule": {
        "Constant": optim.Constant,
        "Cosine": optim.Cosine,
        "Step": optim.Step,
        "OneCycle": optim.OneCycle,
    },
}

# Arguments that come from the data, the network and the trainer, never from a config.
GIVEN = {
    "model": {"shape", "num_classes"},
    "rule": {"blocks", "num_classes", "criterion"},
    "objective": {"criterion"},
}


def find(kind: str, name: str) -> tuple[str, Callable[..., Any]]:
    """The registered name and what it stands for; case, `-` and `_` do not matter."""
    known = KINDS[kind]
    for key, thing in known.items():
        if _plain(key) == _plain(name):
            return key, thing
    raise InputError(f"{kind} {name!r}: no such {kind}; {choices(str(name), known)}")


def _plain(name: str) -> str:
    return str(name).lower().replace("-", "").replace("_", "")


def nested(thing: Callable[..., Any]) -> dict[str, str]:
    """The parameters that are themselves named things: parameter -> kind."""
    hints = typing.get_type_hints(thing.__init__ if inspect.isclass(thing) else thing)
    found = {}
    for parameter, hint in hints.items():
        types = [hint, *typing.get_args(hint)]
        if Head in types:
            found[parameter] = "head"
        elif Objective in types:
            found[parameter] = "objective"
    return found


def make(kind: str, specification: Mapping[str, Any], **given: Any) -> Any:
    """Build what a specification asks for.

    Args:
        kind: one of KINDS.
        specification: `name`, and options of the thing so named.
        given: arguments that are not options (`GIVEN`); those the thing does not take are left out.

    Raises:
        InputError: no such name; an option that the thing does not have, or a value that it does
            not take.
    """
    name, thing = find(kind, specification.get("name", ""))
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
    try:
        return thing(**options, **{key: value for key, value in given.items() if key in takes})
    except InputError:
        raise
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{kind} {name}: cannot be made with these options: {reason}") from error
