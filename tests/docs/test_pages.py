"""Generated pages: they are what their sources give, and every rule and objective has one."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import layerwise as lw
from layerwise.cli import main as layerwise
from layerwise.rules.base import LocalRule, Needs
from layerwise.rules.families.feedback import FeedbackRule

ROOT = Path(__file__).parents[2]
CARDS = sorted(
    page
    for folder in ("rules", "objectives")
    for page in (ROOT / "docs" / folder).glob("*.md")
    if page.name != "README.md"
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
named = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)


@pytest.fixture
def pages(monkeypatch):
    """The generator's modules."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import pages.cards
    import pages.docstring
    import pages.figures

    return pages


def test_pages_are_what_their_sources_give(pages, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    runpy.run_path(str(ROOT / "benchmarks" / "tables.py"), run_name="__main__")  # or it exits


def code(card: Path, language: str) -> str:
    """The first code block in that language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", card.read_text(), re.DOTALL | re.MULTILINE)
    return next(text for of, text in blocks if of == language)


@named
def test_the_example_of_a_card_runs(card):
    views = 2 if "augmented views" in code(card, "python") else 1
    names = {
        "model": lw.models.basic_cnn((3, 32, 32), 10, channels=4, hidden=8),
        "images": torch.randn(views * 4, 3, 32, 32),
        "labels": torch.tensor([0, 1, 1, 0]),
    }
    exec(code(card, "python"), names)
    for _ in range(getattr(names["rule"], "delay", 0)):
        names["rule"].backward(names["images"], names["labels"])
    assert any(p.grad is not None for p in names["rule"].parameters())


@pytest.mark.slow
@pytest.mark.parametrize("rule", lw.rules.__all__)
def test_the_command_of_a_card_runs(rule, pages, tmp_path, capsys):
    card = ROOT / "docs" / "rules" / f"{pages.cards._module(getattr(lw.rules, rule))}.md"
    program, *arguments = code(card, "").split()
    short = f"--epochs 2 --batch_size 500 --pictures 0 --optimizer.lr 1e-4 --runs {tmp_path}"
    small = "" if "--model" in arguments else "--model mlp --model.width 8 --blocks 2"
    assert program == "layerwise"
    assert layerwise([*arguments, *short.split(), *small.split()]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub("```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)  # code is no link
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^):]*))?\)", text):
        led_to = page.parent / target if target else page
        assert led_to.exists(), target
        if anchor and led_to.suffix == ".md":
            assert anchor in anchors(led_to), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings}


def test_no_measurement_is_typed_by_hand():
    """Means with a spread come from benchmarks/results/, so that a new run does not make a page
    lie: in stories as queries, in the README and the guide between comments."""
    guide, stories = ROOT.glob("docs/guide/*.md"), ROOT.glob("docs/*/stories/*.md")
    for page in (ROOT / "README.md", *guide, *stories):
        text = re.sub(
            r"<!-- (\w+|figure: .*?) -->.*?<!-- (/figure|end) -->",
            "",
            page.read_text(),
            flags=re.DOTALL,
        )
        assert not re.findall(r".*\d\s*%?\s*±\s*\d.*", text), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_begins_with_a_figure(page):
    """Markdown would take the whole line for HTML."""
    assert not re.findall(r"^ *<!-- figure.*", page.read_text(), re.MULTILINE)


def test_a_query_is_answered_in_place(pages):
    figures = pages.figures
    text = "about <!-- figure: accuracy cnn backprop -->1 ± 1<!-- /figure --> %"
    assert figures.filled(text) == (
        f"about <!-- figure: accuracy cnn backprop -->{figures.figure('accuracy cnn backprop')}"
        "<!-- /figure --> %"
    )
    assert re.fullmatch(r"\d\d\.\d ± \d\.\d", figures.figure("accuracy cnn backprop"))


@pytest.mark.parametrize(
    "query", ["accuracy cnn nothing", "nothing", "accuracy", "step nothing a time"]
)
def test_a_query_without_an_answer_is_refused(query, pages):
    with pytest.raises(ValueError, match="nothing in benchmarks/results/ for it"):
        pages.figures.figure(query)


class Squared(LocalRule):
    """Greedy learning with squared errors; nothing else.

    Author & Author 2030 (arXiv:2030.01234), eq. 3:

        loss_k = |h_k - y|^2

    With one block it is `Backprop`. Deviations: `DGL` has another loss; y is <y>.

    Args:
        blocks: the network.
        weight: of a | b, in
            several lines.

    Raises:
        InputError: a negative weight; as `FeedbackRule`; as `DGL`.
    """

    def __init__(self, blocks: lw.Blocks, weight: float | None = None):
        raise NotImplementedError


def test_a_rule_without_a_story_has_a_complete_card(pages, monkeypatch):
    monkeypatch.setattr(pages.cards, "_head", lambda of, *rest: [f"# {of.__name__}"])
    card = pages.cards._rule(Squared)
    for part in (
        "# Squared",
        "rule = lw.rules.Squared(blocks)",
        "layerwise train --rule Squared",
        "Author & Author 2030 ([arXiv:2030.01234](https://arxiv.org/abs/2030.01234)), eq. 3:",
        "```\nloss_k = |h_k - y|^2\n```",
        "With one block it is [`Backprop`](backprop.md).",
        "## Deviations\n\n[`DGL`](dgl.md) has another loss; y is \\<y>.",
        "| `weight` | `float \\| None` | `None` | of a \\| b, in several lines. |",
        "- a negative weight\n",
        "\n- as [`DGL`](dgl.md)",
        "Blocks can train in several processes",
    ):
        assert part in card
    shared = pages.docstring.Docstring.of(FeedbackRule).sections["Raises"]["InputError"]
    assert f"- {shared.split(';')[0]}\n" in card
    read = pages.docstring.Docstring.of(Squared)
    assert read.sentence == "Greedy learning with squared errors; nothing else."
    assert read.source() == "[Author & Author 2030](https://arxiv.org/abs/2030.01234)"


def test_what_a_block_waits_for_is_told_of_every_need(pages):
    assert set(pages.cards.WAITS) == set(Needs)


def test_every_rule_and_objective_has_a_card(pages):
    assert {page.stem for page in CARDS} == {
        pages.cards._module(of) for of in (*pages.cards.all_rules(), *pages.cards.all_objectives())
    }
    stories = {page.stem for page in ROOT.glob("docs/*/stories/*.md")}
    assert stories <= {page.stem for page in CARDS}
