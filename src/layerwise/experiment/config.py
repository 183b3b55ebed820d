"""Configs: their options, the default of each, and the values that each takes.

A config is what a run folder's `config.yaml` holds: a mapping of settings such as `epochs: 10`, and
of named things with their options, such as `rule: {name: DGL, head: {name: MLP, width: 256}}`. The
options of a thing are the parameters of its signature.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from torch import nn

from layerwise import data
from layerwise.arguments import Hint, alternatives, in_words, shortened
from layerwise.data import Augment, Curriculum
from layerwise.errors import InputError, choices, nearest
from layerwise.experiment.own import is_path, of_data
from layerwise.experiment.registry import GIVEN, KINDS, find, nested, terms
from layerwise.runs.run import MADE_BY, Run
from layerwise.trainer import Settings
from layerwise.trainer.optim import SGD, OneCycle

# The thing of each kind that a config has by default: a name, or an object whose values are the
# defaults of its options.
DEFAULTS: dict[str, Any] = {
    "data": "digits",
    "model": "basic_cnn",
    "rule": "DGL",
    "criterion": "cross_entropy",
    "optimizer": SGD(),
    "schedule": OneCycle(),
}
# Options that are no parameter of a thing: type and default.
LOGGERS: tuple[Hint, Any] = (list[str], [])
CUT: dict[str, tuple[Hint, Any]] = {
    "blocks": (int | Literal["all"] | None, None),
    "at": (list[str] | None, None),
    "balance": (Literal["flops", "memory"], "flops"),
}
START: dict[str, tuple[Hint, Any]] = {
    "init": (str | None, None),
    "lora": (int | None, None),
    "freeze": (list[str] | None, None),
}
SCORES: tuple[Hint, Any] = (str | None, None)  # a file, where `Curriculum` takes a tensor
WEIGHT: tuple[Hint, Any] = (float | tuple[float, float], 1.0)  # of a term in a sum of objectives


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a config, with the defaults of `layerwise train` where it gives none.

    Args:
        config: any part of what `config.yaml` holds; a name alone, such as `rule: DGL`, is a thing
            with the defaults of all its options.

    Returns:
        Plain values (lists, no tuples), in the order of `config.yaml`.

    Raises:
        InputError: an unknown option, a name that is not registered, or a value of the wrong type.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"config: {shortened(config)} is not a mapping of options")
    completion = _Completion()
    given = dict(config)
    found = completion.options(given, "", {"loggers": LOGGERS})
    for key, thing in (("data", data.load), ("augment", Augment), ("curriculum", Curriculum)):
        of_thing = given.pop(key, {})
        if key == "data":
            of_thing = _named(of_thing, key)
            name = {"name": (str, DEFAULTS["data"])}
            options = name | data_parameters(of_thing.get("name", DEFAULTS["data"]))
        elif key == "curriculum":
            options = {**parameters(thing, leave_out=("scores",)), "scores": SCORES}
        else:
            options = parameters(thing)
        found[key] = completion.all_of(_mapping(of_thing, key), key, options)
    found["model"] = completion.component(given.pop("model", {}), "model", "model")
    found |= completion.options(given, "", START | CUT)
    for kind in ("rule", "criterion", "optimizer", "schedule"):
        found[kind] = completion.component(given.pop(kind, {}), kind, kind)
    found |= completion.options(given, "", parameters(Settings))
    completion.refuse(given, "")
    completion.check()
    return found


def config_of(run: Run) -> dict[str, Any]:
    """The config of a run folder, whose options have the right types.

    Raises:
        InputError: the file cannot be read, an unknown option, or a value of the wrong type.
    """
    config = run.config
    if MADE_BY in config:
        raise InputError(
            f"run {run.path}: lw.fit made it, from a network, a rule and data of your own, which "
            f"no command has; continue it by lw.fit(..., resume={str(run.path)!r}), and measure it "
            "by lw.analysis"
        )
    try:
        complete(config)
    except InputError as error:
        raise InputError(f"run {run.path}: config.yaml does not describe a run: {error}") from error
    return config


def parameters(
    thing: Callable[..., Any], leave_out: Collection[str] = ()
) -> dict[str, tuple[Hint, Any]]:
    """The parameters of a class or function: type and default of each, as a config has them. The
    `*args` of a class that derives from one like `nn.Module` are none."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    hints = typing.get_type_hints(thing.__init__ if inspect.isclass(thing) else thing)
    runs = dict.fromkeys(networks_in(thing), str | None)
    return {
        name: (runs.get(name, hints.get(name, Any)), parameter.default)
        for name, parameter in inspect.signature(thing).parameters.items()
        if name not in leave_out and parameter.kind not in several
    }


