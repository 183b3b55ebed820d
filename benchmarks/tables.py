"""Write the generated pages: docs/results.md, docs/networks.md, docs/original-study.md, those of a
story in docs/stories/, the accuracies that ship with the package, the cards of rules and
objectives, and the tables and figures in README.md and docs/guide/; also the pictures of the
original study and of docs/concepts.md.

python benchmarks/tables.py            write them
python benchmarks/tables.py --check    fail if one of them is not what its sources give

Sources are the files in benchmarks/results/, the docstrings of rules and objectives, and the
stories in docs/stories/, docs/rules/stories/ and docs/objectives/stories/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pages import (
    all_rules,
    cards,
    concepts,
    networks,
    parts,
    pipelines,
    readme,
    results,
    study,
    theory,
)
from pages.figures import filled, inserted
from pages.files import ROOT


def pages() -> dict[Path, str]:
    """Every generated page, with the text that its sources give."""
    return {
        ROOT / "docs" / "results.md": results.page(),
        ROOT / "docs" / "networks.md": networks.page(),
        study.PAGE: study.page(),
        **theory.pages(),
        pipelines.PAGE: pipelines.page(),
        parts.path("choosing"): inserted(parts.page("choosing", {})),
        ROOT / "src" / "layerwise" / "costs" / "accuracies.json": all_rules.shipped(),
        ROOT / "README.md": filled(readme.page()),
        **{page: filled(page.read_text()) for page in ROOT.glob("docs/guide/*.md")},
        **cards.pages(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    written = pages()
    for page in cards.leftovers(written):
        if check:
            sys.exit(f"{page.relative_to(ROOT)} is of no rule or objective; run `make tables`")
        page.unlink()
    for path, text in written.items():
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path.relative_to(ROOT)} is not what its sources give; run `make tables`")
    if not check:  # pictures differ between versions of matplotlib
        for drawn in (study, concepts):
            drawn.pictures(lambda name, content: (ROOT / "docs" / name).write_bytes(content))


if __name__ == "__main__":
    main()
