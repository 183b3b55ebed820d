"""A class's docstring, taken apart and written as Markdown."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$", re.MULTILINE)
# A remark that a page shows under a heading of its own, wherever it begins in the text.
REMARK = re.compile(r"(?:(?<=^)|(?<=[.:] )|(?<=[.:]\n))(Deviations?|Readings?)((?: [^:.\n]+)?):\s")
PAPER = re.compile(r"arXiv:([a-z-]+/\d{7}|\d{4}\.\d{4,5})")
CITED = re.compile(
    r"((?:[A-ZÀ-Þ][\w'-]*(?:, | & | et al\. | van den | ))+(?:19|20)\d\d)"
    r"(?: \((?:[^()]*, )?arXiv:([\w./-]*\w)\))?"
)


@dataclass(frozen=True)
class Docstring:
    """The parts of a docstring.

    Attributes:
        summary: the first paragraph.
        body: the other paragraphs; lines of equations are indented.
        remarks: title and text of deviations and readings.
        sections: entries of Args, Raises, ..., under the name of the section.
    """

    summary: str
    body: tuple[str, ...]
    remarks: tuple[tuple[str, str], ...]
    sections: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, documented: type) -> Docstring:
        """The class's own docstring; a class without one has no text."""
        text, *rest = SECTION.split(inspect.cleandoc(documented.__doc__ or ""))
        names, entries = rest[::2], rest[1::2]
        paragraphs, remarks = [], []
        for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
            before, *found = REMARK.split(paragraph)
            if before.strip():
                paragraphs.append(before.rstrip())
            for label, more, remark in zip(found[::3], found[1::3], found[2::3], strict=True):
                remarks.append((label.rstrip("s") + "s" + more, remark.strip()))
        return cls(
            paragraphs[0] if paragraphs else "",
            tuple(paragraphs[1:]),
            tuple(remarks),
            {name: _entries(lines) for name, lines in zip(names, entries, strict=True)},
        )

    @property
    def sentence(self) -> str:
        """The first sentence, on one line."""
        first = re.split(r"(?<=[.])\s", self.summary, maxsplit=1)[0]
        return " ".join(first.split())

    def source(self) -> str:
        """The first work cited, as a link if it is on arXiv; empty without one."""
        text = " ".join("\n".join(self.body).split())
        if found := CITED.search(text):
            return f"[{found[1]}](https://arxiv.org/abs/{found[2]})" if found[2] else found[1]
        return linked(paper[0], {}) if (paper := PAPER.search(text)) else ""


def _entries(text: str) -> dict[str, str]:
    """`name: description` at the section's indent, with continuation lines further in."""
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", inspect.cleandoc(text).strip()):
        names, _, description = entry.partition(":")
        found[names.strip()] = " ".join(description.split())
    return found


def prose(paragraph: str, links: Mapping[str, str]) -> str:
    """A paragraph of a docstring as Markdown: an equation as a code block, otherwise text."""
    lines = paragraph.split("\n")
    if all(line.startswith("    ") for line in lines):
        return "\n".join(["```", *(line[4:] for line in lines), "```"])
    if not paragraph.lstrip().startswith("- "):
        paragraph = textwrap.fill(" ".join(paragraph.split()), 100, break_on_hyphens=False)
    return linked(_escaped(paragraph), links)


def cell(text: str, links: Mapping[str, str]) -> str:
    """Text for a table."""
    return linked(_escaped(" ".join(text.split())), links).replace("|", "\\|")


def linked(text: str, links: Mapping[str, str]) -> str:
    """Text with a link at every name of a rule or objective, and at every paper."""

    def link(match: re.Match[str]) -> str:
        code = match[0]
        return f"[{code}]({links[code.strip('`')]})" if code.strip("`") in links else code

    text = _outside(text, r"`[^`\n]+`", link)
    text = _outside(text, PAPER.pattern, r"[\g<0>](https://arxiv.org/abs/\1)")
    return _outside(text, r"doi:(10\.[\w./]*\w)", r"[\g<0>](https://doi.org/\1)")


def _outside(text: str, pattern: str, replacement: object) -> str:
    """Replace what a pattern finds outside code blocks and links."""
    parts = re.split(r"(```.*?```|\[[^\]]*\]\([^)]*\))", text, flags=re.DOTALL)
    parts[::2] = [re.sub(pattern, replacement, part) for part in parts[::2]]  # type: ignore
    return "".join(parts)


def _escaped(text: str) -> str:
    """Text in which Markdown reads no formatting but code."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([*<])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)
