"""From a config to a trained run."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from layerwise.arguments import shortened
from layerwise.costs.blocks import Costs
from layerwise.errors import FailedProcess, InputError, Interrupted, LostStage
from layerwise.experiment.config import complete, config_of, fitted, parameters
from layerwise.experiment.longer import check_length, record_length
from layerwise.experiment.observers import alignment_of, observers_of
from layerwise.experiment.own import trusts
from layerwise.experiment.prepared import Prepared
from layerwise.experiment.recorded_data import check_data, record_data
from layerwise.report.analysis_figures import draw_alignment, draw_feedback_training
from layerwise.report.curves import draw_run
from layerwise.rules.base import Rule
from layerwise.runs.allocator import keep_freed_memory
from layerwise.runs.loggers import loggers
from layerwise.runs.provenance import provenance
from layerwise.runs.run import ALIGNMENT, Run, check_name
from layerwise.runtime import processes
from layerwise.runtime.launcher import launch
from layerwise.runtime.watch import Watch
from layerwise.trainer import Observer, Progress, Settings, Trainer, load_evaluated

LONGEST_STEM = 60  # characters, each of up to four bytes


def train(
    config: Mapping[str, Any],
    *,
    runs: str | os.PathLike[str] = "experiments",
    name: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train what a config describes, in a new run folder: `layerwise train` as a function.

    The same config gives the same bits as on the command line. With `stages` or `replicas` in the
    config it starts the other processes on this machine and waits for them; under `torchrun` it
    trains this process's part.

    Args:
        config: what a run's `config.yaml` holds, or any part of it; missing options take the
            defaults that `layerwise train --help` shows.
        runs: the folder in which the run folder is made.
        name: the name of the run folder; by default data, network and rule, and a number.
        progress: a display; by default none.

    Returns:
        The run: `run.metrics()` has a row per epoch, `run.path` holds the files.

    Raises:
        InputError: an unknown option, a value that cannot be used, or a run of that name.
        NonFiniteLoss: training diverged; the last checkpoint is kept.
        Interrupted: Ctrl-C or SIGTERM; everything done is saved, and `resume` continues it.
        FailedProcess: one of the processes that it started ended with an error.
        LostStage: one of them was killed, or does not answer.
    """
    config = complete(config)
    root = folder_of(runs)
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise InputError(f"--name {shortened(name)}: give the name of a folder within --runs")
    if processes.restarts() and name and (root / name / "config.yaml").is_file():
        return resume(root / name, progress=progress)
    if not processes.started_together():  # where several start, one of them makes the folder
        check_name(root, name)
    prepared, shown = Prepared.of(config), progress or Progress()
    _ = prepared.experiment.initialised  # refuses before a folder is made

    def create() -> Run:
        run = Run.create(root, name, _stem(prepared.config), prepared.config)
        run.write("environment.json", json.dumps(provenance(), indent=1).encode())
        record_data(run, prepared.experiment.splits, prepared.config)
        if prepared.notice is not None:
            run.log(prepared.notice)
            shown.say(prepared.notice)
        return run

    return _train(create, prepared, shown)


