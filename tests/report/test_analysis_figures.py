"""Pictures of analyses: a colour means one thing in all of them."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from layerwise.report import analysis_figures


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    drawn: list[Figure] = []
    monkeypatch.setattr(analysis_figures, "_png", drawn.append)
    return drawn


def _colours(figure: Figure) -> dict[str, set[str]]:
    """Of every line with a label."""
    found: dict[str, set[str]] = {}
    for axes in figure.axes:
        for line in axes.get_lines():
            if not str(line.get_label()).startswith("_"):
                found.setdefault(str(line.get_label()), set()).add(to_hex(line.get_color()))
    return found


def test_a_block_has_one_colour_whatever_the_depth(figures: list[Figure]) -> None:
    rows = {
        label: [{"step": s, "angle": [30.0] * n, "ratio": [1.0] * n} for s in (0, 5)]
        for label, n in (("deep", 4), ("shallow", 3))
    }
    analysis_figures.draw_alignment(rows, None)
    colours = _colours(figures[0])
    assert sorted(colours) == ["0", "1", "2", "3"]
    assert [len(of_block) for of_block in colours.values()] == [1] * 4
    assert len(set.union(*colours.values())) == 4


def test_the_way_back_over_the_steps(figures: list[Figure]) -> None:
    """A layer has one colour in every run; rows and runs without the angles are left out."""
    rows = [{"step": 0}, {"step": 2, "feedback": {"a": 90.0, "b": None}}]
    rows.append({"step": 4, "feedback": {"a": 80.0, "b": 70.0}})
    other = [{"step": 3, "feedback": {"b": 88.0, "c": 89.0}}]
    analysis_figures.draw_feedback_training({"run": rows, "none": [{"step": 0}], "other": other})
    (figure,) = figures
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("run", "other")
    lines = {line.get_label(): line.get_xydata().tolist() for line in left.get_lines()[:2]}
    assert lines == {"a": [[2, 90], [4, 80]], "b": [[4, 70]]}
    assert {label: len(of) for label, of in _colours(figure).items()} == {"a": 1, "b": 1, "c": 1}
    assert left.get_ylim() == right.get_ylim() == (57, 95)
    assert analysis_figures.draw_feedback_training({"none": [{"step": 0}], "empty": []}) is None


def test_a_run_has_one_colour_in_all_pictures(figures: list[Figure]) -> None:
    """Also where of one before it there is nothing to say."""
    analysis_figures.draw_blocks({label: [{"probe": 0.5}, {"probe": 0.6}] for label in "abc"}, None)
    known = {"consistency": [0.0, 0.5, 1.0], "forgotten": [0, 1, 0]}
    analysis_figures.draw_difficulty({"a": known, "b": None, "c": known}, {"a": 2, "c": 2})
    blocks, difficulty = map(_colours, figures)
    assert sorted(difficulty) == ["a", "c"]
    assert all(difficulty[label] == blocks[label] for label in difficulty)
    assert analysis_figures.draw_difficulty({"a": None}, {}) is None
