"""Early exits that decide: accuracy, FLOPs and time by rule and threshold; generated text.

    python benchmarks/early_exits.py digits              the demo's CNN on digits: minutes
    python benchmarks/early_exits.py cnn --data NAME --called NAME_FOR_THE_TABLE
                                                         CIFAR-10 images, a CNN with 32 channels
    python benchmarks/early_exits.py text                a transformer on the help texts of Python
    python benchmarks/early_exits.py text --only DGL     only this rule; other rows are kept

Three rules train the same network with the same heads: `DGL`, `DeepSupervision`, and
backpropagation, whose heads read detached activations. For images there is also backpropagation
first and heads on the frozen network afterwards, in as many epochs again. Temperatures are fitted
on the validation split, and everything is measured on the test split. The deciding networks and the
full one then take turns on the first seed's network, on one thread. Text is generated in turns,
too: by the full network, by one exit, by a network whose tokens leave where it is sure, and by the
full network with drafts of an exit. Finished trainings are not repeated. Results are in
`results/early-exits-SETTING.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import text as of_text
import torch
from runs import left_to_train
from torch import Tensor

from layerwise import Blocks, data, heads, rules
from layerwise.analysis.exits import (
    EarlyExit,
    Exit,
    Generated,
    fit_temperatures,
    generate,
    predictions,
)
from layerwise.cli import main as layerwise
from layerwise.costs.blocks import Costs
from layerwise.data import Loader, Text
from layerwise.experiment.early_exits import THRESHOLDS, EarlyExits
from layerwise.experiment.evaluation import Evaluation
from layerwise.rules.base import Rule
from layerwise.runs.provenance import provenance
from layerwise.runs.run import Run
from layerwise.trainer import fabric_for

RESULTS = Path(__file__).parent / "results"
HEAD = "--rule.head MLP --rule.head.width 64"
RULES = {
    "DGL": f"--rule DGL {HEAD}",
    "DeepSupervision": f"--rule DeepSupervision {HEAD}",
    "Backprop with heads": f"--rule DeepSupervision --rule.detach true {HEAD}",
}
FROZEN = "Heads on frozen backprop"  # begins with the network of "Backprop with heads"
RULES[FROZEN] = f"{RULES['Backprop with heads']} --freeze [conv1,conv2,conv3,classifier]"
SETTINGS = {
    "digits": "--recipe demo-dgl --pictures 0",
    "cnn": "--optimizer AdamW --optimizer.lr 0.003 --optimizer.weight_decay 0.0 "
    "--schedule OneCycle --precision bf16 --pictures 0 --augment.flip true --augment.crop 4 "
    "--channels_last true --batch_size 128 --model basic_cnn --model.channels 32 "
    "--at [conv2,conv3,classifier] --epochs 4",
}
TIMED = (0.5, 0.95)  # thresholds
BATCHES = {1: 256, 128: 1024}  # and how many images, at most
ROUNDS = 5


def in_turns(contenders: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of this process on the CPU of every contender in each round, after one that is not
    timed; there is one thread."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round in range(ROUNDS + 1):
        for name, run in contenders.items():
            began = time.process_time()
            run()
            if round:
                times[name].append(time.process_time() - began)
    return times


@torch.no_grad()
def timed(found: EarlyExits) -> list[dict[str, Any]]:
    """Seconds of the full network and of deciding ones on the first test images."""
    evaluation = found.evaluation
    rule = evaluation.experiment.rule
    test = torch.cat([x for x, _ in evaluation.loader.epoch(0)])
    model = evaluation.experiment.network
    rows = []
    for batch, images in BATCHES.items():
        x = test[:images]
        parts = x.split(batch)
        networks: dict[str, Callable[[Tensor], Tensor]] = {"full": model}
        for t in TIMED:
            networks[f"{t:g}"] = EarlyExit(rule, t, found.temperatures)
        contenders = {
            name: lambda network=network, parts=parts: [network(part) for part in parts]
            for name, network in networks.items()
        }
        rows.append({"batch": batch, "images": len(x), "times_s": in_turns(contenders)})
    return rows


def of_images(
    setting: str, options: list[str], seeds: list[int], only: list[str]
) -> list[dict[str, Any]]:
    rows = []
    for name, rule in RULES.items():
        if name not in only:
            continue
        runs = []
        for seed in seeds:
            folder = Path("experiments") / f"early-exits-{setting}"
            path = folder / f"{name.replace(' ', '-')}-{seed}"
            given = [*SETTINGS[setting].split(), *rule.split(), *options, "--seed", str(seed)]
            if name == FROZEN:
                given += ["--init", str(folder / f"Backprop-with-heads-{seed}")]
            if (line := left_to_train(path, [*given, "--device", "cpu"])) is not None:
                assert layerwise(["train", *line]) == 0
            found = EarlyExits.of(Evaluation.of(Run.open(path), device="cpu"))
            if seed == seeds[0]:
                times = timed(found)
            runs.append({"seed": seed, **found.result})
        rows.append({"rule": name, "options": rule, "runs": runs, "times": times})
    return rows


# ------------------------------------------------------------------------------------- text

BUDGET = of_text.Budget(context=64, layers=6)
RATE = 3e-3
COUNT, PROMPT, AHEAD = 128, 16, 4
TEXT_TIMED = (0.5, 0.8)
HEADS = heads.MLP(width=64)
TEXT_RULES: dict[str, Callable[[Blocks], Rule]] = {
    "DGL": lambda blocks: rules.DGL(blocks, head=HEADS),
    "DeepSupervision": lambda blocks: rules.DeepSupervision(blocks, head=HEADS),
    "Backprop with heads": lambda blocks: rules.DeepSupervision(blocks, head=HEADS, detach=True),
}


def trained(name: str, splits: data.Splits, folder: Path) -> tuple[Rule, dict[str, Any]]:
    """The rule after its training, and the perplexities."""
    of_text.RULES[name] = TEXT_RULES[name]
    weights, about = folder / f"{name.replace(' ', '-')}.pt", folder / f"{name}.json"
    rule = of_text.rule_of(name, splits, BUDGET, 0)
    if not about.exists():

        def keep(step: int, rule: Rule) -> None:
            if step == BUDGET.steps:
                torch.save(rule.state_dict(), weights)

        found = of_text.train(name, RATE, 0, splits, BUDGET, keep)
        about.write_text(json.dumps(found))
    rule.load_state_dict(torch.load(weights))
    return rule.eval(), json.loads(about.read_text())


def of_a_text(name: str, splits: data.Splits, folder: Path) -> dict[str, Any]:
    rule, about = trained(name, splits, folder)
    fabric = fabric_for("cpu")
    parts = splits.validation, splits.test
    validation, test = (Loader(part, 100, train=False) for part in parts)  # type: ignore[arg-type]
    temperatures = fit_temperatures(rule, validation, fabric)
    found = predictions(rule, test, fabric, temperatures)
    costs = Costs.of(rule)
    flops = costs.deciding(found.blocks)
    assert isinstance(splits.test, Text)
    prompt = splits.test.tokens[:PROMPT].long()
    context = splits.shape[0]
    taken: Counter[int] = Counter()

    def deciding(threshold: float) -> Callable[[Tensor], Tensor]:
        network = EarlyExit(rule, threshold, temperatures, position=-1)

        def model(window: Tensor) -> Tensor:
            scores, exits = network.decide(window)
            taken[f"{threshold:g}", int(exits)] += 1  # type: ignore[index]
            return scores

        return model

    ways: dict[str, Callable[[], Generated]] = {
        "full": lambda: generate(rule, prompt, COUNT, context)
    }
    for k in (0, 2):
        ways[f"exit {k}"] = lambda k=k: generate(Exit(rule, k), prompt, COUNT, context)
        ways[f"full, drafts of exit {k}"] = lambda k=k: generate(
            rule, prompt, COUNT, context, draft=Exit(rule, k), ahead=AHEAD
        )
    for t in TEXT_TIMED:
        ways[f"threshold {t:g}"] = lambda t=t: generate(deciding(t), prompt, COUNT, context)
    texts = {way: run() for way, run in ways.items()}
    taken.clear()
    times = in_turns(ways)
    full = texts["full"].tokens
    generated = []
    for way, of_way in texts.items():
        shares = {
            k: taken[way.removeprefix("threshold "), k] / (COUNT * (ROUNDS + 1))  # type: ignore[index]
            for k in found.blocks
        }
        generated.append(
            {
                "way": way,
                "times_s": times[way],
                "same_as_full": (of_way.tokens == full)[PROMPT:].double().mean().item(),
                "forwards": of_way.forwards,
                "drafted": of_way.drafted,
                "accepted": of_way.accepted,
                "shares": list(shares.values()) if "threshold" in way else None,
            }
        )
        if "drafts" in way:
            assert torch.equal(of_way.tokens, full), way
    return {
        "rule": name,
        "training": about,
        "temperatures": [temperatures[k] for k in found.blocks],
        "blocks": [rule.blocks.names[k] for k in found.blocks],
        "fixed": [
            {"accuracy": a, "flops": costs.up_to(k)[1]}
            for k, a in zip(found.blocks, found.right.double().mean(1).tolist(), strict=True)
        ],
        "thresholds": [found.at(t, flops) for t in THRESHOLDS],
        "generated": generated,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("setting", choices=(*SETTINGS, "text"))
    parser.add_argument("--data", help="of `layerwise train`")
    parser.add_argument("--called", help="name of the data in tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=RULES)
    given = parser.parse_args()
    only = given.only or list(TEXT_RULES if given.setting == "text" else RULES)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "early-exits", **provenance(), "setting": given.setting}
    if given.setting == "text":
        folder = Path("experiments") / "early-exits-text"
        folder.mkdir(parents=True, exist_ok=True)
        splits = data.load(of_text.english(folder), context=BUDGET.context)
        result |= {
            "data": "python-topics",
            "budget": dataclasses.asdict(BUDGET),
            "rate": RATE,
            "tokens": COUNT,
            "prompt": PROMPT,
            "ahead": AHEAD,
            "rows": [of_a_text(name, splits, folder) for name in only],
        }
    else:
        options = ["--data", given.data] if given.data else []
        result |= {
            "options": SETTINGS[given.setting],
            "rows": of_images(given.setting, options, given.seeds, only),
        }
        for row in result["rows"]:
            for run in row["runs"]:
                run["data"] = given.called or run["data"]
    out = RESULTS / f"early-exits-{given.setting}.json"
    kept = json.loads(out.read_text())["rows"] if out.exists() else []
    rows = {row["rule"]: row for row in [*kept, *result["rows"]]}
    result["rows"] = [rows[name] for name in RULES if name in rows]
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