def resume(
    path: str | os.PathLike[str],
    *,
    checkpoint: str = "last",
    epochs: int | None = None,
    device: str | None = None,
    runtime: str | None = None,
    stages: int | None = None,
    replicas: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Continue a run from a checkpoint with its own config: `layerwise train --resume`.

    The run ends with the same bits as if it had not been interrupted. A run that is complete is
    trained no further, unless it is given more epochs.

    Args:
        path: the run folder.
        checkpoint: the checkpoint to continue from: last, best, or a file in the run's folder. If
            it is not the last one, the run goes back to it, and keeps all that it has written in a
            folder set-aside-N.
        epochs: another length of the whole training, which becomes that of the run's config. It
            ends with the bits of a run that was begun with it, so the schedule and the rule's
            phases must not have depended on the length so far; with `Constant` they do not.
        device: another device than the run began on.
        runtime: another runtime; `serial` takes all blocks into this process.
        stages: another number of stages.
        replicas: another number of replicas.
        progress: a display; by default none.

    Raises:
        InputError: no run there, files that cannot be read, data that changed since the run began,
            epochs that would have changed what is trained already, or another process trains it.
        NonFiniteLoss, Interrupted, FailedProcess, LostStage: as `train`.
    """
    run = Run.open(path)
    options = {"epochs": epochs, "device": device, "runtime": runtime}
    options |= {"stages": stages, "replicas": replicas}
    hints = parameters(Settings)
    given = {
        key: fitted(value, hints[key][0], f"--{key}")
        for key, value in options.items()
        if value is not None
    }
    with run.readable():
        config = dict(config_of(run)) | given
        if runtime == "serial":
            config |= {"stages": None, "replicas": 1}
        elif given.keys() & {"stages", "replicas"} and runtime is None:
            config["runtime"] = "auto"
        prepared = Prepared.of(config)
    check_data(run, prepared.experiment.splits, curriculum=True)

    def go_back() -> Run:
        again = checkpoint if not processes.restarts() else "last"
        loader, settings = prepared.loaders["train"], prepared.experiment.settings
        assert loader is not None
        check_length(
            run,
            settings.epochs,
            rule=prepared.experiment.rule,
            lr=prepared.optimizer.lr,
            schedule=prepared.schedule,
            steps_per_epoch=math.ceil(len(loader) / settings.accumulate),
            checkpoint=again,
        )
        if checkpoint != "last" and not processes.restarts():
            with run.loading(checkpoint):
                load_evaluated(prepared.experiment.rule, run.checkpoint(checkpoint))
            with run.locked():
                run.go_back_to(checkpoint)
        record_length(run, prepared.experiment.settings.epochs)
        return run

    return _train(go_back, prepared, progress or Progress())


def folder_of(runs: str | os.PathLike[str]) -> Path:
    """The folder of runs, where `~` and `~user` stand for a home."""
    path = Path(os.path.expanduser(runs))
    if path.parts[:1] and path.parts[0].startswith("~"):
        raise InputError(f"--runs {runs}: there is no user {path.parts[0][1:]!r}; give a folder")
    return path


def _stem(config: Mapping[str, Any]) -> str:
    """The name of a run that was given none, without its number."""
    parts = (Path(config["data"]["name"]).name, config["model"]["name"], config["rule"]["name"])
    stem = "-".join(re.sub(r"[/:\\]", "-", part).strip(".-") for part in parts).lower()
    return "".join(c if c.isprintable() else "-" for c in stem)[:LONGEST_STEM]


def _train(folder: Callable[[], Run], prepared: Prepared, progress: Progress) -> Run:
    """Train in this process; or start the processes that do, and wait for them."""
    settings = prepared.experiment.settings
    if prepared.processes is not None and not processes.started_together():
        run = folder()
        _launch(run.path, prepared, progress)
        return run
    with processes.together(prepared.fabric.device, settings.timeout) as watch:
        path = processes.from_leader(lambda: str(folder().path))
        run = Run(Path(path), writes=processes.leads())
        with run.locked():
            _train_here(run, prepared, progress, watch)
    return run


def _launch(path: Path, prepared: Prepared, progress: Progress) -> None:
    """Train a run in processes of their own, which resume it from its start."""
    settings, count = prepared.experiment.settings, prepared.processes
    assert count is not None
    arguments = ["train", "--resume", str(path), "--stages", str(prepared.config["stages"])]
    arguments += ["--replicas", str(settings.replicas), *trusts()]
    try:
        code = launch(
            arguments,
            count,
            restarts=settings.restarts,
            timeout_s=settings.timeout,
            say=progress.say,
        )
    except (LostStage, Interrupted) as error:
        message = f"{error}; continue: layerwise train --resume {path}"
        raise type(error)(message) from error
    if code:
        raise FailedProcess(f"run {path}: a process ended with exit code {code}", code)


def _train_here(run: Run, prepared: Prepared, progress: Progress, watch: Watch | None) -> None:
    config, experiment = prepared.config, prepared.experiment
    notices = [prepared.unfinished_curriculum()]
    train_in(
        run,
        config,
        progress,
        title=f"{run.path}: {experiment.splits.name}, {prepared.fabric.device}",
        costs=Costs.of(experiment.rule, experiment.settings.views, experiment.example_labels)
        if run.writes
        else None,
        observers=lambda receivers: observers_of(prepared, run, receivers),
        begin=lambda: experiment.initialised,
        notices=[notice for notice in notices if notice is not None],
        watch=watch,
        network=experiment.network,
        rule=experiment.rule,
        loaders=prepared.loaders,
        optimizer=prepared.optimizer,
        schedule=prepared.schedule,
        settings=experiment.settings,
        fabric=prepared.fabric,
        runtime=prepared.runtime,
    )


def train_in(
    run: Run,
    config: Mapping[str, Any],
    progress: Progress,
    *,
    title: str,
    costs: Costs | None,
    observers: Callable[[list[Any]], list[Observer]],
    begin: Callable[[], list[str]] = list,
    notices: Sequence[str] = (),
    watch: Watch | None = None,
    **trained: Any,
) -> None:
    """Train in a locked run folder, from its last checkpoint, with all that a run has.

    Args:
        run: the folder.
        config: the run's options.
        progress: a display.
        title: what it shows first.
        costs: of the rule; None in a process that does not write the run's files.
        observers: those of the training, of what its loggers send to.
        begin: called where there is no checkpoint; gives lines for the log.
        notices: further lines.
        watch: the other processes.
        **trained: the arguments of `Trainer` that are not named here.
    """
    fabric, settings = trained["fabric"], trained["settings"]
    if settings.keep_freed and fabric.device.type == "cpu":
        keep_freed_memory()
    state = run.load("last")
    if state is None:
        run.check_start()
        notices = [*begin(), *notices]
    if (run.path / "cost.json").exists():  # it was trained before
        where = "at the start: no checkpoint was written"
        if state is not None:
            where = f"at step {state.get('step')}"
        about = provenance()
        run.log(f"resumed {where}; {fabric.device}, {about['cpu']}, torch {about['torch']}")
    if costs is not None:
        run.write("cost.json", costs.json().encode())
    with progress, loggers(config["loggers"] if run.writes else [], run, config) as receivers:
        trainer = Trainer(run=run, observers=observers(receivers), progress=progress, **trained)
        if watch is not None:
            watch.share(lambda: trainer.stop.asked, trainer.stop.announce)
        if state is not None:
            with run.loading("last"):
                trainer.state.load_state_dict(state)
        run.keep_metrics(trainer.position.epoch)
        run.keep_lines(ALIGNMENT, trainer.position.step)
        if costs is not None:
            trainer.progress.costs(costs)
        trainer.progress.say(title)
        for notice in notices:
            run.log(notice)
            trainer.progress.say(notice)
        try:
            trainer.fit()
        finally:
            _draw(run, trained["rule"], trainer.progress)
    run.check_there()
    trainer.progress.say(f"done: {run.path}")


def _draw(run: Run, rule: Rule, progress: Progress) -> None:
    """Draw the curves of a run. Whatever is wrong with its files, the training itself counts."""
    try:
        if run.writes and run.metrics():
            draw_run(run)
            _draw_alignment(run, rule)
    except InputError as error:
        progress.say(f"no curves: {error}")


def _draw_alignment(run: Run, rule: Rule) -> None:
    rows = {run.path.name: alignment_of(run, len(rule.blocks))}
    if picture := draw_alignment(rows, rule.blocks.names):
        run.write("curves/alignment.png", picture)
    if picture := draw_feedback_training(rows):
        run.write("curves/feedback.png", picture)
