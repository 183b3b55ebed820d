"""A search over options of a training, the same for every rule: trials are runs, and a study of
optuna for each rule chooses their options by the validation split."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from layerwise.errors import InputError, NonFiniteLoss
from layerwise.experiment.build import build
from layerwise.experiment.config import complete
from layerwise.experiment.prepared import Prepared
from layerwise.experiment.registry import make
from layerwise.experiment.training import resume, train
from layerwise.runs.metrics import selected_by
from layerwise.runs.run import CONFIG, NETWORK, Run
from layerwise.trainer import Progress

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(\s+log)?")
STUDIES = "optuna.log"  # optuna's journal, in the folder of a sweep
Values = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Space:
    """The values that an option may have: a range, or some by name.

    Attributes:
        low, high: ends of the range; whole numbers if both are.
        log: whether the logarithm is drawn evenly.
        choices: the values, as on a command line; empty for a range.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, option: str, text: str) -> Space:
        """What `1e-4..1e-1 log`, `1..4` or `a,b,c` says.

        Raises:
            InputError: it says neither.
        """
        asked = f"--search.{option} {text}"
        if (match := RANGE.fullmatch(text.strip())) is not None:
            ends, log = [match[1], match[2]], match[3] is not None
            whole = all(re.fullmatch(r"[-+]?\d+", end) for end in ends)
            low, high = map(int if whole else float, ends)
            if not low < high or (log and not low > 0):
                least = ", both above 0" if log else ""
                raise InputError(f"{asked}: give the smaller end first{least}")
            return cls(low, high, log)
        choices = tuple(word.strip() for word in text.strip("[] ").split(","))
        if len(choices) < 2 or len({*choices}) < len(choices) or not all(choices):
            raise InputError(f"{asked}: give a range, 1e-4..1e-1 log, or different values, a,b,c")
        return cls(choices=choices)

    @property
    def ends(self) -> tuple[int | float | str, ...]:
        """The choices, or both ends of the range."""
        return self.choices or (self.low, self.high)

    def distribution(self) -> Any:
        """The same in optuna."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.choices:
            return CategoricalDistribution(self.choices)
        if isinstance(self.low, int):
            return IntDistribution(self.low, int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Best:
    """The best trial of a rule.

    Attributes:
        rule: its name.
        trials: the trials that ended.
        diverged: those of them whose loss became infinite or not a number.
        run: the name of the best one's run folder; None if all diverged.
        values: its options.
        row: its best epoch on validation.
    """

    rule: str
    trials: int
    diverged: int
    run: str | None
    values: Values
    row: Mapping[str, float | None]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            "sweep: optuna is not installed; pip install 'layerwise[sweep]'"
        ) from error
    return optuna


def check(
    rules: Mapping[str, Callable[[Values], dict[str, Any]]], spaces: Mapping[str, Space]
) -> None:
    """Refuse, before a folder is made, what `search` cannot train.

    Raises:
        InputError: optuna is not installed; a config of some ends of the spaces that cannot be
            trained; data without a validation split.
    """
    _optuna()
    for config in rules.values():
        first = complete(config({option: space.ends[0] for option, space in spaces.items()}))
        prepared = Prepared.of(first)
        if prepared.loaders["validation"] is None:
            raise InputError(
                f"--data {first['data']['name']}: it has no validation split, which chooses among "
                "trials; give --data.validation 0.1"
            )
        _ = prepared.experiment.initialised
        for option, space in spaces.items():
            for value in space.ends:
                made = complete(config({option: value}))
                for kind in ("optimizer", "schedule"):
                    make(kind, made[kind])
                if option.partition(".")[0] not in ("optimizer", "schedule"):
                    build(made).loaders(torch.device("cpu"))


def search(
    folder: Path,
    rules: Mapping[str, Callable[[Values], dict[str, Any]]],
    spaces: Mapping[str, Space],
    *,
    trials: int,
    sampler: Literal["tpe", "random"],
    seed: int,
    progress: Progress,
) -> list[Best]:
    """Train trials of every rule, in turns, until each has as many as asked for. Trials of an
    earlier call count, and one that was interrupted is continued.

    Args:
        folder: of the sweep; trial n of a rule is the run RULE-n in it.
        rules: the config of each rule with some values of the options.
        spaces: the values that each option may have.
        trials: of each rule.
        sampler: tpe learns from the trials before, after ten at random; random gives every rule
            the same options.
        seed: of the choice of options, not of the runs.
        progress: a display.

    Raises:
        InputError: as `check`; what `train` raises.
    """
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _quiet():
        journal = optuna.storages.journal.JournalFileBackend(str(folder / STUDIES))
        storage = optuna.storages.JournalStorage(journal)
        studies = {
            rule: optuna.create_study(
                storage=storage, study_name=rule, direction="maximize", load_if_exists=True
            )
            for rule in rules
        }
    distributions = {option: space.distribution() for option, space in spaces.items()}
    for number in range(trials):
        for rule, study in studies.items():
            known = study.get_trials(deepcopy=False)
            if number < len(known) and known[number].state.is_finished():
                continue
            if sampler == "tpe":
                study.sampler = optuna.samplers.TPESampler(seed=seed + number)
            else:
                study.sampler = optuna.samplers.RandomSampler(seed=seed + number)
            begun = number < len(known)
            trial = known[number] if begun else study.ask(distributions)
            name = f"{rule}-{number}"
            progress.say(f"{name}: {_shown(trial.params)}")
            score = _trained(folder, name, rules[rule](trial.params), progress)
            if score is None:
                study.tell(number, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(number, score)
    return [_best(folder, rule, study) for rule, study in studies.items()]


def _trained(folder: Path, name: str, config: dict[str, Any], progress: Progress) -> float | None:
    """The best score on validation of a trial's run, which is continued if it is there; None if it
    diverged."""
    path = folder / name
    try:
        if not os.path.isfile(path / CONFIG):
            run = train(config, runs=folder, name=name, progress=progress)
        elif os.path.isfile(path / NETWORK):
            run = Run.open(path)
        else:
            run = resume(path, progress=progress)
    except NonFiniteLoss as error:
        progress.say(f"{name}: {error}")
        return None
    return max(s for row in run.metrics() if (s := selected_by(row)) is not None)


def _best(folder: Path, rule: str, study: Any) -> Best:
    ended = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    good = [t for t in ended if t.value is not None]
    if not good:
        return Best(rule, len(ended), len(ended), None, {}, {})
    best = max(good, key=lambda t: t.value)
    name = f"{rule}-{best.number}"
    rows = Run.open(folder / name).metrics()
    scored = [(s, row) for row in rows if (s := selected_by(row)) is not None]
    row = max(scored, key=lambda pair: pair[0])[1]
    return Best(rule, len(ended), len(ended) - len(good), name, best.params, row)


def _shown(values: Values) -> str:
    return ", ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without optuna's warnings that parts of it may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
