"""All rules at equal budget: the same network, augmentation and search of the learning rate.

    python benchmarks/all_rules.py digits                  digits, a small CNN: minutes
    python benchmarks/all_rules.py cnn --data NAME         CIFAR-10 images, a CNN with 32 channels
    python benchmarks/all_rules.py resnet20 --data NAME    ResNet-20, every residual block a block
    python benchmarks/all_rules.py resnet20-long --data NAME --only backprop dgl-narrow
                                                           30 epochs instead of 3
    python benchmarks/all_rules.py original-1 --data NAME --only backprop dgl-256 dni-5 cdni-5
                                    the original study's CNN with a quarter of its channels
    python benchmarks/all_rules.py digits --only dgl man   only these rules
    python benchmarks/all_rules.py digits --train          train only, write no file

Each rule trains with every learning rate of the setting's list, on seed 0. The rate with the
highest validation accuracy then trains the other seeds, and their test accuracies are reported.
Finished runs are not trained again, so several calls may share the work by `--only`. Then the
training steps of these rules are measured in turns, next to backpropagation's with and without
activation checkpointing. The rules' rows replace earlier ones in `results/all-rules-SETTING.json`;
each row has the command and the machine that made it.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from runs import left_to_train

from layerwise.cli import main as layerwise
from layerwise.costs.blocks import Costs
from layerwise.costs.measure import Contender, When, measure
from layerwise.costs.stages import block_seconds
from layerwise.errors import InputError
from layerwise.experiment.build import build
from layerwise.rules import Backprop
from layerwise.rules.base import LocalRule, Rule
from layerwise.runs.provenance import provenance
from layerwise.runs.run import Run

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Setting:
    """What all rules of a comparison share.

    Attributes:
        options: of `layerwise train`.
        rates: learning rates that are tried.
        batch: size of the measured step's batch.
    """

    options: str
    rates: tuple[float, ...]
    batch: int


TRAINING = "--optimizer AdamW --optimizer.weight_decay 0.0 --schedule OneCycle --pictures 0 "
IMAGES = f"{TRAINING}--augment.flip true --augment.crop 4 --channels_last true --batch_size 128 "
SETTINGS = {
    "digits": Setting(
        f"{TRAINING}--data digits --model basic_cnn --model.channels 16 --model.hidden 64 "
        "--at [conv2,conv3,classifier] --epochs 10 --batch_size 64",
        (1e-3, 3e-3, 1e-2, 3e-2),
        256,
    ),
    "cnn": Setting(
        f"{IMAGES}--model basic_cnn --model.channels 32 --at [conv2,conv3,classifier] --epochs 4",
        (3e-3, 1e-2),
        128,
    ),
    "original-1": Setting(
        "--optimizer AdamW --optimizer.weight_decay 0.0 --schedule Constant --pictures 0 "
        "--channels_last true --batch_size 128 --model basic_cnn --model.channels 32 "
        "--at [conv2,conv3,classifier] --epochs 4",
        (1e-4, 3e-4, 1e-3),
        128,
    ),
    "resnet20": Setting(f"{IMAGES}--model resnet20 --blocks all --epochs 3", (3e-3, 1e-2), 128),
    # With the learning rate that all rules have in 3 epochs.
    "resnet20-long": Setting(f"{IMAGES}--model resnet20 --blocks all --epochs 30", (1e-2,), 128),
}
MLP = "--rule.head MLP --rule.head.width 64"
CLASSIFY = "--rule.objectives Classify --rule.objectives.head MLP --rule.objectives.head.width 64"
CLASSIFY_IN_SUM = "--rule.objectives.Classify.head MLP --rule.objectives.Classify.head.width 64"
ONE_SIDED = "--rule.directions 8 --rule.two_sided false --rule.rademacher true"
SYNTHESIZER = "--rule.synthesizer Synthesizer --rule.synthesizer.kernel_size 3"


def _narrow(head: str) -> str:
    """A head of two convolutions, each of half the resolution and twice the channels."""
    return f"--{head} Conv --{head}.layers 2 --{head}.stride 2 --{head}.widen 2"


def _windows(overlap: int, every: int) -> str:
    return (
        f"--rule Overlap --rule.overlap {overlap} --rule.every {every} "
        f"--rule.objectives Classify {_narrow('rule.objectives.head')}"
    )


def _with_classify(objective: str, weight: str, classify: str, more: str = "") -> str:
    """Class prediction and another objective on every block."""
    options = f"--rule.objectives.{objective}.{more} " if more else ""
    return (
        f"--rule Greedy --rule.objectives Classify+{objective} {CLASSIFY_IN_SUM} {options}"
        f"--rule.objectives.Classify.weight {classify} "
        f"--rule.objectives.{objective}.weight {weight}"
    )


def _bpf(*more: str) -> str:
    """Without weight transport: labels are projected by a fixed random matrix."""
    options = ("features 4096", "projection 128", *more)
    return " ".join(f"--rule.objectives.{option}" for option in options)


# All rules with heads have the same one, unless their name says otherwise. The last block always
# learns from the labels.
RULES = {
    "backprop": "--rule Backprop",
    "deep-supervision": f"--rule DeepSupervision {MLP}",
    "deep-supervision-narrow": f"--rule DeepSupervision {_narrow('rule.head')}",
    "dgl": f"--rule DGL {MLP}",
    "dgl-256": "--rule DGL --rule.head MLP --rule.head.width 256",
    "dgl-linear": "--rule DGL --rule.head Linear",
    "dgl-fixed": "--rule DGL --rule.head Linear --rule.head.fixed true",
    "dgl-mlpsr": "--rule DGL --rule.head MLPSR",
    "dgl-conv": "--rule DGL --rule.head Conv --rule.head.pool 4 --rule.head.hidden 64",
    "dgl-narrow": f"--rule DGL {_narrow('rule.head')}",
    "direct-global": f"--rule DirectGlobal {MLP}",
    "auglocal": "--rule AugLocal",
    "auglocal-pooled": "--rule AugLocal --rule.pool 2",
    "man": f"--rule MAN {MLP}",
    "man++": f"--rule MAN --rule.scaled true {MLP}",
    "sgr": f"--rule SGR {MLP}",
    "local-critic": f"--rule LocalCritic {MLP}",
    "overlap": f"--rule Overlap --rule.overlap 1 {CLASSIFY}",
    "overlap-2-2": _windows(2, 2),
    "overlap-3-3": _windows(3, 3),
    "overlap-4-3": _windows(4, 3),
    "hpff": f"--rule HPFF --rule.overlap 1 --rule.independent 0.001 {CLASSIFY}",
    "sequential": f"--rule Sequential {CLASSIFY}",
    "mono-forward": "--rule MonoForward",
    "shared-readout": "--rule SharedReadout",
    "dni": f"--rule DNI {SYNTHESIZER}",
    "cdni": f"--rule DNI --rule.context true {SYNTHESIZER}",
    "dni-5": "--rule DNI --rule.synthesizer Synthesizer",
    "cdni-5": "--rule DNI --rule.context true --rule.synthesizer Synthesizer",
    "dtp": "--rule DifferenceTargetPropagation",
    "ldrl": "--rule LDRL",
    "ddtp": "--rule DirectDifferenceTargetPropagation",
    "ddtp-rhl": "--rule DirectDifferenceTargetPropagation --rule.inverse.layers 1 "
    "--rule.inverse.width 512 --rule.inverse.fixed true",
    "forward-gradient": "--rule ForwardGradient",
    "forward-gradient-8": "--rule ForwardGradient --rule.directions 8",
    "spsa": "--rule SPSA",
    "spsa-rank": "--rule SPSA --rule.rank 8",
    "spsa-8-sgd": f"--rule SPSA {ONE_SIDED} --optimizer SGD",
    "fzoo-sgd": f"--rule SPSA {ONE_SIDED} --rule.normalize true --optimizer SGD",
    "lg-fg-a": f"--rule LocalForwardGradient {CLASSIFY}",
    "lg-fg-w": f"--rule LocalForwardGradient --rule.weights true {CLASSIFY}",
    "fa": "--rule FeedbackAlignment",
    "usf": "--rule SignSymmetry",
    "frsf": "--rule SignSymmetry --rule.random_magnitude true",
    "brsf": "--rule SignSymmetry --rule.random_magnitude true --rule.redraw true",
    "kolen-pollack": "--rule KolenPollack --optimizer.weight_decay 0.1",
    "dfa": "--rule DirectFeedbackAlignment",
    "dfa-layers": "--rule DirectFeedbackAlignment --rule.layers true",
    "dfa-normalize": "--rule DirectFeedbackAlignment --rule.normalize true",
    "drtp": "--rule DirectRandomTargetProjection",
    "forward-forward": "--rule ForwardForward --rule.waves true",
    "forward-forward-goodness": "--rule ForwardForward --rule.waves true --rule.by_goodness true",
    "pepita": "--rule PEPITA",
    "predsim": _with_classify("SimilarityMatching", "0.99", "0.01"),
    "sim-bpf": f"--rule Greedy --rule.objectives SimilarityMatching {_bpf('convolve false')}",
    "pred-bpf": f"--rule Greedy --rule.objectives PredictProjection {_bpf()}",
    "infopro": _with_classify("Reconstruct", "[2,0.2]", "[0.5,1]", "distance bce"),
    "dgl-reconstruct": _with_classify("Reconstruct", "0.5", "0.5"),
    "dgl-contrast": _with_classify("SupervisedContrastive", "1.0", "1.0"),
    "contrast": "--rule Greedy --rule.objectives SupervisedContrastive",
    "kernel": "--rule Greedy --rule.objectives KernelSeparation",
    "reconstruct": "--rule Greedy --rule.objectives Reconstruct",
    "inpaint": "--rule Greedy --rule.objectives Inpaint",
    "rotation": "--rule Greedy --rule.objectives Rotation",
    "predictive-coding": "--rule PredictiveCoding",
    "predictive-coding-5": "--rule PredictiveCoding --rule.steps 5",
    "epc": "--rule PredictiveCoding --rule.error_based true",
    "epc-5": "--rule PredictiveCoding --rule.error_based true --rule.steps 5",
    "equilibrium-propagation": "--rule EquilibriumPropagation",
    "random-fixed": "--rule LastBlock",
}


def train(setting: str, rule: str, rate: float, seed: int, runs: Path, more: list[str]) -> Run:
    """The run of a rule at a learning rate; it is trained unless it is finished already."""
    path = runs / f"{rule}-{rate:g}-{seed}"
    arguments = [*shlex.split(SETTINGS[setting].options), *shlex.split(RULES[rule]), *more]
    arguments += ["--optimizer.lr", str(rate), "--seed", str(seed)]
    if (left := left_to_train(path, arguments)) is not None:
        code = layerwise(["train", *left])
        if code == 130:
            raise KeyboardInterrupt
        if code:  # such as a loss that is not finite: the run counts as the worst
            print(f"{path.name}: exit code {code}")
    return Run.open(str(path))


def validation(run: Run) -> float:
    """The highest validation accuracy of any epoch; 0 if no epoch was finished."""
    return max((row["validation_accuracy"] or 0.0 for row in run.metrics()), default=0.0)


def search(
    setting: str, rule: str, seeds: list[int], runs: Path, more: list[str]
) -> dict[str, Any]:
    """Search the learning rate, train the other seeds, and return the rule's row."""
    tried = {
        rate: train(setting, rule, rate, seeds[0], runs, more) for rate in SETTINGS[setting].rates
    }
    rate = max(tried, key=lambda r: validation(tried[r]))
    chosen = [train(setting, rule, rate, seed, runs, more) for seed in seeds]
    rows = []
    for run in chosen:
        found = run.metrics()
        best = max(found, key=lambda row: row["validation_accuracy"] or 0.0)
        rows.append({"best": best["test_accuracy"], "last": found[-1]["test_accuracy"]})
    config = dict(chosen[0].config)
    config["data"] = {**config["data"], "root": None}
    return {
        "rule": rule,
        "command": shlex.join(shlex.split(RULES[rule])),
        "config": config,
        "searched": {f"{r:g}": validation(run) for r, run in tried.items()},
        "rate": rate,
        "seeds": seeds,
        "test_accuracy": rows,
        "costs": json.loads(Costs.of(build(chosen[0].config).rule).json()),
    }


