"""One experiment with several seeds: a run for each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from layerwise.errors import InputError
from layerwise.experiment.config import complete, config_of
from layerwise.experiment.training import folder_of, resume, train
from layerwise.runs.run import CONFIG, NETWORK, Run, check_name
from layerwise.runtime import processes
from layerwise.trainer import Progress

# Options that a training replaces by what it finds on the machine.
FOUND = ("precision", "channels_last", "device", "runtime", "stages")


def train_seeds(
    config: Mapping[str, Any],
    seeds: Sequence[int],
    runs: str | os.PathLike[str],
    name: str | None,
    progress: Progress,
) -> list[Run]:
    """Train NAME-SEED for each seed, one after the other. Runs that are there already are continued
    if they are not complete, so the same call goes on after an interruption.

    Args:
        config: of the runs; its seed is replaced.
        seeds: the seeds.
        runs: the folder in which the run folders are made.
        name: what their names begin with.
        progress: a display.

    Raises:
        InputError: no name; a run of such a name with other options; processes that were started
            together; what `train` raises.
    """
    if name is None:
        raise InputError(
            f"--seed {','.join(map(str, seeds))}: the runs need a common name; give --name NAME, "
            "and they are called NAME-SEED"
        )
    if processes.started_together():
        raise InputError(
            "--seed: several seeds are trained one after the other, each with processes of its "
            "own; give --stages or --replicas instead of torchrun"
        )
    found, root = [], folder_of(runs)
    for seed in seeds:  # refused before the first is trained
        path = root / f"{name}-{seed}"
        if os.path.isfile(path / CONFIG):
            _check_same(Run.open(path), {**config, "seed": seed})
        else:
            check_name(root, path.name)
    for seed in seeds:
        path = root / f"{name}-{seed}"
        if not os.path.isfile(path / CONFIG):
            of_seed = {**config, "seed": seed}
            found.append(train(of_seed, runs=root, name=path.name, progress=progress))
        elif os.path.isfile(path / NETWORK):
            progress.say(f"{path}: complete")
            found.append(Run.open(path))
        else:
            found.append(resume(path, progress=progress))
    return found


def _check_same(run: Run, config: Mapping[str, Any]) -> None:
    then, now = complete(config_of(run)), complete(config)
    for key in now:
        if key not in FOUND and then.get(key) != now[key]:
            raise InputError(
                f"run {run.path}: it is there already, with {key} {then.get(key)} instead of "
                f"{now[key]}; give another --name"
            )
