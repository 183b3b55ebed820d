"""Code outside the library that a config names: by its dotted path, or as an entry point.

Importing a module runs it, and a config may come from someone else. So a path is only imported if
it was named by `trust`, which the command line calls with what is written on it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any

import torch

from layerwise.arguments import shortened
from layerwise.errors import InputError, reason
from layerwise.trainer.optim import OfFunction

PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
SAFE = "torch.optim."  # the classes of optimizers in it, which a run may name without `trust`

_trusted: set[str] = set()
_everything = False


def is_path(name: object) -> bool:
    """Whether a name is a dotted path, such as `package.module.Thing`."""
    return isinstance(name, str) and PATH.fullmatch(name) is not None


def trust(*names: str) -> None:
    """Allow configs to name this code.

    Args:
        names: dotted paths.
    """
    _trusted.update(names)


def trust_everything() -> None:
    """Allow configs to name any code."""
    global _everything
    _everything = True


def trusts() -> list[str]:
    """The options with which another process trusts the same."""
    return ["--trust", "true"] if _everything or _trusted else []


def named_in(arguments: Iterable[str]) -> list[str]:
    """The dotted paths among the values of a command line, also in sums of objectives."""
    values = [a.partition("=")[2] if a.startswith("--") else a for a in arguments]
    return [part for value in values for part in value.split("+") if is_path(part)]


def imported(kind: str, name: str, base: type | None) -> Callable[..., Any]:
    """The thing that a dotted path names; modules are also found in the current folder.

    Args:
        kind: what it is, such as "rule".
        name: the path.
        base: the class from which it has to derive; None: any function or class.

    Raises:
        InputError: nobody named it; it cannot be imported; it is something else.
    """
    if not (_everything or name in _trusted or (kind == "optimizer" and name.startswith(SAFE))):
        raise InputError(
            f"{kind} {name}: a config names code outside layerwise, which would run here; if you "
            "know where the config is from, add --trust true, or in Python call "
            f"layerwise.experiment.trust({name!r})"
        )
    module, _, attribute = name.rpartition(".")
    before = list(sys.path)
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the module does when it is imported
        raise InputError(f"{kind} {name}: cannot be imported: {reason(error)}") from error
    finally:
        sys.path[:] = before
    return _checked(kind, name, found, base)


def registered(kind: str, name: str, base: type | None) -> Callable[..., Any] | None:
    """The thing that an installed package registered under this name; None if none did.

    Packages do so in their pyproject.toml:

        [project.entry-points."layerwise.rule"]
        my-rule = "package.module:MyRule"

    Raises:
        InputError: it cannot be imported; it is something else.
    """
    for point in entry_points(group=f"layerwise.{kind}"):
        if point.name == name:
            try:
                found = point.load()
            except Exception as error:
                raise InputError(
                    f"{kind} {name}: {point.value} cannot be imported: {reason(error)}"
                ) from error
            return _checked(kind, name, found, base)
    return None


def registered_names(kind: str) -> list[str]:
    """The names of a kind that installed packages registered."""
    return sorted(point.name for point in entry_points(group=f"layerwise.{kind}"))


def _checked(kind: str, name: str, found: Any, base: type | None) -> Callable[..., Any]:
    of_torch = inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)
    if kind == "optimizer" and of_torch:
        return _recipe(found)
    if base is not None and not (inspect.isclass(found) and issubclass(found, base)):
        what = f"a subclass of {base.__module__.removesuffix('.' + base.__name__)}.{base.__name__}"
        more = " or of torch.optim.Optimizer" if kind == "optimizer" else ""
        raise InputError(f"{kind} {name}: {shortened(found)} is not {what}{more}")
    if not callable(found):
        raise InputError(f"{kind} {name}: {shortened(found)} is no function or class")
    return found


def _recipe(optimizer: type[torch.optim.Optimizer]) -> Callable[..., Any]:
    """A function of an optimizer's options that makes its recipe. Options that are no plain values
    are left out."""
    plain = (bool, int, float, str, type(None))
    parameters = []
    for p in list(inspect.signature(optimizer).parameters.values())[1:]:
        value = None if p.default is p.empty else p.default
        pair = isinstance(value, tuple) and all(isinstance(v, int | float) for v in value)
        if p.kind is p.VAR_KEYWORD or not (pair or isinstance(value, plain)):
            continue
        hint: Any = float | bool | None if value is None else type(value)
        hint = tuple[float, ...] if pair else int | float if hint is int else hint
        parameters.append(p.replace(kind=p.KEYWORD_ONLY, default=value, annotation=hint))

    def recipe(**options: Any) -> OfFunction:
        return OfFunction.of(functools.partial(optimizer, **options))

    recipe.__name__ = recipe.__qualname__ = optimizer.__name__
    recipe.__doc__ = (optimizer.__doc__ or "").strip().partition("\n")[0]
    recipe.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    recipe.__annotations__ = {p.name: p.annotation for p in parameters}
    return recipe
