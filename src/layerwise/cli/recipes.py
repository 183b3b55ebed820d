"""The recipes: configs that come with the library."""

from __future__ import annotations

import itertools
from importlib import resources

RECIPES = resources.files("layerwise") / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes."""
    return sorted(r.name.removesuffix(".yaml") for r in RECIPES.iterdir() if ".yaml" in r.name)


def recipes() -> dict[str, str]:
    """Each recipe with the comment at its beginning, as one line."""
    found = {}
    for name in recipe_names():
        text = (RECIPES / f"{name}.yaml").read_text()
        comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
        found[name] = " ".join(line.lstrip("# ") for line in comment)
    return found
