"""Runs next to published curves, at equal steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerwise.cli.recipes import recipe_names
from layerwise.errors import InputError
from layerwise.report.reference import Distance, Reference, reference_names

CURVES = {
    "title": "a study",
    "source": "its plots",
    "series": {
        "dgl": {
            "test_accuracy": [[100, 50.0], [200, 60.0], [300, 65.0]],
            "test_loss": [[100, 1.5]],
        },
        "dgl-ssl": {"test_accuracy": [[100, 40.0]]},
    },
}


def _rows(*accuracies: float, steps: int = 99) -> list[dict[str, float | None]]:
    return [
        {"epoch": k, "step": steps * k, "test_accuracy": a, "test_loss": 2.0 / k}
        for k, a in enumerate(accuracies, 1)
    ]


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    (tmp_path / "curves.json").write_text(json.dumps(CURVES))
    return Reference.read(str(tmp_path / "curves.json"))


def test_distances_at_equal_steps(reference: Reference) -> None:
    """Epochs of 99 steps stand for published steps 100, 200 and, 3 away, 300; not for others."""
    found = reference.distances({"dgl-0": _rows(0.51, 0.58)})
    assert found == [
        Distance("dgl-0", "test_accuracy", 100, 50.0, pytest.approx(51.0)),
        Distance("dgl-0", "test_accuracy", 200, 60.0, pytest.approx(58.0)),
        Distance("dgl-0", "test_loss", 100, 1.5, pytest.approx(2.0)),
    ]
    assert [round(d.difference, 6) for d in found] == [1.0, -2.0, 0.5]
    assert reference.distances({"dgl": _rows(0.5, steps=97)}) == []  # 3 % away
    assert len(reference.distances({"dgl": _rows(0.5, steps=98)})) == 2


def test_the_series_of_a_run(reference: Reference) -> None:
    names = ("dgl", "dgl-3", "dgl-ssl", "dgl-ssl-0", "dglx", "bp")
    series = ["dgl", "dgl", "dgl-ssl", "dgl-ssl", None, None]
    assert [reference.series_of(name) for name in names] == series
    with pytest.raises(InputError, match=r"compare bp --reference: no series .* dgl, dgl-ssl"):
        reference.distances({"bp": _rows(0.5)})
    both = reference.distances({"bp": _rows(0.5), "dgl": _rows(0.5)})
    assert {d.run for d in both} == {"dgl"}


@pytest.mark.parametrize(
    ("series", "says"),
    [
        ({"nonsense": [[99, 3]]}, "no run has nonsense; there is: test_accuracy, test_loss"),
        ({"test_acuracy": [[99, 3]]}, "no run has test_acuracy; did you mean 'test_accuracy'"),
        ({"test_accuracy": []}, "it has no points"),
    ],
)
def test_curves_that_no_run_has(series: dict, says: str) -> None:
    with pytest.raises(InputError, match=f"compare dgl --reference: {says}"):
        Reference("", "", {"dgl": series}).distances({"dgl": _rows(0.5)})


def test_the_picture_has_both(reference: Reference) -> None:
    """Lines of the run and marks of the published points up to its last step."""
    written: dict[str, bytes] = {}
    reference.draw({"dgl": _rows(0.51, 0.58)}, written.__setitem__)
    assert set(written) == {"reference.png", "reference.svg"}
    text = written["reference.svg"].decode()
    assert "dgl, published" in text
    assert text.count("test accuracy, %") == 1
    assert "test loss, nats" in text
    assert "train loss" not in text


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        '{"title": "a", "source": "b"}',
        '{"title": "a", "source": "b", "series": {"dgl": [1]}}',
        '{"title": "a", "source": "b", "series": {"dgl": {"test_accuracy": [[1, NaN]]}}}',
        '{"title": "a", "source": "b", "series": {"dgl": {"test_accuracy": [[1]]}}}',
        "[" * 100_000,
    ],
)
def test_files_that_are_no_curves(text: str, tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"--reference .*: give JSON of the form") as error:
        Reference.read(str(path))
    assert "\n" not in str(error.value)


def test_no_such_reference(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; of the library did you mean 'original-1'"):
        Reference.read("orginal-1")
    with pytest.raises(InputError, match="cannot be read"):
        Reference.read(str(tmp_path))
    with pytest.raises(InputError, match="no such file"):
        Reference.read("x" * 5000)


@pytest.mark.parametrize("name", reference_names())
def test_the_librarys_references_have_a_recipe_for_every_series(name: str) -> None:
    reference = Reference.read(name)
    assert set(reference.series) <= set(recipe_names())
    for columns in reference.series.values():
        for points in columns.values():
            steps = [step for step, _ in points]
            assert steps == sorted(set(steps))


def test_the_original_study_after_20_epochs() -> None:
    """Its published accuracies after 3,920 steps."""
    series = Reference.read("original-1").series
    after = {name: dict(columns["test_accuracy"])[3920] for name, columns in series.items()}
    assert after == {
        "original-1-bp": 74.95,
        "original-1-dgl": 72.95,
        "original-1-dni": 58.13,
        "original-1-cdni": 61.03,
    }
