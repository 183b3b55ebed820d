"""How many labels runs need: accuracy over the share of labels, by probes or by fine-tuning."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch

from layerwise.analysis import linear_probe
from layerwise.data import Augment, Loader, Text
from layerwise.data.splits import Part, hide_labels, labelled
from layerwise.errors import InputError
from layerwise.experiment.build import Experiment, build, load_data, tuples
from layerwise.experiment.config import complete, config_of
from layerwise.experiment.prepared import Prepared
from layerwise.experiment.recorded_data import check_data
from layerwise.experiment.training import train
from layerwise.report.analysis_figures import draw_label_curves
from layerwise.runs.files import claim_numbered
from layerwise.runs.rows import finite
from layerwise.runs.run import Run
from layerwise.trainer import fabric_for, load_evaluated

BATCH = 128
UNTRAINED = "untrained"
# A fine-tuning is one process that trains the network end to end on plain images.
PLAIN: dict[str, Any] = {
    "rule": "Backprop",
    "blocks": 1,
    "at": None,
    "freeze": None,
    "curriculum": {},
    "views": 1,
    "pictures": 0,
    "outcomes": False,
    "alignment_every": 0,
    "patience": None,
    "loggers": [],
    "runtime": "serial",
    "stages": None,
    "replicas": 1,
    "replay": 0,
    "restarts": 0,
}


@dataclass(frozen=True)
class LabelCurves:
    """Test accuracies of runs with few labels.

    Args:
        runs: each run by its label; files are written into the first one's folder.
        options: the options of `layerwise labels`.
        say: called with a line about each result.

    Attributes:
        rows: of every measurement its run, share, draw, number of labels and accuracy, 0 to 1; for
            probes also the accuracy after each block.
    """

    runs: dict[str, Run]
    options: dict[str, Any]
    say: Callable[[str], None] = print
    rows: list[dict[str, Any]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        made = [self._experiment(run) for run in self.runs.values()]  # refused before a folder
        fabric_for(self.options["device"], "32")
        for experiment in made:
            if self.options["untrained"]:
                _ = experiment.initialised
            if self.options["how"] == "finetune":
                Prepared.of(complete(self._tuning(experiment)))
        measure = self._probe if self.options["how"] == "probe" else self._finetune
        for (label, run), experiment in zip(self.runs.items(), made, strict=True):
            for trained in (False, True) if self.options["untrained"] else (True,):
                if trained:
                    with run.loading(self.options["checkpoint"]):
                        load_evaluated(experiment.rule, run.checkpoint(self.options["checkpoint"]))
                for row in measure(f"{label}, {UNTRAINED}" if not trained else label, experiment):
                    self.rows.append(row)
                    self.say(
                        "{run}: {labels:,} labels ({share:g}), draw {draw}: ".format_map(row)
                        + f"{100 * row['accuracy']:.2f} %"
                    )

    @cached_property
    def folder(self) -> Path:
        """labels-N of the first run; made where it is first asked for."""
        return claim_numbered(next(iter(self.runs.values())).path, "labels")

    def _experiment(self, run: Run) -> Experiment:
        with run.readable():
            experiment = build(config_of(run), to_train=False)
        check_data(run, experiment.splits)
        run.checkpoint(self.options["checkpoint"])
        if isinstance(experiment.splits.train, Text):
            raise InputError(f"labels {run.path}: it was trained on a text; give a run on images")
        if experiment.splits.real:
            raise InputError(
                f"labels {run.path}: it was trained on labels that are real numbers; give a run on "
                "classes"
            )
        blocks, block = len(experiment.rule.blocks), self.options["block"]
        if block is not None and not block < blocks:
            raise InputError(f"--block {block}: {run.path} has {blocks} blocks; give less")
        size, classes = len(experiment.splits.train), experiment.splits.num_classes
        if (labels := round(min(self.options["shares"]) * size)) < classes:
            raise InputError(
                f"--shares {min(self.options['shares']):g}: {labels} of the {size:,} training "
                f"images of {run.path} would have a label, less than one of each of {classes} "
                f"classes; give at least {1.01 * classes / size:.3g}"
            )
        return experiment

    def _draws(self) -> Iterator[tuple[float, int]]:
        for share in self.options["shares"]:
            for draw in range(self.options["draws"]):
                yield share, draw

    def _probe(self, label: str, experiment: Experiment) -> Iterator[dict[str, Any]]:
        """Linear probes after every block, on the labelled images alone. The number of steps is the
        same for every share."""
        config, rule = experiment.config, experiment.rule
        fabric = fabric_for(self.options["device"], experiment.settings.precision)
        rule.to(fabric.device).eval()
        given = {**config["data"], "labels": 1.0, "unlabelled": True}
        splits = load_data({**config, "data": given}, experiment.settings.seed)
        whole = splits.train
        assert not isinstance(whole, Text)
        augment = Augment(**tuples(config["augment"]))
        plain = Augment(**{k: getattr(augment, k) for k in ("normalize", "mean", "std")})

        def loader(part: Part, training: bool, seed: int = 0) -> Loader:
            size = min(BATCH, len(part))
            made = {"augment": plain, "train": training, "device": fabric.device, "seed": seed}
            return Loader(part, size, **made)

        test = loader(splits.test, False)
        steps = self.options["epochs"] * max(1, len(whole) // BATCH)
        block = max(0, len(rule.blocks) - 2)
        block = block if self.options["block"] is None else self.options["block"]
        for share, draw in self._draws():
            seed = experiment.settings.seed + draw
            part = labelled(hide_labels(splits, share, True, seed).train if share < 1 else whole)
            assert not isinstance(part, Text)
            part = part.normalized_by(whole)
            few = loader(part, True, seed)
            reads = {"pool": self.options["pool"], "epochs": -(-steps // len(few)), "seed": seed}
            with fabric.autocast():
                found = linear_probe(rule, few, test, **reads)
            about = {"run": label, "share": share, "draw": draw, "labels": len(part)}
            yield {**about, "accuracy": found[block], "blocks": list(found)}

    def _finetune(self, label: str, experiment: Experiment) -> Iterator[dict[str, Any]]:
        """Train the whole network on the labelled images, in a run of its own within the folder. A
        last block of several starts anew, because it may have read labels."""
        source = None
        if not label.endswith(UNTRAINED):
            source = self.folder / f"{label.replace('/', '-')}.safetensors"
            *before, last = experiment.rule.blocks
            left = {id(t) for t in last.state_dict(keep_vars=True).values()} if before else set()
            state = {
                name: tensor.detach().cpu().clone()
                for name, tensor in experiment.network.state_dict(keep_vars=True).items()
                if id(tensor) not in left
            }
            source.write_bytes(safetensors.torch.save(state))
        config = self._tuning(experiment)
        config["init"] = config["init"] if source is None else str(source)
        for share, draw in self._draws():
            config["data"] = {**config["data"], "labels": share, "unlabelled": False}
            name = f"{label.replace('/', '-').replace(', ', '-')}-{share:g}-{draw}"
            run = train(
                {**config, "seed": experiment.settings.seed + draw}, runs=self.folder, name=name
            )
            labels = round(share * len(experiment.splits.train))
            about = {"run": label, "share": share, "draw": draw, "labels": labels}
            yield {**about, "accuracy": run.metrics()[-1]["test_accuracy"]}

    def _tuning(self, experiment: Experiment) -> dict[str, Any]:
        """The config of a fine-tuning, without its weights and share."""
        config: dict[str, Any] = {**experiment.config, **PLAIN}
        config["augment"] = {**config["augment"], "jitter": None, "grey": 0.0}
        config |= {"epochs": self.options["epochs"], "device": self.options["device"]}
        if (lr := self.options["lr"]) is not None:
            config["optimizer"] = {**config["optimizer"], "lr": lr}
        return config

    def mean(self, run: str, share: float) -> tuple[float, float | None]:
        """Mean and standard deviation of the accuracy over the draws; None for a single one."""
        found = [r["accuracy"] for r in self.rows if (r["run"], r["share"]) == (run, share)]
        return statistics.mean(found), statistics.stdev(found) if len(found) > 1 else None

    @property
    def names(self) -> list[str]:
        """The runs in the order of their rows, those that are not trained among them."""
        return list(dict.fromkeys(row["run"] for row in self.rows))

    def write(self) -> list[str]:
        """Write numbers and a picture into the folder; the names of the files."""
        kept = ("how", "epochs", "block", "pool", "lr", "checkpoint")
        found = {**{key: self.options[key] for key in kept}, "rows": self.rows}
        curves = {
            name: [(s, self.mean(name, s)[0]) for s in sorted(self.options["shares"])]
            for name in self.names
        }
        files = {
            "labels.json": json.dumps(finite(found), indent=1).encode(),
            "labels.png": draw_label_curves(curves),
        }
        run = next(iter(self.runs.values()))
        for name, content in files.items():
            run.write(f"{self.folder.name}/{name}", content)
        return list(files)


def check(options: dict[str, Any], runs: Sequence[str]) -> None:
    """Refuse options that cannot be used.

    Raises:
        InputError: so.
    """
    if options["how"] not in ("probe", "finetune"):
        raise InputError(f"--how {options['how']}: give probe or finetune")
    if len(set(runs)) < len(runs):
        raise InputError(f"labels {' '.join(runs)}: give every run once")
    if not options["shares"] or not all(0 < share <= 1 for share in options["shares"]):
        raise InputError(f"--shares {options['shares']}: give shares above 0 to 1: 0.01,0.1,1")
    if len(set(options["shares"])) < len(options["shares"]):
        raise InputError(f"--shares {options['shares']}: give every share once")
    for name, least in (("epochs", 1), ("draws", 1), ("pool", 1), ("block", 0)):
        if options[name] is not None and options[name] < least:
            raise InputError(f"--{name} {options[name]}: give {least} or more")
