"""Every metric of a run, of every block, in TensorBoard, Weights & Biases and MLflow."""

import os
from importlib.util import find_spec

import digits
import layerwise as lw

os.environ.setdefault("WANDB_MODE", "offline")  # leave it out if you are logged in
installed = [name for name in ("tensorboard", "wandb", "mlflow") if find_spec(name)]

rule = lw.rules.DGL(lw.cut(digits.network(), blocks=4, example=digits.images[:2]))
run = lw.fit(
    rule, digits.train, test=digits.test, epochs=3, batch_size=64, loggers=installed, progress=False
)
print(f"test accuracy {run.metrics()[-1]['test_accuracy']:.3f}, for {', '.join(installed)}")
print(*sorted(path.name for path in run.path.iterdir()))
