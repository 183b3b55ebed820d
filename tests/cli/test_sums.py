"""Sums of objectives by name, from the command line and from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layerwise import Batch, heads, rules
from layerwise.errors import InputError
from layerwise.experiment.registry import KINDS, make, nested
from layerwise.objectives import Activity, Classify, Objective, Sum
from layerwise.report.comparison import _named
from layerwise.runs.run import Run


class Quiet(Objective):
    """Small activations.

    Args:
        power: of the activation.
        shift: two numbers.
    """

    def __init__(self, power: float = 1.0, shift: tuple[int, int] | None = None):
        super().__init__()
        self.power, self.shift = power, shift

    def forward(self, activity, batch):
        return activity.output.abs().pow(self.power).mean()


@pytest.fixture(autouse=True)
def a_second_objective(monkeypatch):
    monkeypatch.setitem(KINDS["objective"], "Quiet", Quiet)


SUM = {
    "name": "Classify+Quiet",
    "Classify": {"weight": 0.5, "head": {"name": "MLP", "width": 7}},
    "Quiet": {"weight": 2, "shift": [5, 16]},
}


def test_a_sum_is_made():
    made = make("objective", SUM)
    assert isinstance(made, Sum)
    assert made.weights == (0.5, 2.0)
    first, second = made.terms
    assert isinstance(first, Classify)
    assert first.recipe == heads.MLP(width=7)
    assert isinstance(second, Quiet)
    assert second.shift == (5, 16)
    h, y = torch.randn(4, 10), torch.randint(0, 10, (4,))
    activity, batch = Activity(h), Batch(h, y)
    alone = make("objective", {"name": "classify + quiet", "Quiet": {"weight": 3.0}})
    expected = Classify(heads.MLP())(activity, batch) + 3.0 * h.abs().mean()
    torch.testing.assert_close(alone(activity, batch), expected)


def test_a_rule_that_takes_one_objective_or_one_per_block():
    assert nested(rules.Greedy) == {"objectives": "objective"}


@pytest.mark.parametrize(
    ("specification", "says"),
    [
        ({"name": "Classify+Quite"}, "objective 'Quite': no such objective; did you mean 'Quiet'"),
        ({"name": "Classify+Quiet+classify"}, "Classify is named twice; name each once"),
        ({"name": "Classify+"}, "objective '': no such objective; there is: "),
        (SUM | {"Quite": {}}, "no term 'Quite'; did you mean 'Quiet'"),
        (SUM | {"Quiet": {"weight": "much"}}, "objective Quiet: weight 'much'; give a finite"),
        (SUM | {"Quiet": {"wieght": 1}}, "objective Quiet: no option 'wieght'"),
        (SUM | {"Quiet": 3}, "objective Quiet: 3; give its options"),
        ({"name": "Classify", "weight": 0.5}, "objective Classify: no option 'weight'"),
    ],
)
def test_a_specification_that_makes_no_sum(specification, says):
    with pytest.raises(InputError) as error:
        make("objective", specification)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


GREEDY = "--rule Greedy --rule.objectives Classify+Quiet"
WORDS = (
    f"{GREEDY} --rule.objectives.Classify.weight 0.5 --rule.objectives.Classify.head MLP "
    "--rule.objectives.Classify.head.width 7 --rule.objectives.Quiet.weight 2 "
    "--rule.objectives.Quiet.shift [5,16]"
)
FILE = """\
rule:
  name: Greedy
  objectives:
    name: Classify+Quiet
    Classify: {weight: 0.5, head: {name: MLP, width: 7}}
    Quiet: {weight: 2, shift: [5, 16]}
