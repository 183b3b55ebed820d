"""A config that is completed is the config that the command line makes."""

from __future__ import annotations

import itertools
import json

import pytest
import yaml

from layerwise import models, rules
from layerwise.cli.options import experiment_config, experiment_parser
from layerwise.cli.parser import with_config
from layerwise.cli.recipes import RECIPES, recipe_names
from layerwise.errors import InputError
from layerwise.experiment.config import complete
from layerwise.experiment.registry import KINDS

SUM = {
    "name": "Classify+Reconstruct",
    "Classify": {"head": {"name": "Conv", "widen": 3}, "weight": [0.5, 1]},
    "Reconstruct": {"shift": [5, 16]},
}
# Configs of one part each; every one gets a model, an optimizer and a schedule, in turn.
RULES = {
    **{f"rule {name}": {"rule": name} for name in rules.__all__},
    **{f"head {name}": {"rule": {"head": name}} for name in KINDS["head"]},
    **{
        f"objective {name}": {"rule": {"name": "Greedy", "objectives": {"name": name}}}
        for name in KINDS["objective"]
    },
}
assert len(RULES) >= len(models.__all__)
CONFIGS = {
    "nothing": {},
    **{
        f"{name} and {model}": rule
        | {"model": {"name": model}, "optimizer": optimizer, "schedule": schedule}
        for (name, rule), model, optimizer, schedule in zip(
            RULES.items(),
            itertools.cycle(models.__all__),
            itertools.cycle(KINDS["optimizer"]),
            itertools.cycle(KINDS["schedule"]),
            strict=False,
        )
    },
    **{name: yaml.safe_load((RECIPES / f"{name}.yaml").read_text()) for name in recipe_names()},
    "a sum": {"rule": {"name": "greedy", "objectives": SUM}},
    "numbers": {"optimizer": {"lr": "1e-3"}, "clip_norm": 1, "precision": 32, "at": ["fc1"]},
    "lists": {"augment": {"scale": (0.5, 1)}, "blocks": "all", "schedule": {"name": "Step"}},
}


def on_the_command_line(config):
    parser, tokens = experiment_parser(with_config([], config), "layerwise train")
    return experiment_config(parser.read(tokens))


@pytest.mark.parametrize("name", CONFIGS)
def test_as_on_the_command_line(name):
    """The same values of the same types in the same order, and nothing to add to it."""
    config = CONFIGS[name]
    kept = json.dumps(config)
    completed = complete(config)
    assert completed["epochs"] >= 1
    assert json.dumps(completed) == json.dumps(on_the_command_line(config))
    assert json.dumps(complete(completed)) == json.dumps(completed)
    assert json.dumps(config) == kept


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"epocs": 3}, "config epocs: no such option; did you mean 'epochs'?"),
        ({"lr": 3}, "config lr: no such option; did you mean 'optimizer.lr'?"),
        ({"rule": {"head": {"widht": 3}}}, "rule.head.widht: no such option; did you mean 'rule.h"),
        ({"rule": {"name": "DNI", "head": "MLP"}}, "config rule.head: no such option; there is: "),
        ({"rule": {"name": "DGK"}}, "rule 'DGK': no such rule; did you mean 'DGL'?"),
        ({"data": {"rot": "x"}}, "config data.rot: no such option; did you mean 'data.root'?"),
        ({"epochs": "abc"}, "config epochs 'abc': give a whole number"),
        ({"epochs": 1.5}, "config epochs 1.5: give a whole number"),
        ({"epochs": True}, "config epochs True: give a whole number"),
        ({"optimizer": {"lr": "fast"}}, "config optimizer.lr 'fast': give a number"),
        ({"augment": {"flip": 3}}, "config augment.flip 3: give true or false"),
        ({"augment": {"scale": [1]}}, r"config augment.scale \[1\]: give 2 values"),
        ({"blocks": "some"}, "config blocks 'some': give a whole number or all or null"),
        ({"at": "fc1"}, r"config at 'fc1': give a list, \[a, b\] or null"),
        ({"rule": 3}, "config rule 3: give a mapping of options"),
        ({"model": None}, "config model None: give a mapping of options"),
        ([], r"config: \[\] is not a mapping of options"),
    ],
)
def test_what_cannot_be_used(config, says):
    with pytest.raises(InputError, match=says) as error:
        complete(config)
    assert "\n" not in str(error.value)


def test_options_of_the_data_are_kept_for_another_set() -> None:
    """All sets have the same options, while those of another rule are dropped."""
    config = {
        "data": {"name": "cifar10", "validation": 0.0},
        "rule": {"name": "DNI", "context": True},
    }
    tokens = with_config(["--data=digits", "--rule=DGL"], config)
    parser, tokens = experiment_parser(tokens, "layerwise train")
    found = parser.read(tokens)
    assert found["data"]["name"] == "digits"
    assert found["data"]["validation"] == 0.0
    assert found["rule"]["name"] == "DGL"
