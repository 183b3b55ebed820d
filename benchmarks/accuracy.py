"""Keep the measurements of runs in one file: `results/accuracy-NAME.json`.

    python benchmarks/accuracy.py NAME RUN [RUN ...] [--data NAME_FOR_THE_TABLE] [--epochs N]

The file holds each run's command, config, versions and machine, costs, and every epoch's metrics;
and the test accuracy over several views of each image, if it was evaluated before with
`layerwise evaluate RUN --test_time shift`.
Runs that are in the file and are not given stay in it. An interrupted run counts as a run of the
epochs it finished, and with `--epochs` the beginning of a run counts as a run of that length. This
is correct only if the learning rate is constant; other runs are refused.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from layerwise.costs.blocks import Costs
from layerwise.errors import InputError
from layerwise.experiment.build import build
from layerwise.runs.run import Run

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", help="name of the data in tables")
    parser.add_argument("--epochs", type=int, help="use only the first epochs of each run")
    given = parser.parse_args()
    runs = []
    for path in given.runs:
        run = Run.open(path)
        config, costs = run.config, _costs(run)
        config["data"].pop("root")  # a folder of this machine
        metrics = run.metrics()[: given.epochs]
        epochs = len(metrics)
        if epochs < config["epochs"] and config["schedule"]["name"] != "Constant":
            raise InputError(
                f"{run.path}: the first {epochs} of {config['epochs']} epochs are not a run of "
                "their own, because the learning rate changes; finish the run and take all epochs"
            )
        config["epochs"] = epochs
        config["data"]["name"] = given.data or config["data"]["name"]
        runs.append(
            {
                "run": run.path.name,
                "environment": json.loads((run.path / "environment.json").read_text()),
                "config": config,
                "costs": json.loads(costs.json()),
                "metrics": metrics,
                **_over_views(run.path),
            }
        )
    if any(not run["metrics"] for run in runs):
        raise InputError("a run has no finished epoch")
    out = RESULTS / f"accuracy-{given.name}.json"
    kept = json.loads(out.read_text())["runs"] if out.exists() else []
    runs = list({run["run"]: run for run in [*kept, *runs]}.values())
    out.write_text(json.dumps({"benchmark": "accuracy", "runs": runs}, indent=1) + "\n")
    print(out)


def _over_views(path: Path) -> dict[str, float]:
    """The test accuracy with class scores averaged over views, if it was evaluated."""
    found = path / "evaluation-test-last-shift.json"
    if not found.exists():
        return {}
    return {"accuracy_over_views": json.loads(found.read_text())["exits"][-1]["accuracy"]}


def _costs(run: Run) -> Costs:
    """The run's costs; measured again if its file has no FLOPs of a step."""
    costs = Costs.from_json((run.path / "cost.json").read_text())
    return costs if costs.step_flops is not None else Costs.of(build(run.config).rule)


if __name__ == "__main__":
    main()
