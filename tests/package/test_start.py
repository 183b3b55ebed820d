"""Which libraries a command imports. `benchmarks/overhead.py` measures the seconds."""

import json
import subprocess
import sys

# The libraries that this package imports, and large ones that come with others.
LIBRARIES = (
    *("torch", "greenlet", "torchvision", "numpy", "PIL", "lightning_fabric", "torchmetrics"),
    *("jsonargparse", "yaml", "rich", "safetensors", "matplotlib", "sklearn", "scipy", "pandas"),
    *("datasets", "timm", "transformers", "tensorboard", "wandb", "mlflow", "peft", "optuna"),
    *("torch._dynamo", "triton", "sympy"),
)
WITH_PYTORCH = {"torch", "numpy", "greenlet", "PIL", "jsonargparse", "yaml", "rich", "safetensors"}
COUNTING = {"triton", "torch._dynamo", "sympy"}  # imported by PyTorch's counter of operations

# Step -> the libraries that may be imported by then. The steps run in this order in one process,
# which forgets no import: what one of them imports counts for all that follow.
STEPS = {
    "--version": set(),
    "--help": set(),
    "list": {"rich"},
    "list rule": {"rich"},
    "no-such-command": {"rich"},
    "import torch": {"rich", "torch", "numpy"},
    "import layerwise": {"rich", "torch", "numpy", "greenlet"},
    "compare --help": WITH_PYTORCH,
    "compare no-such-run": WITH_PYTORCH,
    "train --help": WITH_PYTORCH,
    "train --recipe demo-dgl --rule.head Linear --help all": WITH_PYTORCH,
    "train --optimizer.lr zero": WITH_PYTORCH,
    "train --resume no-such-run --seed 3": WITH_PYTORCH,
    "evaluate --help": WITH_PYTORCH,
    "evaluate no-such-run": WITH_PYTORCH,
    "analyze --help": WITH_PYTORCH,
    "analyze no-such-run": WITH_PYTORCH,
    "labels --help": WITH_PYTORCH,
    "labels no-such-run": WITH_PYTORCH,
    "describe --help": WITH_PYTORCH,
    "plan --help": WITH_PYTORCH,
    "bench step --help": WITH_PYTORCH,
    "bench data --help": WITH_PYTORCH,
    "describe mlp": WITH_PYTORCH | COUNTING,
    "bench data --data digits --seconds 0.01": WITH_PYTORCH
    | COUNTING
    | {"sklearn", "scipy", "pandas"},
    "import layerwise.trainer.fabric": WITH_PYTORCH
    | COUNTING
    | {"sklearn", "scipy", "pandas", "lightning_fabric"},
}

PROGRAM = """
import contextlib, io, json, sys
libraries, steps = json.loads(sys.argv[1])
found = {}
for step in steps:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        if step == "import torch":
            import torch
        elif step == "import layerwise":
            import layerwise as lw
            lw.cut, lw.rules.DGL
        elif step == "import layerwise.trainer.fabric":
            import layerwise.trainer.fabric
        else:
            from layerwise.cli import main
            with contextlib.suppress(SystemExit):
                main(step.split())
    found[step] = [name for name in libraries if name in sys.modules]
print(json.dumps(found))
"""


def test_no_command_imports_what_it_does_not_use(tmp_path):
    asked = json.dumps([LIBRARIES, list(STEPS)])
    command = [sys.executable, "-c", PROGRAM, asked]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    found = json.loads(done.stdout)
    too_many = {step: {*found[step]} - STEPS[step] for step in STEPS}
    # Where PyTorch itself imports a library, so does everything that follows.
    with_torch = too_many["import torch"]
    after = list(STEPS).index("import torch")
    for step in list(STEPS)[after:]:
        too_many[step] -= with_torch
    assert {step: names for step, names in too_many.items() if names} == {}
    assert "torch" in found["train --help"]
    assert "sklearn" in found["bench data --data digits --seconds 0.01"]
    assert "lightning_fabric" in found["import layerwise.trainer.fabric"]
