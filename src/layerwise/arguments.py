"""Checks of arguments against their annotations: whole numbers are whole, real numbers finite.

`checks_arguments` is for functions and methods, `check_fields` for dataclasses. The ranges of
numbers are checked where their meaning is known: `at_least`, `positive`, `share`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, TypeVar, Union

from torch import nn

from layerwise.errors import InputError

Hint = Any  # a type annotation
Function = TypeVar("Function", bound=Callable[..., Any])
MOST_WHOLE = 2**31 - 1  # PyTorch takes no larger sizes in many places
DEEPEST = 10_000  # layers that are made one by one
WIDEST = 10_000  # factor of all channels
LISTS = (list, tuple, Sequence)  # origins of annotations of lists


def checks_arguments(function: Function) -> Function:
    """The function, which refuses arguments that do not fit their annotations.

    In errors a function has its own name, and a method that of the object's class.
    """
    signature = inspect.signature(function)
    method = "self" in signature.parameters

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python's own message names the argument
        given = {k: v for k, v in bound.items() if v is not signature.parameters[k].default}
        check(type(args[0]).__name__ if method else checking.__name__, given, _hints(function))
        return function(*args, **kwargs)

    return checking  # type: ignore[return-value]


def check_fields(thing: Any, call: str) -> None:
    """Refuse a dataclass whose fields do not fit their annotations.

    Args:
        thing: the dataclass; this is called in its `__post_init__`.
        call: its name in errors.

    Raises:
        InputError: a field does not fit.
    """
    fields = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    check(call, fields, _hints(type(thing)))


def check(call: str, given: Mapping[str, Any], hints: Mapping[str, Hint]) -> None:
    """Refuse values that do not fit their annotations. Types that are neither numbers, text,
    modules nor callable are not looked at, and neither are the length of a tuple and the text that
    a `Literal` allows.

    Raises:
        InputError: a value does not fit.
    """
    for name, value in given.items():
        hint = hints.get(name, Any)
        if not any(_fits(value, one) for one in alternatives(hint)):
            words = in_words(hint).replace("a number", "a finite number")
            raise InputError(f"{call}({name}={shortened(value)}): give {words}")
        if isinstance(value, Integral) and abs(int(value)) > MOST_WHOLE and name != "seed":
            raise InputError(f"{call}({name}={shortened(value)}): give at most {MOST_WHOLE}")


def at_least(least: float, call: str, most: float | None = None, **values: float | None) -> None:
    """Check that numbers are at least `least`, and at most `most`; None is not looked at.

    Raises:
        InputError: one is not.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise InputError(f"{call}({name}={value}): give at least {least}")
        if value is not None and most is not None and value > most:
            raise InputError(f"{call}({name}={value}): give at most {most}")


def positive(call: str, **values: float | None) -> None:
    """Check that numbers are above 0; None is not looked at.

    Raises:
        InputError: one is not.
    """
    for name, value in values.items():
        if value is not None and not value > 0:
            raise InputError(f"{call}({name}={value}): give a positive number")


def share(call: str, **values: float | None) -> None:
    """Check that numbers are in [0, 1); None is not looked at.

    Raises:
        InputError: one is not.
    """
    for name, value in values.items():
        if value is not None and not 0 <= value < 1:
            raise InputError(f"{call}({name}={value}): give at least 0 and less than 1")


def shortened(value: object, most: int = 60) -> str:
    """A value as an error quotes it, in one line and not too long."""
    if isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) >= 10**most:
        return "a number of more than 60 digits"  # Python refuses to print those of 4300 or more
    try:
        text = " ".join(repr(value).split())
    except (RecursionError, ValueError):
        text = type(value).__name__
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _hints(thing: Any) -> Mapping[str, Hint]:
    """The annotations; those of a class in a function, which cannot be found, are left out."""
    try:
        return typing.get_type_hints(thing)
    except NameError:
        return {}


def _fits(value: Any, hint: Hint) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return is_finite(value)
    if hint in (bool, str, NoneType, nn.Module):
        return isinstance(value, hint)
    if origin is Literal:
        return isinstance(value, str | type(arguments[0]))
    if origin in LISTS:
        if not isinstance(value, list | tuple):
            return False
        # How many there are, and lists of lists, are looked at where their meaning is known.
        kinds = {one for h in arguments if h is not ... for one in alternatives(h)}
        return all(any(is_list(one) or _fits(v, one) for one in kinds) for v in value)
    if inspect.isclass(hint) and "__call__" in getattr(hint, "__abstractmethods__", ()):
        return callable(value)  # a recipe, or any function of the same arguments
    return origin is not Callable or callable(value)


def is_finite(value: object) -> bool:
    """Whether a value is a real number that a float holds."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def alternatives(hint: Hint) -> tuple[Any, ...]:
    """The types of a union; of any other type, itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def is_list(hint: Hint) -> bool:
    """Whether an option of this type takes a list."""
    return any(typing.get_origin(one) in LISTS for one in alternatives(hint))


def in_words(hint: Hint) -> str:
    """A type as a person reads it: `int | None` is "a whole number or null"."""
    named = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        NoneType: "null",
        nn.Module: "a network",
    }
    words = []
    for one in alternatives(hint):
        if typing.get_origin(one) is Literal:
            words += map(str, typing.get_args(one))
        elif typing.get_origin(one) is tuple and ... not in typing.get_args(one):
            words.append(f"{len(typing.get_args(one))} values, [a, b]")
        else:
            words.append("a list, [a, b]" if is_list(one) else named.get(one, "a value"))
    return " or ".join(words)
