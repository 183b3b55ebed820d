"""Every number of everything in the registry is checked where the thing is made."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import networks
import numpy as np
import pytest
from torch import nn

from layerwise import Blocks, InputError, heads, models, objectives, rules
from layerwise.arguments import alternatives, check
from layerwise.experiment.config import parameters
from layerwise.experiment.memory import bounded
from layerwise.experiment.registry import GIVEN, KINDS, make
from layerwise.objectives import Classify, Sum
from layerwise.trainer import Settings

OWN = {"NoProp": networks.noprop_cnn, "DiffusionBlocks": networks.diffusion_vit}
NUMBERS = [
    (kind, name, option, number)
    for kind, things in KINDS.items()
    for name, thing in things.items()
    for option, (hint, _) in parameters(thing).items()
    for number in (int, float)
    if number in alternatives(hint)
    # `3` or `1.5` where both are taken, such as a name or a number
    if option not in GIVEN.get(kind, ()) or kind == "model"
]


@functools.cache
def blocks_for(network: Callable[[], networks.Case]) -> Blocks:
    return network().blocks


def made(kind: str, name: str, **options: Any) -> Any:
    """The thing of this name, with everything else that it cannot do without."""
    thing = KINDS[kind][name]
    takes = inspect.signature(thing).parameters
    if kind == "rule":
        options["blocks"] = blocks_for(OWN.get(name, networks.mlp))
    if "objectives" in takes:
        options.setdefault("objectives", Classify(heads.Linear()))
    return thing(**options)


@pytest.mark.parametrize(("kind", "name", "option", "number"), NUMBERS)
def test_numbers(kind: str, name: str, option: str, number: type) -> None:
    """A whole number is no 1.5, a real one is finite, and neither is text, a list or true."""
    wrong = [math.nan, math.inf, "3", [3], True, {}]
    wrong += [1.5, 10**30] if number is int else [10**400]
    for value in wrong:
        with pytest.raises(InputError) as error:
            made(kind, name, **{option: value})
        assert "\n" not in str(error.value)
        assert f"{option}=" in str(error.value)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: models.mlp(width=1.5), "mlp(width=1.5): give a whole number"),
        (lambda: models.mlp(width=0), "mlp(width=0): give at least 1"),
        (lambda: models.mlp(layers=-1), "mlp(layers=-1): give at least 0"),
        (lambda: models.mlp(layers=10**7), "mlp(layers=10000000): give at most 10000"),
        (lambda: models.mlp((3, 0, 4)), "mlp(shape=(3, 0, 4)): give sizes of at least 1"),
        (lambda: models.mlp(num_classes=0), "mlp(num_classes=0): give at least 1"),
        (lambda: models.mlp(shape=3), "mlp(shape=3): give 3 values"),
        (lambda: models.vit(shape=(3, 8)), "vit(shape=(3, 8)): give the shape of an image"),
        (lambda: models.vgg8b(width=math.nan), "vgg8b(width=nan): give a finite number"),
        (lambda: models.resnet20(width=1e300), "resnet20(width=1e+300): give at most 10000"),
        (lambda: heads.MLP(width=None), "heads.MLP(width=None): give a whole number"),
        (lambda: heads.Conv(channels="9"), "heads.Conv(channels='9'): give a whole number or null"),
        (lambda: math.nan * Classify(), "Sum(weight=nan): give one finite number"),
        (lambda: math.inf * Classify(), "Sum(weight=inf): give one finite number"),
        (lambda: (1, math.nan) * Classify(), "Sum(weight=(1, nan)): give one finite number"),
        (lambda: Sum([("a", Classify())]), "Sum(weight='a'): give one finite number"),
        (lambda: Classify(head=3), "Classify(head=3): give a value or null"),
        (
            lambda: rules.DGL(networks.mlp().blocks, head=lambda *shapes: None),
            "head: <lambda>((5,), (3,)) gives NoneType; give a recipe such as heads.MLP()",
        ),
        (lambda: objectives.NTXent(temperature=0), "NTXent(temperature=0): give more than 0"),
        (lambda: rules.SGR(networks.mlp().blocks, math.inf), "SGR(weight=inf): give a finite"),
        (lambda: Settings(epochs=1.5), "Settings(epochs=1.5): give a whole number"),
        (lambda: Settings(timeout=1e300), "--timeout 1e+300: give a positive number of seconds"),
    ],
)
def test_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_are_numbers() -> None:
    assert heads.MLP(width=np.int64(3)).width == 3
    assert math.isclose(objectives.NTXent(temperature=np.float32(0.5)).temperature, 0.5)


def test_a_value_that_cannot_be_printed() -> None:
    """Python prints no whole number of more than 4300 digits."""
    with pytest.raises(InputError, match="a number of more than 60 digits"):
        check("f", {"n": 10**5000}, {"n": int})


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("model", {"name": "mlp", "width": 100_000, "layers": 1000}, "this machine's free memory"),
        ("model", {"name": "mlp", "width": 2**31 - 1}, "emory"),
        (
            "rule",
            {"name": "DGL", "head": {"name": "MLP", "width": 100_000, "layers": 999}},
            "emory",
        ),
    ],
)
def test_weights_that_no_memory_holds(kind: str, options: dict[str, Any], says: str) -> None:
    """They are refused before they are filled, so at once."""
    given = {"blocks": networks.mlp().blocks} if kind == "rule" else {}
    with pytest.raises(InputError, match=says) as error:
        make(kind, options, **given)
    assert "\n" not in str(error.value)


def test_too_many_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerwise.experiment.memory.MOST_TENSORS", 10)
    with (
        pytest.raises(InputError, match="f: more than 10 weights; give fewer layers"),
        bounded("f"),
    ):
        [nn.Linear(1, 1) for _ in range(20)]
    [nn.Linear(1, 1) for _ in range(20)]  # the bound ends with the block