def data_parameters(name: str) -> dict[str, tuple[Hint, Any]]:
    """The options of a data set: those of `data.load`, and of a function of your own its own."""
    options = parameters(data.load, leave_out=("name", "seed"))
    return options | (parameters(of_data(name), ("name", "seed")) if is_path(name) else {})


def networks_in(thing: Callable[..., Any]) -> list[str]:
    """The parameters that take a trained network, for which a config has the folder of a run."""
    hints = typing.get_type_hints(thing.__init__ if inspect.isclass(thing) else thing)
    return [name for name, hint in hints.items() if hint == nn.Module | None]


def default_of(thing: Callable[..., Any], parameter: str, kind: str) -> Any:
    """The default of a parameter that takes a thing of this kind: an object, or the name of the
    first of its kind if the signature has no default."""
    default = inspect.signature(thing).parameters[parameter].default
    return next(iter(KINDS[kind])) if default in (None, inspect.Parameter.empty) else default


def name_of(default: Any) -> str:
    """The registered name of a default, which is a name or an object."""
    return default if isinstance(default, str) else type(default).__name__


def values_of(default: Any, name: str) -> dict[str, Any]:
    """The values of a default object's options; empty unless it is the thing called `name`."""
    if not dataclasses.is_dataclass(default) or type(default).__name__ != name:
        return {}
    return {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}


class _Completion:
    """Fills in defaults; collects the names of all options and those that are unknown."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self.unknown: list[str] = []

    def options(
        self, given: dict[str, Any], key: str, options: Mapping[str, tuple[Hint, Any]]
    ) -> dict[str, Any]:
        """The value of each of these options, taken out of `given`."""
        found = {}
        for name, (hint, default) in options.items():
            path = f"{key}.{name}" if key else name
            self.known.append(key if key and name == "name" else path)
            found[name] = _plain(default)
            if name in given:
                found[name] = fitted(given.pop(name), hint, f"config {path}")
        return found

    def all_of(
        self, given: dict[str, Any], key: str, options: Mapping[str, tuple[Hint, Any]]
    ) -> dict[str, Any]:
        """The same of a mapping that has no other options."""
        found = self.options(given, key, options)
        self.refuse(given, key)
        return found

    def component(self, given: Any, key: str, kind: str, default: Any = None) -> dict[str, Any]:
        """The options of a named thing, or of each term of a sum, and of the things within it."""
        default = DEFAULTS[kind] if default is None else default
        given = _named(given, key)
        names = terms(kind, given.pop("name", name_of(default)))
        self.known.append(key)
        found: dict[str, Any] = {"name": "+".join(names.values())}
        if len(names) == 1:
            found |= self._thing(given, key, kind, found["name"], default)
        else:
            for term, name in names.items():
                of_term = _mapping(given.pop(term, {}), f"{key}.{term}")
                weight = self.options(of_term, f"{key}.{term}", {"weight": WEIGHT})
                found[term] = self._thing(of_term, f"{key}.{term}", kind, name, name) | weight
                self.refuse(of_term, f"{key}.{term}")
        self.refuse(given, key)
        return found

    def _thing(
        self, given: dict[str, Any], key: str, kind: str, name: str, default: Any
    ) -> dict[str, Any]:
        """The options of the thing called `name`, those that are things last."""
        _, thing = find(kind, name)
        inner = nested(thing)
        own = values_of(default, name)
        runs = networks_in(thing)  # last, as on the command line
        options = {
            option: (hint, own.get(option, value))
            for option, (hint, value) in sorted(
                parameters(thing).items(), key=lambda p: p[0] in runs
            )
            if option not in inner and option not in GIVEN.get(kind, ())
        }
        found = self.options(given, key, options)
        for option, of_kind in inner.items():
            default = default_of(thing, option, of_kind)
            found[option] = self.component(
                given.pop(option, {}), f"{key}.{option}", of_kind, default
            )
        return found

    def refuse(self, rest: Mapping[str, Any], key: str) -> None:
        """Note what is left of a mapping as unknown options."""
        self.unknown += [f"{key}.{name}" if key else str(name) for name in rest]

    def check(self) -> None:
        for option in self.unknown:
            raise InputError(f"config {option}: no such option; {suggestion(option, self.known)}")


def _named(given: Any, key: str) -> dict[str, Any]:
    """A thing's options; a name alone stands for one without options."""
    return {"name": given} if isinstance(given, str) else _mapping(given, key)


