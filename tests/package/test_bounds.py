"""The lowest versions that `make test-lowest` installs are those that the package declares."""

import re
from pathlib import Path

import pytest

import layerwise

ROOT = Path(__file__).parents[2]
EXTRAS = (
    "hub",
    "timm",
    "transformers",
    "tensorboard",
    "peft",
    "sweep",
)  # which test-lowest installs, too


def test_the_lowest_versions_are_the_bounds():
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        line for extra in EXTRAS for line in project["optional-dependencies"][extra]
    ]
    bounds = dict(re.fullmatch(r"([\w-]+)(?:\[.*\])?>=(.*)", line).groups() for line in wanted)
    pinned = dict(
        re.findall(r"^([\w-]+)==(.*)$", (ROOT / "constraints-lowest.txt").read_text(), re.M)
    )
    assert pinned.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert f"{pinned[name]}.".startswith(f"{bound}."), name

    readme = (ROOT / "README.md").read_text()
    python = project["requires-python"].removeprefix(">=")
    assert f"Python {python} or newer" in readme
    assert f"PyTorch {bounds['torch']} or newer" in readme


def test_one_version():
    """The changelog's newest release and the citation are of the package's version."""
    newest = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    cited = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert [newest] == cited == [layerwise.__version__]


def test_a_name_of_the_package_is_public_or_not_shown():
    assert set(dir(layerwise)) == set(layerwise.__all__)
    assert all(getattr(layerwise, name) is not None for name in layerwise.__all__)
