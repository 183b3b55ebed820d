"""The exceptions of this package, and helpers that word their messages.

`InputError` is the user's; the others end a training.
"""

import difflib
from collections.abc import Iterable

MOST_NAMES = 100  # in one message


class InputError(ValueError):
    """Input that cannot be used.

    The message is one line that says the call, what it got, what is allowed and the remedy. The
    command line prints only this line and exits with status 2.
    """


class NonFiniteLoss(RuntimeError):
    """A loss became infinite or not a number; the message names block, step and learning rate."""


class Interrupted(RuntimeError):
    """Training was asked to stop; everything done so far is saved."""


class LostStage(RuntimeError):
    """Another process of this training has ended or hangs; the message names its rank."""


class FailedProcess(RuntimeError):
    """A process of this training ended with an error, which it has printed.

    Attributes:
        code: its exit status.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def choices(name: str, known: Iterable[str]) -> str:
    """`did you mean ...?` if one of `known` resembles `name`, otherwise a list of them."""
    known = list(known)
    near = nearest(name, known)
    if near is not None:
        return f"did you mean {near!r}?"
    more = f", and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"there is: {', '.join(sorted(known)[:MOST_NAMES])}{more}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` was probably meant to be; None if none resembles it."""
    spelt = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), spelt, n=1, cutoff=0.6)
    return spelt[near[0]] if near else None


def reason(error: BaseException) -> str:
    """The first line of an error, to quote in another error."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