def _mapping(given: Any, key: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise InputError(f"config {key} {shortened(given)}: give a mapping of options")
    return dict(given)


def _plain(value: Any) -> Any:
    """A value as YAML and JSON hold it."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def fitted(value: Any, hint: Hint, asked_by: str) -> Any:
    """A value as an option of this type holds it: a list for a tuple, 1.0 for 1 where the option
    is a float.

    Args:
        value: as YAML or Python gives it.
        hint: the option's type.
        asked_by: what an error says of the option.

    Raises:
        InputError: it is of another type.
    """
    for one in alternatives(hint):
        try:
            return _fitted(value, one)
        except (OverflowError, TypeError, ValueError):
            continue
    raise InputError(f"{asked_by} {shortened(value)}: give {in_words(hint)}")


def _fitted(value: Any, hint: Hint) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if str(value) in arguments:  # YAML reads 32 as a number
            return str(value)
    elif origin in (list, tuple):
        if isinstance(value, list | tuple):
            repeated = origin is list or ... in arguments
            hints = [arguments[0]] * len(value) if repeated else arguments
            return [fitted(v, h, "") for v, h in zip(value, hints, strict=True)]
    elif hint in (NoneType, bool, int):
        if type(value) is hint:
            return value
    elif hint is float:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)  # YAML reads 1e-3 as text
    elif hint in (str, Path):
        if isinstance(value, str | Path):
            return str(value)
    else:
        raise AssertionError(f"an option of type {hint}")
    raise ValueError


def suggestion(option: str, known: Iterable[str], flag: str = "") -> str:
    """What an unknown option was probably meant to be; otherwise the options in the same place.

    The part after the last dot counts: an option of that name elsewhere is suggested first, then
    one with a similar name in the same place.

    Args:
        option: such as `optimizer.lrr`.
        known: all options.
        flag: what stands before an option where it is shown.
    """
    places = {flag + k: tuple(k.rpartition(".")[::2]) for k in known}
    place, _, name = option.rpartition(".")
    same = [k for k, (_, own) in places.items() if own == name.lower()]
    if same:
        within = [k for k in same if place and k.startswith(f"{flag}{place}.")]
        return f"did you mean {' or '.join(map(repr, within or same))}?"
    siblings = {own: k for k, (where, own) in places.items() if where == place}
    if not siblings:  # the place does not exist either
        return choices(flag + option, places)
    near = nearest(name, siblings)
    if near is not None:
        return f"did you mean {siblings[near]!r}?"
    return f"there is: {', '.join(sorted(siblings.values()))}"
