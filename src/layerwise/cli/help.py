"""The text of `--help`: a line for each option, or the whole explanation of some."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerwise.arguments import in_words
from layerwise.errors import InputError, choices

LEFT = 34  # columns of an option and its default
NARROWEST, WIDEST = 80, 110
OTHERS = "Options"


@dataclass(frozen=True)
class Option:
    """One option, as a person sees it.

    Attributes:
        name: such as `optimizer.lr`.
        default: the default value.
        text: what it does.
        hint: its type; None for an option that takes the name of a thing.
    """

    name: str
    default: Any
    text: str
    hint: Any

    @property
    def with_default(self) -> str:
        """Such as `--optimizer.lr 0.1`: what could be typed."""
        return f"--{self.name} {_shown(self.default)}"

    def line(self, width: int) -> str:
        """Option, default and the beginning of the explanation, in one line."""
        left = f"  {self.with_default}".ljust(LEFT)
        return f"{left}  {_beginning(self.text, width - len(left) - 2)}"

    def explained(self, width: int) -> str:
        """Option, default, the whole explanation and the values that the option takes."""
        takes = "a value" if self.hint is None else in_words(self.hint)
        values = "" if takes.startswith("a value") else f" Give {takes}."
        text = textwrap.fill(
            self.text.rstrip(".") + "." + values,
            width,
            initial_indent=" " * 6,
            subsequent_indent=" " * 6,
            break_on_hyphens=False,
        )
        return f"  {self.with_default}\n{text}"


def brief(options: Sequence[Option], sections: Mapping[str, Sequence[str]]) -> str:
    """A line for every option, section by section.

    Args:
        options: all options.
        sections: title -> names of options; `optimizer` also stands for `optimizer.lr`.
    """
    width = _width()
    parts = []
    for title, within in _sorted(options, sections).items():
        parts.append("\n".join([f"{title}:", *(option.line(width) for option in within)]))
    return "\n\n".join(parts)


def explained(
    options: Sequence[Option], sections: Mapping[str, Sequence[str]], topic: str = "all"
) -> str:
    """The whole explanation of options, section by section.

    Args:
        options: all options.
        sections: as for `brief`.
        topic: the name of an option (`optimizer` also stands for `optimizer.lr`), or `all`.

    Raises:
        InputError: no such option.
    """
    topic = topic.removeprefix("--")
    chosen = [option for option in options if topic == "all" or _within(option.name, topic)]
    if not chosen:
        known = {"all", *(option.name for option in options)}
        raise InputError(f"--help {topic}: no such option; {choices(topic, sorted(known))}")
    width = _width()
    parts = []
    for title, within in _sorted(chosen, sections).items():
        parts.append("\n".join([f"{title}:", *(option.explained(width) for option in within)]))
    return "\n\n".join(parts)


def _sorted(
    options: Sequence[Option], sections: Mapping[str, Sequence[str]]
) -> dict[str, list[Option]]:
    """Options by section, in the order of the sections; the rest last."""
    rest = list(options)
    found: dict[str, list[Option]] = {}
    for title, names in sections.items():
        within = [o for name in names for o in rest if _within(o.name, name)]
        rest = [o for o in rest if o not in within]
        if within:
            found[title] = within
    return found | ({OTHERS: rest} if rest else {})


def _within(name: str, topic: str) -> bool:
    return name == topic or name.startswith(f"{topic}.")


def _beginning(text: str, width: int) -> str:
    """As much of a text as fits, up to the end of a clause if possible."""
    text = text.rstrip(".")
    if len(text) <= width:
        return text
    ends = [m.start() for m in re.finditer(r"[.;] | \(", text) if m.start() <= width]
    if ends and ends[-1] > width // 2:
        return text[: ends[-1]]
    return text[: width - 3].rpartition(" ")[0].rstrip(",;:") + " ..."


def _shown(value: Any) -> str:
    """A default as it could be typed."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{','.join(_shown(one) for one in value)}]"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _width() -> int:
    """Columns of the terminal, within limits."""
    return min(WIDEST, max(NARROWEST, shutil.get_terminal_size().columns))
