"""The literature's objectives by name, from the command line."""

from __future__ import annotations

import pytest

from layerwise.experiment.registry import make
from layerwise.objectives import Objective, Reconstruct
from layerwise.runs.run import Run

KEY = "--rule.objectives"
NAMED = {
    "predsim": (
        f"{KEY} Classify+SimilarityMatching {KEY}.Classify.weight 0.01 {KEY}.Classify.head Linear "
        f"{KEY}.Classify.head.features 64 {KEY}.SimilarityMatching.weight 0.99"
    ),
    "sim-bpf": f"{KEY} SimilarityMatching {KEY}.convolve false {KEY}.projection 16",
    "pred-bpf": f"{KEY} PredictProjection {KEY}.projection 16",
    "infopro": (
        f"{KEY} Reconstruct+Classify {KEY}.Reconstruct.distance bce {KEY}.Reconstruct.weight "
        f"[5,0.5] {KEY}.Classify.weight [0,1]"
    ),
    "inpaint": f"{KEY} Inpaint {KEY}.region random {KEY}.holes 2",
    "displacement": f"{KEY} Classify+Displacement {KEY}.Displacement.weight 0.5",
    "kernels": f"{KEY} KernelSeparation {KEY}.kind contrastive",
}


@pytest.mark.parametrize("name", NAMED)
def test_trains(name, trained):
    first, second = Run(trained("run", f"--rule Greedy {NAMED[name]}")).metrics()
    assert second["train_loss_block0"] < first["train_loss_block0"]


class Small(Objective):
    """An objective of one's own, without options."""

    def forward(self, activity, batch):
        return activity.output.square().mean()


def test_without_options(trained):
    first, second = Run(trained("run", f"--rule Greedy {KEY} {__name__}.Small")).metrics()
    assert second["train_loss_block0"] < first["train_loss_block0"]


def test_within_a_sum(trained):
    """Its options are under the last part of its path; a weight of 1 is the default."""
    losses = {}
    for weight in (1, 3):
        asked = f"{KEY} {__name__}.Small+Classify {KEY}.Small.weight {weight}"
        asked += f" {KEY}.Classify.weight 0 --optimizer.lr 1e-9"
        losses[weight] = Run(trained(str(weight), f"--rule Greedy {asked}")).metrics()[0]
    assert losses[3]["train_loss_block0"] == pytest.approx(3 * losses[1]["train_loss_block0"])


def test_twice_in_a_sum(cli):
    asked = f"{KEY} {__name__}.Small+other.Small"
    result = cli(f"train --model mlp --blocks 2 --rule Greedy {asked}")
    assert (result.code, result.err.count("\n")) == (2, 1)


class Weighted(Small):
    """An objective with an argument that a term has of its own."""

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight


def test_a_factor_of_its_own(cli):
    asked = f"{KEY} Classify+{__name__}.Weighted"
    result = cli(f"train --model mlp --blocks 2 --rule Greedy {asked}")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "a term of a sum has a factor `weight` of its own" in result.err


def test_colours_of_grey_digits(cli):
    result = cli(f"train --model mlp --blocks 2 --rule Greedy {KEY} Colorize")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "Colorize: the network takes (1, 8, 8)" in result.err


def test_the_data_says_how_images_are_normalised():
    """It is no option; what is given reaches the objective within a sum."""
    from layerwise.errors import InputError
    from layerwise.objectives import Normalization

    given = Normalization((0.25,), (0.5,))
    specification = {"name": "Classify+Reconstruct", "Reconstruct": {"distance": "bce"}}
    made = make("objective", specification, normalization=given)
    (reconstruct,) = [term for term in made.terms if isinstance(term, Reconstruct)]
    assert reconstruct.normalization == given
    with pytest.raises(InputError, match="no option 'normalization'"):
        make("objective", {"name": "Reconstruct", "normalization": 3})


@pytest.mark.parametrize("normalize", ["symmetric", "standard", "none"])
def test_a_run_undoes_its_own_normalisation(normalize, monkeypatch, trained):
    """What a run's objectives compare with are the images on the scale 0..1."""
    from layerwise.objectives import reconstruct

    seen = []

    def distance(output, target):
        seen.append((target.min().item(), target.max().item(), target.mean().item()))
        return (output.sigmoid() - target).square().mean()

    monkeypatch.setitem(reconstruct.DISTANCES, "bce", distance)
    trained("run", f"--rule Greedy {KEY} Reconstruct {KEY}.distance bce "
            f"--augment.normalize {normalize}")  # fmt: skip
    least, most, mean = seen[-1]
    assert least == pytest.approx(0, abs=1e-6)
    assert most == pytest.approx(1, abs=1e-2)
    assert mean == pytest.approx(0.306, abs=0.02)  # of the digits