"""


def objectives(run: Path) -> dict:
    return Run(run).config["rule"]["objectives"]


def test_the_command_line_and_a_file_say_the_same(trained, cli, undrawn):
    Path("c.yaml").write_text(FILE)
    a, b = trained("a", WORDS), trained("b", "--config c.yaml")
    assert objectives(a) == {
        "name": "Classify+Quiet",
        "Classify": {
            "weight": 0.5,
            "head": {"name": "MLP", "layers": 1, "width": 7, "pool": 2},
            "chunk_above": 8192,
        },
        "Quiet": {"weight": 2.0, "power": 1.0, "shift": [5, 16]},
    }
    assert (a / "config.yaml").read_text() == (b / "config.yaml").read_text()
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    again = trained("again", f"--config {a}/config.yaml")
    assert (a / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    result = cli(f"compare {a} --out out")
    assert result.code == 0
    table = Path("out/comparison-1/table.md").read_text()
    head = "Classify(chunk_above=8192, MLP(layers=1, width=7, pool=2))"
    assert f"Greedy(0.5*{head} + 2*Quiet(power=1.0, shift=[5, 16]))" in table


def test_a_weight_over_the_blocks(trained):
    """As [5, 0.5] or 5,0.5 on the command line, and in a file; not the same as one number."""
    weight = "--rule.objectives.Quiet.weight"
    a = trained("a", f"--blocks 3 {WORDS} {weight} [5,0.5]")
    b = trained("b", f"--blocks 3 {WORDS} {weight} 5,0.5")
    again = trained("again", f"--config {a}/config.yaml --blocks 3")
    one = trained("one", f"--blocks 3 {WORDS} {weight} 5")
    assert objectives(a)["Quiet"]["weight"] == [5.0, 0.5]
    weights = [(run / "model.safetensors").read_bytes() for run in (a, b, again, one)]
    assert weights[0] == weights[1] == weights[2] != weights[3]


def test_a_sum_is_described_in_short():
    assert _named({"name": "A+B", "A": {"weight": [5, 0.5]}}) == "[5, 0.5]*A + B"
    assert _named({"name": "Greedy", "objectives": SUM}) == (
        "Greedy(0.5*Classify(MLP(width=7)) + 2*Quiet(shift=[5, 16]))"
    )
    assert _named({"name": "A+B", "A": {"weight": 1.0}}) == "A + B"


def test_a_file_renamed_on_the_command_line_keeps_what_stays(trained):
    """Options of a term that is dropped go; those of one that stays, stay, also where its options
    stand elsewhere because it is alone now, or no longer."""
    Path("c.yaml").write_text(FILE)
    alone = trained("alone", "--config c.yaml --rule.objectives Quiet")
    assert objectives(alone) == {"name": "Quiet", "power": 1.0, "shift": [5, 16]}
    back = trained("back", f"--config {alone}/config.yaml --rule.objectives Classify+quiet")
    assert objectives(back)["Quiet"] == {"weight": 1.0, "power": 1.0, "shift": [5, 16]}
    turned = trained("turned", "--config c.yaml --rule.objectives Quiet+Classify")
    assert objectives(turned)["Classify"]["head"]["width"] == 7
    assert objectives(turned)["Classify"]["weight"] == 0.5
    # Another head for a term that moves: whatever the order of the two options.
    Path("one.yaml").write_text(
        "rule: {name: Greedy, objectives: {name: Classify, head: {name: MLP, width: 7}}}"
    )
    both = f"--rule.objectives.Classify.head Linear {GREEDY}"
    config = objectives(trained("moved", f"--config one.yaml {both}"))
    assert config["Classify"]["head"]["name"] == "Linear"
    other = trained("other", "--config c.yaml --rule DGL")
    assert "objectives" not in Run(other).config["rule"]


def test_help_shows_each_terms_options(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = cli(f"train {GREEDY} --help").out
    for option in (
        " Classify+Quiet",
        ".Classify.weight 1",
        ".Classify.head MLP",
        ".Classify.head.width 256",
        ".Quiet.weight 1",
        ".Quiet.power 1",
    ):
        assert f"  --rule.objectives{option} " in text
    assert "--rule.objectives.Quiet " not in text
    assert "weight" not in cli("train --rule Greedy --help").out.split("--optimizer")[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--rule.objectives Classify+Quite", "did you mean 'Quiet'"),
        ("--rule.objectives Quiet+Quiet", "Quiet is named twice"),
        (f"{GREEDY} --rule.objectives.Quiet.wieght 3", "'--rule.objectives.Quiet.weight'"),
        (f"{GREEDY} --rule.objectives.Quite.weight 3", "'--rule.objectives.Quiet.weight'"),
        (f"{GREEDY} --rule.objectives.head MLP", "--rule.objectives.head: no such option"),
        (f"{GREEDY} --rule.objectives.Quiet 3", "--rule.objectives.Quiet: no such option"),
        (f"{GREEDY} --rule.objectives.Quiet.weight x", "Quiet.weight x: give a number"),
        (f"{GREEDY} --rule.objectives.Quiet.weight .nan", "weight nan; give a finite number"),
        (f"{GREEDY} --rule.objectives.Quiet.weight [1,2,3]", "give a number or 2 values, [a, b]"),
        ("--rule.objectives Quiet --rule.objectives.weight 3", "weight: no such option"),
        ("--rule.objectives Classify+", "objective '': no such objective"),
    ],
)
def test_one_line(options, says, cli):
    result = cli(f"train --model mlp --rule Greedy {options}")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert says in result.err
