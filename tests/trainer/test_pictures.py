"""The rule as observers see it, and that training does not notice."""

from __future__ import annotations

import pytest
import torch

from layerwise.errors import InputError
from layerwise.report.pictures import reconstructions
from layerwise.trainer import Observer, Settings

CNN = {
    "model": {"name": "basic_cnn", "channels": 4, "kernel_size": 3, "hidden": 8},
    "rule": {
        "name": "Greedy",
        "objectives": {
            "name": "Classify+Reconstruct",
            "Classify": {"head": {"name": "Linear"}},
            "Reconstruct": {"shift": [1, 2]},
        },
    },
    "augment": {"flip": True, "cutout": 3},
}


class Look(Observer):
    """Calls a function after every epoch."""

    def __init__(self, look):
        self.look = look

    def after_epoch(self, epoch, rule, row):
        self.look(epoch, rule)


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"precision": "bf16"}])
def test_the_rule_is_shown_as_it_is_evaluated(options, trainer_in):
    trainer = trainer_in("run", epochs=1, **CNN, **options)
    x, y = next(iter(trainer.train_loader))
    trainer.eval_loaders.clear()  # nothing else has put it into eval mode

    def look(epoch, rule):
        assert not any(module.training for module in rule.modules())
        assert not torch.is_grad_enabled()
        assert (rule is trainer.rule) == ("ema" not in options)
        assert list(reconstructions(rule, x, y)) == [0]

    trainer.observers.append(Look(look))
    trainer.fit()


def test_training_goes_on_to_the_same_bits(trainer_in, crash_at, crash, assert_same_run):
    """Also where an objective draws random numbers for its pictures, and the run is killed."""

    def draws(x, y):
        def draw(epoch, rule):
            torch.rand(7)
            reconstructions(rule, x, y)

        return draw

    options = CNN | {"epochs": 3, "save_every": 2}
    options["model"] = {"name": "mlp", "layers": 2, "width": 12, "dropout": 0.2, "batch_norm": True}
    trainer_in("straight", **options).fit()
    x, y = next(iter(trainer_in("straight", **options).train_loader))
    for kill in (0, 3, 9):
        if kill:
            crash_at(kill)
            trainer = trainer_in(f"killed-{kill}", **options)
            trainer.observers.append(Look(draws(x, y)))
            with pytest.raises(crash):
                trainer.fit()
            crash_at(0)
        trainer = trainer_in(f"killed-{kill}", **options)
        trainer.observers.append(Look(draws(x, y)))
        trainer.fit()
        assert_same_run("straight", f"killed-{kill}")


def test_a_setting_that_makes_no_sense():
    with pytest.raises(InputError, match="--pictures -1: give 0 or more"):
        Settings(pictures=-1)
