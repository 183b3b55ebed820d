"""Training with a rule, a network and data of your own, with all that a run has."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from layerwise.arguments import shortened
from layerwise.costs.blocks import Costs
from layerwise.data import Batches, Loader, batches_of
from layerwise.errors import InputError, choices
from layerwise.experiment.fastest import fastest
from layerwise.experiment.longer import check_length, record_length
from layerwise.experiment.observers import MetricsLogger
from layerwise.experiment.training import train_in
from layerwise.report.progress_bar import ProgressBar
from layerwise.rules.base import Rule
from layerwise.runs.loggers import check_loggers
from layerwise.runs.provenance import provenance
from layerwise.runs.run import MADE_BY, Run
from layerwise.trainer import Observer, Progress, Settings, device_for, fabric_for
from layerwise.trainer.learning_rate import LearningRate
from layerwise.trainer.optim import SGD, OfFunction, OfScheduler, OneCycle, Optimizer, Schedule

# Settings of the built-in data, or of several processes, which `fit` does not start.
NOT_HERE = ("views", "pictures", "outcomes", "alignment_every", "label_smoothing", "runtime")
NOT_HERE += ("stages", "replicas", "sync_batchnorm", "replay", "restarts", "timeout")
NOT_HERE += ("eval_batch_size",)
PERSISTS = (
    "the loader's workers persist (persistent_workers=True): random numbers that they draw are not "
    "those of a run that was never interrupted"
)
Parameters = Iterable[nn.Parameter]
DEFAULT_OPTIMIZER, DEFAULT_SCHEDULE = SGD(), OneCycle()


def fit(
    rule: Rule,
    train: Iterable[Any] | Loader,
    *,
    validation: Iterable[Any] | Loader | None = None,
    test: Iterable[Any] | Loader | None = None,
    optimizer: Callable[[Parameters], torch.optim.Optimizer] = DEFAULT_OPTIMIZER,
    schedule: Schedule | Callable[[torch.optim.Optimizer], LRScheduler] = DEFAULT_SCHEDULE,
    runs: str | os.PathLike[str] = "experiments",
    name: str | None = None,
    resume: str | os.PathLike[str] | None = None,
    loggers: Sequence[str] = (),
    observers: Sequence[Observer] = (),
    progress: bool | Progress = True,
    **settings: Any,
) -> Run:
    """Train a rule on your own data: a run folder, metrics, checkpoints, and exact resuming, as
    `layerwise train` has them.

    Args:
        rule: the rule with its blocks, on the CPU.
        train: batches of (inputs, labels), read once for each epoch: a `DataLoader`, a data set of
            single samples, a list of batches, a part of `data.load(...)` or a `data.Loader`; see
            `data.Batches`.
        validation: the same; the best epoch is selected on it.
        test: the same; measured after each epoch.
        optimizer: a recipe such as `trainer.optim.AdamW(lr=1e-3)`, or any function of the
            parameters, such as `functools.partial(torch.optim.Adam, lr=1e-3)`. Factors between the
            learning rates of its groups are kept.
        schedule: of the learning rate, per step; or any function of the optimizer that makes a
            scheduler of PyTorch (`trainer.optim.OfScheduler`).
        runs: the folder in which the run folder is made.
        name: the name of the run folder; by default network and rule, and a number.
        resume: a run folder of `fit` to continue, with the same arguments. Another number of epochs
            becomes that of the run's config if the training so far does not depend on it, as with
            the schedule `Constant`.
        loggers: tensorboard, wandb, mlflow.
        observers: watch the training.
        progress: whether progress is shown, or a display of your own.
        **settings: fields of `Settings`, such as `epochs=20`, `batch_size` (of data sets of single
            samples), `patience`, `ema`, `clip_norm`, `precision`, `device`, `seed`.

    Returns:
        The run: `run.metrics()` has a row per epoch, `run.path` holds the files.

    Raises:
        InputError: an argument that cannot be used; a run of that name; `resume` of another run.
        NonFiniteLoss: training diverged; the last checkpoint is kept.
        Interrupted: Ctrl-C or SIGTERM; everything done is saved.
    """
    if not isinstance(rule, Rule):
        raise InputError(f"fit(rule={shortened(rule)}): give a learning rule, lw.rules.DGL(...)")
    if train is None:
        raise InputError("fit(train=None): give batches of (inputs, labels), such as a DataLoader")
    if not isinstance(schedule, Schedule) and not callable(schedule):
        raise InputError(
            f"fit(schedule={shortened(schedule)}): give one of layerwise, such as "
            "trainer.optim.Cosine(warmup=1), or a function of an optimizer"
        )
    if not isinstance(schedule, Schedule):
        schedule = OfScheduler(schedule)
    if not isinstance(observers, Sequence) or not all(isinstance(o, Observer) for o in observers):
        raise InputError(
            f"fit(observers={shortened(observers)}): give a list of objects of classes that derive "
            "from trainer.Observer"
        )
    if isinstance(loggers, str):
        raise InputError(f"fit(loggers={loggers!r}): give a list of names, [{loggers!r}]")
    if isinstance(name, str) and Path(name).name == name and (Path(runs) / name).exists():
        path = str(Path(runs) / name)
        raise InputError(
            f"fit(name={name!r}): {path} exists already and is never overwritten; give another "
            f"name, or continue it with resume={path!r}"
        )
    chosen = _settings(settings)
    check_loggers(list(loggers))
    device = device_for(chosen.device)

    def read(source: Any, which: str) -> Loader | Batches | None:
        if source is None:
            return None
        return batches_of(
            source,
            batch_size=chosen.batch_size,
            train=which == "train",
            device=device,
            seed=chosen.seed,
            name=f"fit({which}=...)",
        )

    if chosen.patience is not None and validation is None:
        raise InputError(
            f"fit(patience={chosen.patience}): there is no validation data to tell a better epoch; "
            "give validation=..., or leave patience out"
        )
    loaders = {
        which: read(source, which)
        for which, source in (("train", train), ("validation", validation), ("test", test))
    }
    batch_size = loaders["train"].batch_size  # type: ignore[union-attr]
    views, labels = _example(rule, loaders["train"])
    found = fastest(rule, device, batch_size, views, chosen.precision, chosen.channels_last, labels)
    chosen = dataclasses.replace(
        chosen,
        batch_size=batch_size,
        precision=found.precision,
        channels_last=found.channels_last,
    )
    for loader in loaders.values():
        if isinstance(loader, Batches):
            loader.channels_last = found.channels_last
    recipe = optimizer if isinstance(optimizer, Optimizer) else OfFunction.of(optimizer)
    config = _config(rule, loaders, recipe, schedule, chosen, list(loggers))
    steps = math.ceil(len(loaders["train"]) / chosen.accumulate)  # type: ignore[arg-type]
    LearningRate(recipe.lr, schedule, rule.phases(chosen.epochs), steps)  # refused before a folder
    if resume is None:
        stem = f"{config['model']['name']}-{config['rule']['name']}".lower()
        run = Run.create(Path(runs), name, stem, config)
        run.write("environment.json", json.dumps(provenance(), indent=1).encode())
    else:
        run = _continued(resume, config)
        check_length(
            run,
            chosen.epochs,
            rule=rule,
            lr=recipe.lr,
            schedule=schedule,
            steps_per_epoch=steps,
        )
        record_length(run, chosen.epochs)
    fabric = fabric_for(chosen.device, chosen.precision)
    persists = getattr(getattr(loaders["train"], "source", None), "persistent_workers", False)
    with run.locked():
        train_in(
            run,
            config,
            _progress(progress),
            title=f"{run.path}: {fabric.device}",
            costs=Costs.of(rule, views, labels),
            observers=lambda to: [*([MetricsLogger(to)] if to else []), *observers],
            notices=[PERSISTS] if persists and resume is not None else [],
            network=_network(rule),
            rule=rule,
            loaders=loaders,
            optimizer=recipe,
            schedule=schedule,
            settings=chosen,
            fabric=fabric,
        )
    return run


def _settings(given: Mapping[str, Any]) -> Settings:
    names = [f.name for f in dataclasses.fields(Settings) if f.name not in NOT_HERE]
    for key in given:
        if key not in names:
            raise InputError(f"fit({key}=...): no such option; {choices(key, names)}")
    options: dict[str, Any] = {"pictures": 0, **given}
    try:
        return Settings(**options)
    except InputError as error:  # in the words of the command line
        said = re.sub(r"--(\w+) (\S+?)(?=[ :])", r"\1=\2", str(error)).replace(" null", " None")
        said = said.replace("=true", "=True")
        raise InputError(f"fit: {said}") from error


def _example(rule: Rule, loader: Loader | Batches | None) -> tuple[int, Tensor | None]:
    """The views of each sample that the rule compares, and labels for a criterion of your own."""
    labels = loader.example_labels if isinstance(loader, Batches) else None
    return getattr(loader, "views", 1) if rule.needs_views else 1, labels


def _config(
    rule: Rule,
    loaders: Mapping[str, Loader | Batches | None],
    optimizer: Optimizer,
    schedule: Schedule,
    settings: Settings,
    receivers: list[str],
) -> dict[str, Any]:
    """What config.yaml records: settings, and the names of what came from the caller."""
    network = type(_network(rule)).__name__
    made = optimizer(rule.parameters())
    data = {which: len(of) for which, of in loaders.items() if of is not None}
    return {
        MADE_BY: "fit",
        "loggers": receivers,
        "data": {"name": "your own", "validation": "given" if "validation" in data else 0.0}
        | {"batches": data},
        "augment": {},
        "model": {"name": network},
        "blocks": list(rule.blocks.names),
        "rule": {"name": type(rule).__name__},
        "optimizer": {"name": type(made).__name__, "lr": optimizer.lr},
        "schedule": _recorded(schedule),
        **{k: v for k, v in dataclasses.asdict(settings).items() if k not in NOT_HERE},
    }


def _recorded(schedule: Schedule) -> dict[str, Any]:
    if not isinstance(schedule, OfScheduler):
        return {"name": type(schedule).__name__, **vars(schedule)}
    made = schedule.scheduler()
    kept = {k: v for k, v in vars(made).items() if isinstance(v, bool | int | float | str)}
    kept = {k: v for k, v in kept.items() if not k.startswith("_")}
    return {"name": type(made).__name__, "each": schedule.each, **kept}


def _network(rule: Rule) -> nn.Module:
    """The network that was cut, or the chain of its blocks."""
    model = getattr(rule.blocks, "model", None)
    return model if isinstance(model, nn.Module) else rule.blocks


# Options that may differ when a run is continued.
FREE = ("epochs", "device", "keep_freed", "save_every", "patience", "loggers", "compile")


def _continued(path: str | os.PathLike[str], config: Mapping[str, Any]) -> Run:
    """The run that is continued.

    Raises:
        InputError: another program made it, or other arguments.
    """
    run = Run.open(path)
    then = run.config
    if then.get(MADE_BY) != "fit":
        raise InputError(
            f"fit(resume={str(run.path)!r}): the run was made by `layerwise train`; continue "
            f"it with layerwise train --resume {run.path}"
        )
    now = json.loads(json.dumps(config))  # as a file gives it back: lists for tuples
    then = json.loads(json.dumps(then, default=str))
    key = next((k for k in now if k not in FREE and then.get(k) != now[k]), None)
    if key is not None:
        was, given = then.get(key), now[key]
        if isinstance(was, dict) and isinstance(given, dict):
            inner = next(k for k in {**given, **was} if was.get(k) != given.get(k))
            key, was, given = f"{key}.{inner}", was.get(inner), given.get(inner)
        raise InputError(
            f"fit(resume={str(run.path)!r}): the run has {key} {shortened(was)}, and this call "
            f"{shortened(given)}; give the same, or train a new run"
        )
    return run


def _progress(progress: bool | Progress) -> Progress:
    if isinstance(progress, Progress):
        return progress
    return ProgressBar(unit="samples") if progress else Progress()
