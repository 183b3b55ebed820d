"""What the command line says of itself."""

from __future__ import annotations

import itertools
import subprocess
from argparse import SUPPRESS

import pytest

import layerwise
from layerwise import models, rules
from layerwise.cli.options import SECTIONS, experiment_parser
from layerwise.cli.recipes import recipe_names
from layerwise.experiment.registry import KINDS


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def parser_for(line: str):
    tokens = [f"--{word}" for word in line.split()]
    return experiment_parser(tokens, "layerwise train")[0]


RULES = [
    *[f"rule={name}" for name in rules.__all__],
    *[f"rule.head={name}" for name in KINDS["head"]],
    *[f"rule=Greedy rule.objectives={name}" for name in KINDS["objective"]],
    *[
        f"rule=Greedy rule.objectives=Reconstruct rule.objectives.decoder={name}"
        for name in KINDS["decoder"]
    ],
]
assert len(RULES) >= len(models.__all__)
# Every rule with a model, an optimizer and a schedule, in turn.
CHOICES = [
    f"{rule} model={model} optimizer={optimizer} schedule={schedule}"
    for rule, model, optimizer, schedule in zip(
        RULES,
        itertools.cycle(models.__all__),
        itertools.cycle(KINDS["optimizer"]),
        itertools.cycle(KINDS["schedule"]),
        strict=False,
    )
]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_says_what_it_does_and_its_default(choice):
    """In one line each, and in whole under `--help all`."""
    parser = parser_for(choice)
    short, whole = parser.help_text(), parser.help_text("all")
    options = parser.options()
    assert len(options) > 30
    shown = {f"--{option.name}" for option in options}
    for action in parser._actions:
        name = action.option_strings[0]
        assert name in shown or action.help is SUPPRESS or name in NO_OPTIONS, name
    for option in options:
        assert len(option.text) > 5, f"{option.name}: {option.text}"
        (line,) = (li for li in short.splitlines() if li.startswith(f"  {option.with_default} "))
        assert len(line) <= 120
        assert f"  {option.with_default}\n" in whole
        assert option.text.rstrip(".") in " ".join(whole.split())


NO_OPTIONS = {"-h", "--augment", "--curriculum"}  # these two would take a file


def test_help_is_short(cli):
    text = cli("train --help").out
    lines = text.splitlines()
    assert len(lines) < 130
    assert max(map(len, lines)) <= 120
    assert lines[0] == "usage: layerwise train [--option value ...]"
    assert "--rule NAME --help" in text
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")][1:]
    assert titles == [f"{title}:" for title in SECTIONS]  # no option is in none of them


def test_help_of_one_topic(cli):
    text = cli("train --help augment").out
    options = [line for line in text.splitlines() if line.startswith("  --")]
    assert len(options) > 5
    assert all("--augment." in line for line in options)
    assert "(Chen et al. 2020" in " ".join(text.split())
    assert "true or false" in text
    assert cli("train --help=augment").out == text
    one = cli("train --help epochs").out
    assert [line for line in one.splitlines() if "--" in line] == ["  --epochs 10"]
    of_rule = cli("train --rule DNI --help rule").out
    assert "--rule.synthesizer.layers 2" in of_rule
    wrong = cli("train --help epoch")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err == "layerwise train: --help epoch: no such option; did you mean 'epochs'?\n"


def test_help_shows_the_options_of_what_was_chosen(cli):
    plain = cli("train --help")
    assert plain.code == 0
    assert "--rule.head.width" in plain.out
    assert "--optimizer.momentum" in plain.out
    other = cli("train --rule Backprop --optimizer AdamW --model mlp --help")
    assert "--rule.checkpoint" in other.out
    assert "  --rule.head" not in other.out
    assert "--optimizer.beta1" in other.out
    assert "--optimizer.momentum" not in other.out
    assert "--model.layers" in other.out
    assert (plain.err, other.err) == ("", "")


@pytest.mark.parametrize(
    "command",
    [
        "evaluate",
        "compare",
        "analyze",
        "labels",
        "describe",
        "plan",
        "bench",
        "bench step",
        "bench data",
    ],
)
def test_help_of_every_command(command, cli):
    result = cli(f"{command} --help")
    assert (result.code, result.err) == (0, "")
    assert f"layerwise {command}" in result.out


def test_usage(cli):
    for line in (["--help"], ["-h"]):
        result = cli(*line, "x")
        assert result.code == 0
        assert "layerwise COMMAND" in result.out
    assert cli("--version").out == f"layerwise {layerwise.__version__}\n"


def test_no_command_at_all(capsys):
    from layerwise.cli import main

    assert main([]) == 2
    assert "usage" in capsys.readouterr().out


def test_list(cli):
    everything = cli("list").out
    for name in ("DGL", "basic_cnn", "MLPSR", "SGD", "OneCycle", "digits", *recipe_names()):
        assert name in everything
    only = cli("list rules")
    assert only.code == 0
    assert all(name in only.out for name in rules.__all__)
    assert "basic_cnn" not in only.out
    assert "cifar10" in cli("list data").out
    assert cli("list --help").code == 0
    assert "Transposed" not in cli("list head").out
    assert "Transposed" in cli("list decoders").out
    assert "Synthesizer" in cli("list synthesizer").out
    recipes = " ".join(cli("list recipe").out.split())
    assert "every block is trained without labels by Greedy InfoMax" in recipes


@pytest.mark.slow
def test_the_shell_completes(cli, tmp_path):
    """In bash: a command, an option of it, a name of a kind, a kind of `list`."""
    result = cli("--completion bash")
    assert (result.code, result.err) == (0, "")
    assert cli("--completion zsh").out.startswith("autoload -U bashcompinit")
    assert cli("--completion fish").code == 2
    words = {
        "tr": ["train"],
        "train --optimizer.l": ["--optimizer.lr"],
        "train --rule.head ML": ["MLP", "MLPSR"],
        "bench step --rou": ["--rounds"],
        "list reci": ["recipe"],
    }
    for typed, wanted in words.items():
        line = f"COMP_WORDS=(layerwise {typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _layerwise"
        done = subprocess.run(
            ["bash", "-c", f'{result.out}\n{line}; printf "%s\\n" "${{COMPREPLY[@]}}"'],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == wanted
