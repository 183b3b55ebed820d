"""The options of `layerwise train`, its config files and recipes."""

from __future__ import annotations

import inspect
import io
from argparse import SUPPRESS
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

from layerwise import data
from layerwise.cli.parser import Parser, Tokens, last, read_yaml, replace_key, take, with_config
from layerwise.cli.recipes import RECIPES, recipe_names
from layerwise.data import Augment, Curriculum
from layerwise.errors import InputError, choices
from layerwise.experiment.config import CUT, DEFAULTS, LOGGERS, SCORES, START, parameters
from layerwise.experiment.own import is_path, of_data
from layerwise.runs.files import check_new, write_new
from layerwise.trainer import Settings

SECTIONS = {
    "Run folder": ("config", "recipe", "resume", "checkpoint", "name", "runs", "loggers"),
    "Data": ("data",),
    "Augmentation": ("augment",),
    "Curriculum": ("curriculum",),
    "Network and cut": ("model", "init", "lora", "freeze", "blocks", "at", "balance"),
    "Rule and loss": ("rule", "criterion"),
    "Optimizer and schedule": ("optimizer", "schedule"),
    "Training": (
        "epochs",
        "patience",
        "batch_size",
        "accumulate",
        "views",
        "clip_norm",
        "lr_auxiliary",
        "lr_last",
        "label_smoothing",
        "ema",
        "step_per_block",
        "save_every",
        "seed",
    ),
    "Measuring": ("eval_batch_size", "pictures", "alignment_every", "outcomes"),
    "Machine and processes": (
        "device",
        "precision",
        "channels_last",
        "keep_freed",
        "compile",
        "runtime",
        "stages",
        "replicas",
        "sync_batchnorm",
        "replay",
        "restarts",
        "timeout",
    ),
}


START_HELP = {
    "init": "start from the weights of a complete run (its folder), of a safetensors file or of "
    "hf:NAME, where name and shape are the same",
    "lora": "train low-rank adapters of this rank (peft) and the output layer; null: all weights",
    "freeze": "modules that stay as they are: no gradient reaches their parameters, and their "
    "BatchNorm is in eval mode, so that its statistics do not move; heads still learn",
}


def read_config(tokens: Tokens) -> Tokens:
    """Replace --config or --recipe by its options, before those of the command line."""
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
    """A parser for the things that the command line names, and the command line for it."""
    parser = Parser(prog, "Train a network with a learning rule; makes a run folder.", SECTIONS)
    parser.add_argument("--config", type=str | None, help="YAML file of these options, nested")
    parser.add_argument(
        "--recipe", type=str | None, help="config of the library (`layerwise list recipe`)"
    )
    parser.add_argument(
        "--resume",
        type=str | None,
        help="run folder to continue; only with --checkpoint, --epochs (of the whole training), "
        "--device, --runtime, --stages and --replicas",
    )
    parser.add_argument(
        "--checkpoint",
        type=str | None,
        default=None,
        help="with --resume: last, best or a file in the run's folder; null: last",
    )
    parser.add_argument(
        "--name",
        type=str | None,
        default=None,
        help="name of the run folder; null: after data, network and rule",
    )
    parser.add_argument(
        "--runs", type=str, default="experiments", help="folder in which the run folder is made"
    )
    parser.add_argument(
        "--loggers",
        type=LOGGERS[0],
        default=LOGGERS[1],
        help="further loggers: tensorboard, wandb, mlflow",
    )
    tokens = data_options(parser, tokens)
    parser.add_class_arguments(Augment, "augment")
    parser.add_class_arguments(Curriculum, "curriculum", skip={"scores"})
    parser.add_argument(
        "--curriculum.scores",
        type=SCORES[0],
        default=SCORES[1],
        help="file with a score of every training image; `layerwise evaluate RUN --split train "
        "--losses true` writes it; null: no curriculum",
    )
    tokens = parser.component(tokens, "model", "model", DEFAULTS["model"])
    for name, (hint, default) in START.items():
        parser.add_argument(f"--{name}", type=hint, default=default, help=START_HELP[name])
    cut_options(parser)
    tokens = parser.component(tokens, "rule", "rule", DEFAULTS["rule"])
    tokens = parser.component(tokens, "criterion", "criterion", DEFAULTS["criterion"])
    tokens = parser.component(tokens, "optimizer", "optimizer", DEFAULTS["optimizer"])
    tokens = parser.component(tokens, "schedule", "schedule", DEFAULTS["schedule"])
    parser.add_class_arguments(Settings, None)
    return parser, tokens


def experiment_config(found: dict[str, Any]) -> dict[str, Any]:
    """The options that describe the experiment: the run's config."""
    # Without the place of the run, so that its config can be given as --config again.
    without = ("config", "recipe", "resume", "checkpoint", "runs", "name")
    return {k: v for k, v in found.items() if k not in without}


def cut_options(parser: Parser) -> None:
    """The options that say where a network is cut."""
    help = {
        "blocks": "number of blocks, or all (every cut point); null: 4",
        "at": "modules that start a block; instead of --blocks",
        "balance": "what blocks share equally, flops or memory",
    }
    for name, (hint, default) in CUT.items():
        parser.add_argument(f"--{name}", type=hint, default=default, help=help[name])


def data_options(parser: Parser, tokens: Tokens) -> Tokens:
    """The options of `data.load`; `--data NAME` is short for `--data.name NAME`."""
    parser.add_argument("--data.name", type=str, default=DEFAULTS["data"], help=SUPPRESS)
    parser.add_function_arguments(data.load, "data", skip={"name", "seed"})
    tokens = [replace_key(token, "data", "data.name") for token in tokens]
    name = last(tokens, "data.name")
    mine = parameters(of_data(str(name)), ("name", "seed")) if is_path(name) else {}
    for option, (hint, default) in mine.items():
        if option not in inspect.signature(data.load).parameters:
            parser.add_argument(f"--data.{option}", type=hint, default=default, help=f"of {name}")
    parser.set_defaults({f"data.{option}": default for option, (_, default) in mine.items()})
    parser.name_option(
        "data", DEFAULTS["data"], "a name, folder:PATH, hf:NAME_OR_FOLDER or text:PATH"
    )
    return tokens


def new_file(path: str | None, asked_by: str = "--out") -> Path | None:
    """The file that an option names, which is refused before anything is measured if it cannot be a
    new one."""
    if path is None:
        return None
    check_new(Path(path), asked_by)
    return Path(path)


def write_picture(path: Path, draw: Callable[[BinaryIO], None]) -> None:
    """Write the PNG file that `--picture` names, which `draw` draws."""
    content = io.BytesIO()
    draw(content)
    write_new(path, content.getvalue(), "--picture")