def steps(found: list[dict[str, Any]], batch: int, runs: Path, rounds: int) -> None:
    """Add the time and memory of a step to every row, next to those of backpropagation and of
    checkpointing. For a rule with phases: the mean time and the most bytes of a phase."""
    built = [
        build(Run.open(str(runs / f"{row['rule']}-{row['rate']:g}-{row['seeds'][0]}")).config)
        for row in found
    ]
    shape, classes = built[0].splits.shape, built[0].splits.num_classes
    torch.manual_seed(0)
    x, y = torch.randn(batch, *shape), torch.randint(classes, (batch,))
    contenders = [
        Contender("backprop", Backprop(built[0].rule.blocks)),
        Contender("checkpointing", Backprop(built[0].rule.blocks, checkpoint=True)),
    ]
    for row, e in zip(found, built, strict=True):
        when: When = "early" if isinstance(e.rule, LocalRule) else "end"
        contenders += [Contender(row["rule"], rule, when) for rule in _phases(e.rule)]
    measured = measure(
        contenders, x, y, lambda p: torch.optim.AdamW(p, lr=1e-5, fused=True), rounds=rounds
    )
    backprop, checkpointing, *others = measured
    for row, e in zip(found, built, strict=True):
        own = [measure for measure in others if measure.name == row["rule"]]
        row["step"] = {
            "times_s": [
                statistics.mean(times) for times in zip(*(m.times_s for m in own), strict=True)
            ],
            "backprop_times_s": backprop.times_s,
            "checkpointing_times_s": checkpointing.times_s,
            "bytes": max(m.peak.bytes for m in own),
            "backprop_bytes": backprop.peak.bytes,
            "checkpointing_bytes": checkpointing.peak.bytes,
            "batch": batch,
        }
        row["block_seconds"] = (
            block_seconds(e.rule, x, y) if isinstance(e.rule, LocalRule) else None
        )


