"""What the documents show is run as it stands there."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

import layerwise as lw
from layerwise.experiment.registry import make

ROOT = Path(__file__).parents[2]


def code(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_readme_example_trains_a_resnet50(monkeypatch):
    (example,) = code("README.md", "python")
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 1000, (2,))
    names = {"torch": torch, "torchvision": torchvision, "images": images}
    names["loader"] = [(images, labels)]
    exec(example, names)
    assert isinstance(names["rule"], lw.rules.DGL)
    assert len(names["blocks"]) == 4
    assert all(p.grad is not None for p in names["model"].parameters())


@pytest.mark.parametrize("page", sorted(p.name for p in ROOT.glob("docs/guide/*.md")))
def test_a_page_of_the_guide_runs_from_top_to_bottom(page):
    names: dict = {}
    for example in code(f"docs/guide/{page}", "python"):
        exec(example, names)
    assert "rule" not in names or isinstance(names["rule"], lw.Rule)


def test_the_guide_lists_its_pages_by_their_titles():
    index = (ROOT / "docs/guide/README.md").read_text()
    listed = dict(re.findall(r"^- \[(.*)\]\((.*)\)", index, re.MULTILINE))
    pages = {p.name: p.read_text() for p in ROOT.glob("docs/guide/*.md")}
    assert set(listed.values()) == pages.keys() - {"README.md"}
    assert all(pages[page].startswith(f"# {title}\n") for title, page in listed.items())


def test_guide_config_builds():
    (config,) = map(yaml.safe_load, code("docs/guide/training.md", "yaml"))
    network = make("model", config["model"], shape=(3, 32, 32), num_classes=10)
    blocks = lw.cut(network, blocks=config["blocks"], example=torch.zeros(2, 3, 32, 32))
    rule = make("rule", config["rule"], blocks=blocks)
    assert rule.objectives[0].recipe == lw.heads.MLP(width=512)
