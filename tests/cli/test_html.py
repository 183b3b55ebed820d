"""The page: its values are those of the rows, and nothing in it comes from elsewhere."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from layerwise.report.html import figure
from layerwise.runs.run import Run


def test_marks_lie_where_their_values_are() -> None:
    """0 at the bottom, 10 at the top, epochs from left to right; a band of standard deviations."""
    svg = ET.fromstring(
        re.search(
            "<svg.*</svg>", figure("loss", {"a": [(1, 0, 1.0), (3, 10, 2.0)], "b": [(2, 5, None)]})
        )[0]  # type: ignore[index]
    )
    marks = {c.find("title").text: c for c in svg.iter("circle")}  # type: ignore[union-attr]
    assert set(marks) == {"a, epoch 1: 0 ± 1", "a, epoch 3: 10 ± 2", "b, epoch 2: 5"}
    first, last, middle = (
        (float(marks[name].get("cx", "")), float(marks[name].get("cy", "")))
        for name in ("a, epoch 1: 0 ± 1", "a, epoch 3: 10 ± 2", "b, epoch 2: 5")
    )
    assert first[0] < middle[0] < last[0]
    assert middle == (
        pytest.approx((first[0] + last[0]) / 2),
        pytest.approx((first[1] + last[1]) / 2, abs=0.1),
    )
    [band] = svg.iter("polygon")
    ys = [float(pair.split(",")[1]) for pair in band.get("points", "").split()]
    unit = (first[1] - last[1]) / 10
    assert ys == pytest.approx(
        [first[1] - unit, last[1] - 2 * unit, last[1] + 2 * unit, first[1] + unit], abs=0.2
    )


def test_a_page(trained, cli, undrawn) -> None:
    run = trained("dgl", "--epochs 2")
    (run / "pictures").mkdir()
    for epoch in (1, 2):
        (run / "pictures" / f"epoch-00{epoch}-filters.png").write_bytes(b"picture %d" % epoch)
    trained("bp", "--rule Backprop --epochs 2 --optimizer.lr 0.05")
    result = cli("compare runs/dgl runs/bp --html true --out out")
    assert result.code == 0, result.err
    page = Path("out/comparison-1/report.html").read_text()
    row = Run.open("runs/dgl").metrics()[-1]
    assert f"dgl, epoch 2: {100 * row['test_accuracy']:.4g}" in page
    assert f"0 fc1, epoch 2: {100 * row['test_accuracy_block0']:.4g}" in page
    assert re.search("<td>optimizer.lr</td><td>0.1</td><td>0.05</td>", page)
    assert "<td>epochs</td>" in page
    differing = page[page.index("Options that differ") :]
    assert "<td>batch_size</td>" not in differing
    assert page.count("data:image/png;base64,") == 1
    assert base64.b64encode(b"picture 2").decode() in page
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page


def test_names_are_escaped(trained, cli, undrawn) -> None:
    trained("dgl", "--epochs 1")
    Path("runs/dgl").rename("runs/<b>dgl&")
    result = cli("compare", "runs/<b>dgl&", "--html", "true", "--out", "out")
    assert result.code == 0, result.err
    page = Path("out/comparison-1/report.html").read_text()
    assert "<b>dgl" not in page
    assert "&lt;b&gt;dgl&amp;" in page
