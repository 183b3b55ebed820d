"""Pages of a story, docs/stories/NAME.md, and tables of the results that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pages.files import RESULTS, ROOT, commands, machines, result

Table = Callable[[list[dict[str, Any]]], str]


def path(name: str) -> Path:
    """Where the page lies."""
    return ROOT / "docs" / f"{name}.md"


def page(name: str, tables: Mapping[str, Table]) -> str:
    """The story, with the table of a result and its command where it says `[[RESULT]]`; a result
    that has no file is not measured yet."""
    text = (ROOT / "docs" / "stories" / f"{name}.md").read_text()
    for part, of_rows in tables.items():
        if f"[[{part}]]" not in text:
            continue
        shown = "Not measured yet."
        if (RESULTS / f"{part}.json").exists():
            found = result(part)
            of = f"{found['data']}, " if "data" in found else ""
            about = f"{of}{machines([found])}.\n\n{commands([found['command']])}"
            shown = f"{of_rows(found['rows'])}\n\n{about}".rstrip()
        text = text.replace(f"[[{part}]]", shown)
    return text.replace("](../", "](")  # a story's links are seen from its own folder


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