def _phases(rule: Rule) -> list[Rule]:
    """A copy of the rule in each of its phases."""
    count = len(rule.phases(len(rule.blocks)))
    each = [rule] if count == 1 else [copy.deepcopy(rule) for _ in range(count)]
    for phase, of_phase in enumerate(each):
        of_phase.begin(phase)
    return each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--data")
    parser.add_argument("--name", help="name of the data in tables")
    parser.add_argument("--only", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timed steps")
    parser.add_argument("--train", action="store_true", help="train only; write nothing")
    given, more = parser.parse_known_args()
    runs = given.runs or Path("experiments") / f"all-rules-{given.setting}"
    if given.data:
        more += ["--data", given.data]
    found = []
    for rule in given.only:
        try:
            found.append(search(given.setting, rule, given.seeds, runs, more))
        except InputError as error:
            raise SystemExit(f"{rule}: {error}") from error
    if given.train:
        return
    steps(found, SETTINGS[given.setting].batch, runs, given.rounds)
    for row in found:
        row["config"]["data"]["name"] = given.name or row["config"]["data"]["name"]
        row["environment"] = provenance()
    out = RESULTS / f"all-rules-{given.setting}.json"
    kept = json.loads(out.read_text())["rows"] if out.exists() else []
    rows = {row["rule"]: row for row in kept + found}
    rows = {"rows": [rows[rule] for rule in RULES if rule in rows]}
    result = {"benchmark": "all_rules", "setting": given.setting, **rows}
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
