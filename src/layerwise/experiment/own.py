"""Code outside the library that a config names: by its dotted path, or as an entry point.

Importing a module runs it, and a config may come from someone else. So a path is only imported if
it was named by `trust`, which the command line calls with what is written on it.
"""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import importlib
import inspect
import operator
import re
import sys
import traceback
import typing
from collections.abc import Callable, Collection, Iterable, Iterator
from importlib.metadata import entry_points
from types import NoneType
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LRScheduler

from layerwise.arguments import alternatives, check, shortened
from layerwise.errors import InputError, reason
from layerwise.trainer.optim import Muon, OfFunction, OfScheduler

PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
SAFE = "torch.optim."  # the optimizers and schedulers in it, which a run may name without `trust`

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
    parts = [part.strip() for value in values for part in value.split("+")]
    return [part for part in parts if is_path(part)]


def imported(kind: str, name: str, base: type | None) -> Callable[..., Any]:
    """The thing that a dotted path names; modules are also found in the current folder.

    Args:
        kind: what it is, such as "rule".
        name: the path.
        base: the class from which it has to derive; None: any function or class.

    Raises:
        InputError: nobody named it; it cannot be imported; it is something else.
    """
    safe = kind in ("optimizer", "schedule") and name.startswith(SAFE)
    if not (_everything or name in _trusted or safe):
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


def criterion(found: Callable[..., Any], leave_out: Collection[str] = ()) -> Callable[..., Any]:
    """The recipe of a criterion: of a class, whose objects are called with class scores and labels,
    or of a function of these two, whose further parameters are options."""
    leave_out = {"size_average", "reduce", "reduction", *leave_out}  # the loss is always a mean
    if inspect.isclass(found):
        return _recipe(found, lambda made: made(), 0, leave_out)
    return _recipe(found, lambda made: made, 2, leave_out)


@contextlib.contextmanager
def named(kind: str, name: str, thing: Callable[..., Any]) -> Iterator[None]:
    """Within, an error of your own code says in one line which of it failed, and where; its own
    traceback is chained.

    Raises:
        InputError: instead of any other error.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        try:
            file = inspect.getsourcefile(inspect.unwrap(getattr(thing, "of", thing)))
        except TypeError:
            file = None
        at = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        where = f" in {file}, line {at[-1]}" if at else ""
        said = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"{kind} {name}: it failed with {said}{where}") from error


def of_data(name: str) -> Callable[..., Any]:
    """The function of a data set, whose parameters of plain values are options.

    Raises:
        InputError: as `imported`.
    """
    return _recipe(imported("data", name, None), lambda made: made(), 0)


def _checked(kind: str, name: str, found: Any, base: type | None) -> Callable[..., Any]:
    if found is getattr(torch.optim, "Muon", None):
        return Muon
    is_class, trusted = inspect.isclass(found), not name.startswith(SAFE) or name in _trusted
    remedy = f"`layerwise train --{kind} {name} --help` shows its options; or give another {kind}"
    optimizer = functools.partial(OfFunction.of, remedy=f"{remedy}, such as AdamW")
    schedule = functools.partial(OfScheduler, remedy=f"{remedy}, such as Cosine")
    if kind == "optimizer" and is_class and issubclass(found, torch.optim.Optimizer):
        return _recipe(found, optimizer, 1)
    if kind == "schedule" and is_class and issubclass(found, LRScheduler):
        return _recipe(found, schedule, 1, ("last_epoch",), also=("each",))
    if kind in ("optimizer", "schedule") and inspect.isfunction(found) and trusted:
        if kind == "optimizer":
            return _recipe(found, optimizer, 1)
        return _recipe(found, schedule, 1, also=("each",))
    if base is not None and not (is_class and issubclass(found, base)):
        what = f"a subclass of {base.__module__.removesuffix('.' + base.__name__)}.{base.__name__}"
        more = {
            "optimizer": " or of torch.optim.Optimizer, or a function of the parameters",
            "schedule": " or of torch.optim.lr_scheduler.LRScheduler, or a function of the "
            "optimizer",
        }.get(kind, "")
        raise InputError(f"{kind} {name}: {shortened(found)} is not {what}{more}")
    if not callable(found):
        raise InputError(f"{kind} {name}: {shortened(found)} is no function or class")
    return criterion(found) if kind == "criterion" else found


def _recipe(
    thing: Callable[..., Any],
    make: Callable[..., Any],
    first: int,
    leave_out: Collection[str] = (),
    also: Collection[str] = (),
) -> Callable[..., Any]:
    """A function of a thing's options that gives `make` of the thing with these options. Options
    that are no plain values are left out.

    Args:
        thing: a class or function.
        make: a function of the thing with its options bound.
        first: the number of its first arguments, which are no options.
        leave_out: further parameters that are no options.
        also: options of `make`.
    """
    hints = _hints(thing.__init__ if inspect.isclass(thing) else thing)
    parameters, required = [], set()
    for p in list(inspect.signature(thing).parameters.values())[first:]:
        hint = _plain(hints.get(p.name), p.default)
        if hint is not None and p.name not in leave_out and p.kind is not p.VAR_KEYWORD:
            required |= {p.name} if p.default is p.empty else set()
            default = None if p.default is p.empty else p.default
            parameters.append(p.replace(kind=p.KEYWORD_ONLY, default=default, annotation=hint))
    of_make = _hints(getattr(make, "func", make).__init__) if also else {}
    parameters += [
        inspect.Parameter(o, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=of_make[o])
        for o in also
    ]

    def recipe(**options: Any) -> Any:
        check(recipe.__name__, options, recipe.__annotations__)
        given = {name: options.pop(name) for name in also if name in options}
        options = {k: v for k, v in options.items() if k not in required or v is not None}
        return make(functools.partial(thing, **options), **given)

    recipe.of = thing  # type: ignore[attr-defined]
    recipe.__name__ = recipe.__qualname__ = getattr(thing, "__name__", type(thing).__name__)
    recipe.__doc__ = (thing.__doc__ or "").strip().partition("\n")[0]
    recipe.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    recipe.__annotations__ = {p.name: p.annotation for p in parameters}
    return recipe


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, localns=vars(collections.abc))
    except (NameError, TypeError):
        return {}


def _plain(hint: Any, default: Any) -> Any:
    """The plain values among those that a parameter takes: numbers, text, lists of numbers; None if
    there is none."""
    found = []
    for one in alternatives(hint):
        of, values = typing.get_origin(one), typing.get_args(one)
        if one in (bool, int, float, str) or of is Literal:
            found.append(one)
        elif values in ((int,), (float,)) and issubclass(of, collections.abc.Iterable):  # type: ignore[arg-type]
            found.append(list[values[0]])  # type: ignore[valid-type]
    if not found and default is not inspect.Parameter.empty:
        if (
            isinstance(default, tuple)
            and default
            and all(isinstance(v, int | float) for v in default)
        ):
            found = [tuple[float, ...]]
        elif hint is None and default is None:
            found = [float, bool]
        elif hint is None and isinstance(default, bool | str):
            found = [type(default)]
        elif hint is None and isinstance(default, int | float):
            found = [int, float] if isinstance(default, int) else [float]
    if not found:
        return None
    optional = default is None or default is inspect.Parameter.empty
    return functools.reduce(operator.or_, [*found, NoneType] if optional else found)
