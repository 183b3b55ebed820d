"""What CONTRIBUTING says about a new rule is true: it is written into a copy of the package, as the
page says, and checked there as every rule is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()

TINY = "--model mlp --epochs 1 --name run --runs experiments"
LIMIT = """
import pytest
import torch

import layerwise as lw


def gradients(rule, **options):
    torch.manual_seed(0)
    x, y = torch.randn(4, 1, 8, 8), torch.randint(0, 10, (4,))
    network = lw.models.mlp((1, 8, 8), 10, layers=2, width=16)
    made = rule(lw.cut(network, blocks=2, example=x), **options)
    made.backward(x, y)
    return [p.grad for p in made.parameters()]


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_limit(weight):
    mine = gradients(lw.rules.SmallActivity, weight=weight)
    same = [torch.equal(a, b) for a, b in zip(mine, gradients(lw.rules.DGL), strict=True)]
    assert all(same) == (weight == 0)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the page's rule: the file that it names, and the line that it names."""
    root = tmp_path_factory.mktemp("contributed")
    file = re.findall(r"`(src/layerwise/rules/[a-z]\w+\.py)`:\n", PAGE)[0]
    ((rule, line),) = re.findall(r"```python\n(.*?)```\n.*?```\n(from .*?)```", PAGE, re.DOTALL)
    for name in ("src", "tests", "docs", "benchmarks", "pyproject.toml", "README.md"):
        whole = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        whole(ROOT / name, root / name)
    (root / file).write_text(rule)
    with (root / "src/layerwise/rules/__init__.py").open("r+") as init:
        text = init.read()
        last = text.rindex("\nfrom ")
        end = text.index("\n\n", last)
        init.seek(0)
        init.write(text[:end] + "\n" + line.rstrip() + text[end:])
    return root


def run(copy: Path, *command: str) -> str:
    """The output of a command there; it has to succeed."""
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_lint(copy: Path) -> None:
    # The line may stand anywhere: `make format` puts imports in order.
    run(copy, "ruff", "check", "--fix", "--quiet", "src/layerwise/rules/__init__.py")
    run(copy, "ruff", "check", "src/layerwise/rules")
    run(copy, "ruff", "format", "--check", "src/layerwise/rules")


@pytest.mark.slow
def test_contract_and_limit(copy: Path) -> None:
    """The contract, and that with weight 0 it is DGL, bit for bit."""
    (copy / "tests/rules/test_small_activity.py").write_text(LIMIT)
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--assert=plain"]
    where = ["tests/contract", "tests/rules/test_small_activity.py"]
    out = run(copy, "pytest", *options, *where, "-k", "small_activity or SmallActivity")
    assert int(re.findall(r"(\d+) passed", out)[0]) > 80


# One process, because each imports PyTorch anew.
COMMANDS = """
import contextlib, runpy, sys
from layerwise.cli import main
with contextlib.suppress(SystemExit):
    main("train --rule smallactivity --help".split())
assert main({train!r}.split()) == 0
sys.argv, sys.path[:0] = ["tables.py"], ["benchmarks"]
runpy.run_path("benchmarks/tables.py", run_name="__main__")
"""


@pytest.mark.slow
def test_command_line_and_card(copy: Path) -> None:
    program = copy / "commands.py"
    program.write_text(COMMANDS.format(train=f"train --rule SmallActivity {TINY}"))
    assert "--rule.weight" in run(copy, "commands")
    assert (copy / "experiments/run/metrics.csv").read_text().count("\n") == 2
    card = (copy / "docs/rules/small_activity.md").read_text()
    assert "Author & Author 2030" in card
    assert "small_activity.md" in (copy / "docs/rules/README.md").read_text()
