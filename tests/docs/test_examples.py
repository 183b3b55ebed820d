"""What the documents show is run as it stands there."""

import re
from pathlib import Path

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


def test_guide_runs_from_top_to_bottom():
    names: dict = {}
    for example in code("docs/guide.md", "python"):
        exec(example, names)
    assert isinstance(names["rule"], lw.rules.Greedy)


def test_guide_contents_are_its_headings():
    guide = (ROOT / "docs/guide.md").read_text()
    headings = re.findall(r"\n\n## (.*)\n\n", guide)
    anchors = [re.sub(r"[^a-z -]", "", name.lower()).replace(" ", "-") for name in headings]
    listed = re.findall(r"^- \[(.*)\]\(#(.*)\)$", guide, re.MULTILINE)
    assert listed == list(zip(headings, anchors, strict=True))


def test_guide_config_builds():
    (config,) = map(yaml.safe_load, code("docs/guide.md", "yaml"))
    network = make("model", config["model"], shape=(3, 32, 32), num_classes=10)
    blocks = lw.cut(network, blocks=config["blocks"], example=torch.zeros(2, 3, 32, 32))
    rule = make("rule", config["rule"], blocks=blocks)
    assert rule.objectives[0].recipe == lw.heads.MLP(width=512)
