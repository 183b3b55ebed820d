"""What is seen while training."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from layerwise.report import console as consoles
from layerwise.report import progress_bar as module
from layerwise.report.progress_bar import ProgressBar


@pytest.fixture
def screen(monkeypatch):
    """`screen(terminal)`: what is written, to a terminal or to a file."""

    def make(terminal: bool) -> io.StringIO:
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=120, highlight=False)
        monkeypatch.setattr(module, "console", console)
        return text

    return make


def shown(bar: ProgressBar) -> None:
    with bar:
        bar.start(2, 9, 1000, 500)
        bar.update(750, 0.1234, 0.987)
        bar._progress.refresh()
        bar.say("epoch 2/9 is [done] :cat:")
        bar.start(3, 9, 1000, 0)
        bar.update(10, None, None)


def test_a_terminal_shows_where_training_is(screen):
    text = screen(True)
    shown(ProgressBar())
    for part in ("epoch 2/9", " 750/1000", "images/s", "loss 0.123", "accuracy 98.7%", "epoch 3/9"):
        assert part in text.getvalue()


def test_elsewhere_only_whole_lines_are_written(screen):
    text = screen(False)
    shown(ProgressBar())
    assert text.getvalue().splitlines()[0].startswith("epoch 2/9 is [done]")
    assert "\r" not in text.getvalue()
    assert "images/s" not in text.getvalue()


def test_the_bar_is_drawn_twice_a_second():
    assert ProgressBar()._progress.live.refresh_per_second == 2


def test_words_between_colons_stay():
    for console in (consoles.console, consoles.output):
        assert console.render_str("hf:cat:x", emoji=console._emoji).plain == "hf:cat:x"
