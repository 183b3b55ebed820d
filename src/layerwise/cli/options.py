"""What `layerwise train` can be told, and its config files and recipes."""

from __future__ import annotations

from argparse import SUPPRESS
from importlib import resources
from pathlib import Path
from typing import Any

from layerwise import data
from layerwise.cli.parser import Parser, Tokens, read_yaml, replace_key, take, with_config
from layerwise.data import Augment, Curriculum
from layerwise.errors import InputError, choices
from layerwise.experiment.config import CUT, DEFAULTS, LOGGERS, SCORES
from layerwise.trainer import Settings

RECIPES = resources.files("layerwise") / "recipes"


def recipe_names() -> list[str]:
    """The recipes that come with the library."""
    return sorted(r.name.removesuffix(".yaml") for r in RECIPES.iterdir() if ".yaml" in r.name)


def read_config(tokens: Tokens) -> Tokens:
    """Put the options of --config or --recipe before those of the command line."""
    path, tokens = take(tokens, "config")
    recipe, tokens = take(tokens, "recipe")
    if path is not None and recipe is not None:
        raise InputError(f"--config {path} contradicts --recipe {recipe}: give one of them")
    if recipe is not None:
        if recipe not in recipe_names():
            raise InputError(
                f"--recipe {recipe}: no such recipe; {choices(recipe, recipe_names())}"
            )
        with resources.as_file(RECIPES / f"{recipe}.yaml") as file:
            return with_config(tokens, read_yaml(file, "--recipe"))
    if path is not None:
        return with_config(tokens, read_yaml(Path(path), "--config"))
    return tokens


def experiment_parser(tokens: Tokens, prog: str) -> tuple[Parser, Tokens]:
    """A parser for the data, network, rule, optimizer and settings that the command line names."""
    parser = Parser(prog=prog, description="Train a network with a learning rule.")
    parser.add_argument("--config", type=str | None, help="a YAML file of these options, nested")
    parser.add_argument("--recipe", type=str | None, help="a config that comes with the library")
    parser.add_argument("--resume", type=str | None, help="continue this run; goes alone")
    parser.add_argument("--name", type=str | None, default=None, help="of the run folder")
    parser.add_argument("--runs", type=str, default="experiments", help="where run folders go")
    parser.add_argument(
        "--loggers",
        type=LOGGERS[0],
        default=LOGGERS[1],
        help="besides metrics.csv: any of [tensorboard, wandb, mlflow]",
    )
    tokens = data_options(parser, tokens)
    parser.add_class_arguments(Augment, "augment")
    parser.add_class_arguments(Curriculum, "curriculum", skip={"scores"})
    parser.add_argument(
        "--curriculum.scores",
        type=SCORES[0],
        default=SCORES[1],
        help="of every training image, as `layerwise evaluate RUN --split train --losses true` "
        "writes them; null: no curriculum",
    )
    tokens = parser.component(tokens, "model", "model", DEFAULTS["model"])
    cut_options(parser)
    tokens = parser.component(tokens, "rule", "rule", DEFAULTS["rule"])
    tokens = parser.component(tokens, "optimizer", "optimizer", DEFAULTS["optimizer"])
    tokens = parser.component(tokens, "schedule", "schedule", DEFAULTS["schedule"])
    parser.add_class_arguments(Settings, None)
    return parser, tokens


def experiment_config(found: dict[str, Any]) -> dict[str, Any]:
    """The part of the options that describes the experiment and is kept with the run."""
    # Where the run goes is left out, so that its own config can be given back as --config.
    without = ("config", "recipe", "resume", "runs", "name")
    return {k: v for k, v in found.items() if k not in without}


def cut_options(parser: Parser) -> None:
    """Into which blocks a network is cut."""
    help = {
        "blocks": "into how many blocks to cut; all: at every cut point; null: 4",
        "at": "instead: modules that start a block",
        "balance": "what the cut makes even",
    }
    for name, (hint, default) in CUT.items():
        parser.add_argument(f"--{name}", type=hint, default=default, help=help[name])


def data_options(parser: Parser, tokens: Tokens) -> Tokens:
    """The options of `data.load`; `--data NAME` is short for `--data.name NAME`."""
    parser.add_argument("--data.name", type=str, default=DEFAULTS["data"], help=SUPPRESS)
    parser.add_function_arguments(data.load, "data", skip={"name", "seed"})
    parser.name_option(
        "data", DEFAULTS["data"], "data set: a name, folder:PATH, hf:NAME_OR_FOLDER or text:PATH."
    )
    return [replace_key(token, "data", "data.name") for token in tokens]
