"""A hook of MkDocs: pages from outside docs/, the API reference, and their place in the menu."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# The public modules of the reference, with what each has.
MODULES = {
    "layerwise": "cutting a network, and training it",
    "layerwise.rules": "learning rules",
    "layerwise.objectives": "local objectives",
    "layerwise.heads": "auxiliary networks",
    "layerwise.models": "networks",
    "layerwise.data": "data sets and batches",
    "layerwise.analysis": "what networks have learned",
    "layerwise.analysis.exits": "early exits",
    "layerwise.experiment": "training from a config",
    "layerwise.trainer": "the training loop",
    "layerwise.trainer.optim": "optimizers and schedules",
    "layerwise.runtime": "several processes",
    "layerwise.costs": "FLOPs, bytes and time",
}


def on_config(config: Any) -> Any:
    """The menu: every card and every module by itself."""

    def cards(folder: str) -> list[Any]:
        # MkDocs does not find the title of a page that begins with a comment.
        pages = sorted(p for p in (ROOT / "docs" / folder).glob("*.md") if p.name != "README.md")
        titles = [re.search("^# (.*)", p.read_text(), re.MULTILINE) for p in pages]
        named = [
            {title[1]: f"{folder}/{p.name}"}
            for title, p in zip(titles, pages, strict=True)
            if title
        ]
        return [f"{folder}/README.md", *named]

    def listed(folder: str) -> list[str]:
        index = (ROOT / "docs" / folder / "README.md").read_text()
        pages = re.findall(r"^- \[.*\]\((.*)\)", index, re.MULTILINE)
        return [f"{folder}/README.md", *(f"{folder}/{page}" for page in pages)]

    config.nav = [
        {"Start": "index.md"},
        {"Concepts": "concepts.md"},
        {"When to use which": "choosing.md"},
        {"Guide": listed("guide")},
        {"Frameworks": listed("frameworks")},
        {"Notebooks": [f"examples/{path.stem}.md" for path in NOTEBOOKS]},
        {"Rules": cards("rules")},
        {"Objectives": cards("objectives")},
        {"Networks": "networks.md"},
        {"Results": "results.md"},
        {"The original study": "original-study.md"},
        {"Theory in small": "theory.md"},
        {"Few labels in small": "pipelines.md"},
        {"Nearest patches": "patches.md"},
        {"Other data": "modalities.md"},
        {"API": ["api/index.md", *(f"api/{module}.md" for module in MODULES)]},
        {"Faults": "faults.md"},
        {"Architecture": "architecture.md"},
        {"Contributing": "CONTRIBUTING.md"},
        {"Changelog": "CHANGELOG.md"},
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add pages that are made here."""
    sys.path.insert(0, str(ROOT / "src"))  # of this checkout, whatever is installed
    for name, path in OUTSIDE.items():
        files.append(File.generated(config, name, content=_moved((ROOT / path).read_text())))
    index = ["# API reference\n", "| module | |", "|---|---|"]
    for module, about in MODULES.items():
        page = f"{module}.md"
        index.append(f"| [`{module}`]({page}) | {about} |")
        files.append(File.generated(config, f"api/{page}", content=_reference(module, about)))
    files.append(File.generated(config, "api/index.md", content="\n".join(index)))
    for path in sorted((ROOT / "examples").glob("*.py")):
        files.append(File.generated(config, f"examples/{path.name}", content=path.read_text()))
    for path in NOTEBOOKS:
        named = {"unique_key": path.stem, "output_files_dir": "pictures"}
        body, others = MarkdownExporter().from_filename(path, resources=named)
        files.append(File.generated(config, f"examples/{path.stem}.md", content=body))
        for name, content in others["outputs"].items():
            files.append(File.generated(config, f"examples/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links of the pages in docs/ to what is outside."""
    outside = r"\]\(((?:\.\./)*)\.\./(CONTRIBUTING\.md|CHANGELOG\.md|examples/)"
    return _to_pages(re.sub(outside, r"](\1\2", markdown).replace("](../README.md", "](index.md"))


def _moved(text: str) -> str:
    """A page from the root, as it stands in docs/."""
    return _to_pages(text).replace("](docs/README.md", "](guide/README.md").replace("](docs/", "](")


def _to_pages(text: str) -> str:
    """Links to notebooks lead to their pages."""
    return re.sub(r"(\]\([^)\s]*)\.ipynb\)", r"\1.md)", text)


def _reference(module: str, about: str) -> str:
    """The reference of a module: each of its public names."""
    names = importlib.import_module(module).__all__
    parts = [f"# `{module}`\n\n{about.capitalize()}.\n"]
    for name in names:
        thing = getattr(importlib.import_module(module), name)
        if isinstance(thing, type(importlib)) or not callable(thing):
            continue
        parts.append(f"::: {thing.__module__}.{thing.__qualname__}\n")
    return "\n".join(parts)
