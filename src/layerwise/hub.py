"""Whether the Hugging Face hub answers, and its libraries without waiting for it."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext


def reachable() -> bool:
    """Whether the hub answers at all. If it does not, its libraries would try for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=10).close()
    except urllib.error.HTTPError:
        return True  # an error is an answer, too
    except OSError:
        return False
    return True


@contextmanager
def offline() -> Iterator[None]:
    """Set `HF_HUB_OFFLINE=1`, which the libraries read only once, when they are imported."""
    from huggingface_hub import constants

    places = [constants, *(d.config for d in [sys.modules.get("datasets")] if d is not None)]
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def asked(answers: bool) -> AbstractContextManager[None]:
    """Within, files come from the hub, or from its cache alone if it does not answer.

    Args:
        answers: whether the hub is `reachable`, or nothing is asked of it.
    """
    return nullcontext() if answers else offline()


def remedy(answers: bool) -> str:
    """What to do about files that are not found; `answers` as in `asked`."""
    if answers:
        return "check the name, or give a folder that holds the files"
    return (
        "the Hugging Face hub cannot be reached from here, and its cache does not hold the files: "
        "connect once, or give a folder that holds them"
    )
