"""The parts that names of folders and of splits stand for: training, validation, test."""

from __future__ import annotations

import re
from collections.abc import Iterable

from layerwise.errors import InputError

ROLES = {
    "train": ("train", "training", "trainset", "trainingset", "trn"),
    "validation": (
        "validation",
        "valid",
        "val",
        "validationset",
        "valset",
        "dev",
        "devel",
        "development",
        "devset",
    ),
    "test": ("test", "testing", "testset", "testingset", "tst"),
}


def role_of(name: str) -> str | None:
    """`train`, `validation` or `test`; None if the name is not one of their usual names.

    Upper and lower case, and anything between letters, make no difference: `Train_Set` is `train`.
    """
    plain = re.sub(r"[\W_]", "", name.casefold())
    return next((role for role, names in ROLES.items() if plain in names), None)


def resembles(name: str) -> str | None:
    """The role of a word within a name, such as `train` for `train_images`; None if there is none.

    A name with words of several roles, or a role's own name, resembles none.
    """
    if role_of(name) is not None:
        return None
    words = re.split(r"[\W_\d]+", name.casefold())
    found = {role for word in words if (role := role_of(word)) is not None}
    return found.pop() if len(found) == 1 else None


def roles(what: str, names: Iterable[str]) -> dict[str, str]:
    """Each role that some of the names stand for, with that name.

    Args:
        what: whose names they are, for errors.
        names: of folders or of splits.

    Raises:
        InputError: two names stand for one role.
    """
    found: dict[str, str] = {}
    for name in names:
        role = role_of(name)
        if role is None:
            continue
        if role in found:
            raise InputError(
                f"{what}: both {found[role]!r} and {name!r} are names of a {role} part; "
                "rename or remove one of them"
            )
        found[role] = name
    # In a fixed order, so that the order on disk makes no difference.
    return {role: found[role] for role in ROLES if role in found}
