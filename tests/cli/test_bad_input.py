"""Whatever cannot be used: one line on stderr, exit code 2, no traceback, no folder made."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import pytest

MLP = "train --model mlp --model.width 8"
VIT = "train --model vit --model.width 8 --model.heads 2 --model.layers 2"
SUM = f"{MLP} --rule Greedy --rule.objectives Classify+Reconstruct"
# Configs of somebody else: what the file holds, what the line says.
FOREIGN = {
    "twice": ("epochs: 1\nepochs: 2", "the key 'epochs' stands twice"),
    "octal": ("epochs: 010", "--epochs 010: give a whole number, without a leading 0"),
    "sixty": ("epochs: 1:30", "--epochs 1:30: give a whole number, without a leading 0"),
    "date": ("epochs: 2020-01-01", "--epochs 2020-01-01: give a whole number"),
    "nul": ("epochs: 1\0", "not YAML"),
    "escaped": ('name: "a\\0b"', "not text in UTF-8"),
    "recursive": ("model: &a {name: *a}", "*a stands in what it names"),
    "deep": (f"epochs: {'[' * 3000}", "not YAML"),
    "layers": (f"model: {{name: mlp, layers: {10**30}}}", "give at most 2147483647"),
    "width": (f"model: {{name: mlp, width: {10**9}, layers: 2}}", "emory"),
    "scale": ("augment: {scale: []}", "--augment.scale []: give 2 values"),
    "precision": ("precision: .nan", "--precision NaN: give auto or 32 or bf16 or 16"),
    "seed": ("seed: 1.5", "--seed 1.5: give a whole number"),
    "model": ("model: [1, 2]", "no such model"),
    "nothing": ("rule: ''", "rule '': no such rule"),
    "help": ("help: all", "help is an option of the command line only"),
    "number": ("1: 2", "a key that is not text"),
}
TRAIN = [
    # what is typed, what the line says
    (f"{MLP} --rule DGK", "did you mean 'DGL'"),
    (f"{MLP} --rule nothing_like_it", "there is: AugLocal, Backprop, DGL"),
    (f"{MLP} --rule.head MPL", "did you mean 'MLP'"),
    ("train --model basic_cn", "did you mean 'basic_cnn'"),
    ("train --data digit", "did you mean 'digits'"),
    (f"{MLP} --optimizer Adam", "did you mean 'AdamW'"),
    (f"{MLP} --schedule Cosin", "did you mean 'Cosine'"),
    ("train --recipe demo-dg", "did you mean 'demo-dgl'"),
    (f"{MLP} --loggers tensorbord", "did you mean 'tensorboard'"),
    (f"{MLP} --epoch 3", "--epoch: no such option; did you mean '--epochs'"),
    (f"{MLP} --epo 3", "--epo: no such option; did you mean '--epochs'"),
    (f"{MLP} --optimizer.momentm 3", "did you mean '--optimizer.momentum'"),
    (f"{MLP} --optimizer.beta1 0.5", "--optimizer.beta1: no such option; there is: --optimizer.lr"),
    (f"{MLP} --lr 0.1", "--lr: no such option; did you mean '--optimizer.lr'?"),
    (f"{MLP} --head Linear", "--head: no such option; did you mean '--rule.head'?"),
    (f"{MLP} --width 3", "did you mean '--model.width' or '--rule.head.width'?"),
    (f"{MLP} --rule.width 3", "did you mean '--rule.head.width'?"),
    (f"{MLP} --rule.hed.widht 3", "did you mean '--rule.head.width'?"),
    (f"{MLP} --rule DNI --rule.head MLP", "there is: --rule.context, --rule.synthesizer, --rule"),
    (
        f"{SUM} --rule.objectives.shift [5,16]",
        "did you mean '--rule.objectives.Reconstruct.shift'?",
    ),
    (f"{SUM} --rule.objectives.weight 1", "Classify.weight' or '--rule.objectives.Reconstruct.we"),
    (f"{MLP} --rule Backprop --rule.head MLP", "--rule.head: no such option"),
    (f"{MLP} --model.channels 3", "--model.channels: no such option"),
    (f"{MLP} --views 0", "--views 0: give at least 1"),
    (f"{MLP} --views 2 --augment.crop 1", "DGL: got 2 views of every sample, but no objective"),
    (f"{MLP} --rule Backprop --views 2", "Backprop: got 2 views of every sample"),
    (f"{MLP} --epochs abc", "--epochs abc: give a whole number"),
    (f"{MLP} --epochs 1.5", "--epochs 1.5: give a whole number"),
    (f"{MLP} --epochs null", "--epochs None: give a whole number"),
    (f"{MLP} --optimizer.lr fast", "--optimizer.lr fast: give a number"),
    (f"{MLP} --clip_norm none", "--clip_norm none: give a number or null"),
    (f"{MLP} --blocks some", "--blocks some: give a whole number or all or null"),
    (f"{MLP} --augment.flip 3", "--augment.flip 3: give true or false"),
    (f"{MLP} --augment.scale 3", "--augment.scale [3]: give 2 values"),
    (f"{MLP} --precision 8", "--precision 8: give auto or 32 or bf16 or 16"),
    (f"{MLP} --epochs", "--epochs: give a whole number"),
    (f"{MLP} --augment.flip --epochs 3", "--augment.flip: give true or false"),
    (f"{MLP} 3", "'3': an option was expected"),
    (f"{MLP} -e 3", "'-e': an option was expected"),
    (f"{MLP} --blocks 99", "give blocks=4 or fewer"),
    (f"{MLP} --blocks 0", "give a number of blocks, at least 1"),
    (f"{MLP} --at nosuch", "the model has no module 'nosuch'"),
    (f"{MLP} --blocks 2 --at fc2", "--blocks 2 contradicts --at"),
    (f"{MLP} --config missing.yaml", "--config missing.yaml: cannot be read: No such file"),
    (f"{MLP} --config .", "--config .: cannot be read: Is a directory"),
    (f"{MLP} --config broken.yaml", "--config broken.yaml: not YAML"),
    (f"{MLP} --config list.yaml", "not a mapping"),
    (f"{MLP} --config binary.yaml", "not text"),
    (f"{MLP} --config unknown.yaml", "--epocs: no such option; did you mean '--epochs'"),
    (f"{MLP} --config within.yaml", "config is an option of the command line only"),
    (f"{MLP} --config good.yaml --recipe demo-dgl", "give one of them"),
    ("train --resume run --seed 3", "--resume contradicts --seed"),
    ("train --resume run --epochs 3.5", "--epochs 3.5: give a whole number"),
    ("train --resume missing", "run missing: is not a folder"),
    ("train --resume .", "holds no config.yaml"),
    ("train --resume", "--resume: give"),
    (f"{MLP} --device cuda:7", "--device cuda:7: this machine has no such device"),
    (f"{MLP} --device quantum", "no such device"),
    (
        f"{MLP} --precision 16 --device cpu",
        "--device cpu: float16 needs an accelerator",
    ),
    (f"{MLP} --batch_size 5000", "the set holds 1294 images"),
    (f"{MLP} --batch_size -3", "--batch_size -3: give at least 1"),
    (f"{MLP} --epochs -1", "--epochs -1: give at least 1"),
    (f"{MLP} --seed -1", "--seed -1: give 0 or more"),
    (f"{MLP} --seed 99999999999999999999999", "--seed 99999999999999999999999: give"),
    (f"{MLP} --save_every -1", "--save_every -1"),
    (f"{MLP} --pictures -1", "--pictures -1: give 0 or more"),
    (f"{MLP} --ema 1", "--ema 1.0"),
    (f"{MLP} --label_smoothing 1.5", "--label_smoothing 1.5"),
    (f"{MLP} --optimizer.lr -1", "SGD(lr=-1.0)"),
    (f"{MLP} --optimizer.momentum 2", "SGD(momentum=2.0)"),
    (f"{MLP} --optimizer AdamW --optimizer.beta1 1", "AdamW(beta1=1.0)"),
    (f"{MLP} --schedule Cosine --schedule.warmup -1", "Cosine(warmup=-1.0)"),
    (f"{MLP} --model.width -3", "mlp(width=-3): give at least 1"),
    (f"{MLP} --model.dropout 2", "mlp(dropout=2.0): give at least 0 and less than 1"),
    (f"{MLP} --rule.head.width 0", "heads.MLP(width=0): give at least 1"),
    (f"{MLP} --data.size -4", "size=-4"),
    (f"{MLP} --data.validation 1", "validation=1.0"),
    (f"{MLP} --data.random_labels 2", "random_labels=2.0"),
    (f"{MLP} --alignment_every -1", "--alignment_every -1: give 0 or more"),
    (f"{MLP} --alignment_every 2 --stages 2", "contradicts --alignment_every 2"),
    (f"{MLP} --augment.crop 99", "crop=99"),
    (f"{MLP} --augment.crop 1 --augment.resized_crop true", "give only one of them"),
    (f"{MLP} --step_per_block true --clip_norm 1", "--step_per_block true contradicts --clip_norm"),
    (f"{MLP} --step_per_block true --accumulate 2", "contradicts --accumulate"),
    ("train --rule.head ConvHead3", "no such head"),
    (f"{VIT} --rule.head MLPSR", "feature maps"),
    (f"{MLP} --curriculum.start 0.2", "--curriculum.start 0.2: nothing says which samples are"),
    (
        f"{MLP} --rule Sequential --rule.objectives Classify --epochs 2",
        "Sequential: 2 epochs for 4 blocks",
    ),
    ("train --model vgg16", "vgg16"),
    ("train --model torchvision", "3 channels"),
    ("train --model torchvision --model.arch resnet1888", "did you mean 'resnet18'"),
    (f"{MLP} --runs good.yaml", "--runs good.yaml: cannot make a run there: File exists"),
    (f"{MLP} --recipe", "--recipe: there is no value"),
    (f"{MLP} --config", "--config: there is no value"),
    (f"{MLP} --rule=", "--rule '': there is no value; give one, or leave --rule out"),
    (f"{MLP} --optimizer.lr=", "--optimizer.lr '': there is no value"),
    (f"{MLP} --name=", "--name '': there is no value"),
    (f"{MLP} --name ../x", "--name '../x': give the name of a folder within --runs"),
    (f"{MLP} --name \udcff", "not text in UTF-8"),
    (f"{MLP} --runs ~nosuchuser/x", "there is no user 'nosuchuser'"),
    (f"{MLP} --data folder:~nosuchuser", "~nosuchuser"),
    (f"{MLP} --epochs 010", "--epochs 010: give a whole number, without a leading 0"),
    (f"{MLP} --epochs 1:30", "--epochs 1:30: give a whole number, without a leading 0"),
    (f"{MLP} --epochs 2020-01-01", "--epochs 2020-01-01: give a whole number"),
    (f"{MLP} --stages 1.5", "--stages 1.5: give a whole number"),
    (f"{MLP} --at {'[' * 3000}", "--at [[["),
    (f"{MLP} --optimizer.lr nan", "--optimizer.lr nan: give a number"),
    (f"{MLP} --optimizer.lr inf", "--optimizer.lr inf: give a number"),
    (f"{MLP} --timeout 1e300", "--timeout 1e+300: give a positive number of seconds, at most"),
    (f"{MLP} --epochs {10**30}", "give at most 2147483647"),
    (f"{MLP} --batch_size 0", "--batch_size 0: give at least 1"),
    (f"{MLP} --model.layers {10**30}", "give at most 2147483647"),
    (f"{MLP} --model.layers {10**7}", "mlp(layers=10000000): give at most 10000"),
    (f"{MLP} --model.width {10**9} --model.layers 2", "emory"),
    ("train --resume run --stages [", "--stages [: give a whole number or null"),
    ("train --resume missing --stages", "--stages: give a whole number or null"),
    ("train --resume run --stages 010", "--stages 010: give a whole number or null"),
    ("train --resume run --replicas 02", "--replicas 02: give a whole number"),
    *((f"train --config foreign/{name}.yaml", says) for name, (_, says) in FOREIGN.items()),
]
# Nothing answers at port 1.
TWO = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
OTHERS = [
    ("trian", "did you mean 'train'"),
    ("--verson", "no such command"),
    ("evaluate", "required: run"),
    ("evaluate missing", "run missing: is not a folder"),
    ("evaluate .", "holds no config.yaml"),
    ("evaluate --split test", "required: run"),
    ("evaluate . --chekpoint best", "did you mean '--checkpoint'"),
    ("analyze", "required: runs"),
    ("analyze missing", "run missing: is not a folder"),
    ("analyze . --questions ckb", "did you mean 'cka'"),
    ("analyze . --questions []", "give any of alignment"),
    ("analyze . --split tset", "--split tset: give test"),
    ("analyze . --samples -1", "--samples -1: give 0 or more"),
    ("analyze . --epochs 0", "--epochs 0: give 1 or more"),
    ("analyze . --smaples 3", "did you mean '--samples'"),
    ("compare", "required: runs"),
    ("compare missing", "run missing: is not a folder"),
    ("compare . --out", "--out: give"),
    ("bench stp", "did you mean 'step'"),
    ("bench step --shape 3", "vgg8b(shape=(3,)): give the shape of an image, (C, H, W)"),
    ("bench step --threads 0", "--threads 0"),
    *(
        (f"{command} --out {name}", says)
        for command in ("bench step", "bench data", "plan mlp", "describe mlp")
        for name, says in (
            ("x" * 300, "no file can be written there: File name too long"),
            ("good.yaml/x.json", "no file can be written there: Not a directory"),
            ("good.yaml", "never overwritten"),
        )
    ),
    ("bench data --threads 2000000000", "--threads 2000000000: give 1 to "),
    ("plan mlp --threads 2000000000", "--threads 2000000000: give 1 to "),
    ("bench step --model.widht 3", "no such option"),
    ("bench step --device cuda:3", "no such device"),
    ("bench data --data digit", "did you mean 'digits'"),
    ("bench data --batch_size 0", "batch_size=0"),
    ("bench data --seconds -1", "--seconds -1.0: give a positive"),
    ("list ruls", "did you mean 'rule'"),
]


def write_config_files() -> None:
    Path("broken.yaml").write_text("epochs: [1\nx: }")
    Path("list.yaml").write_text("- 1\n- 2\n")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00epochs")
    Path("unknown.yaml").write_text("epocs: 3\n")
    Path("within.yaml").write_text("config: good.yaml\n")
    Path("good.yaml").write_text("epochs: 3\n")
    Path("foreign").mkdir()
    for name, (text, _) in FOREIGN.items():
        Path("foreign", f"{name}.yaml").write_text(text)


@pytest.mark.parametrize(("line", "says"), TRAIN + OTHERS)
def test_one_line(line, says, cli):
    if ".yaml" in line:
        write_config_files()
    before = set(os.listdir())
    result = cli(line)
    assert result.code == 2
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    assert says in result.err
    assert "Traceback" not in result.err
    assert set(os.listdir()) - before <= {"experiments"}
    assert not Path("experiments").exists() or not os.listdir("experiments")


def test_a_line_is_printed_as_it_is(cli):
    """No markup, no emoji, no wrapping."""
    result = cli("evaluate", "a[red]b:cat:" + "long " * 30)
    assert result.err.count("\n") == 1
    assert "a[red]b:cat:long long" in result.err


def _edit(text: str):
    def edited(run: Path) -> None:
        (run / "config.yaml").write_text(text)

    return edited


def _other_network(run: Path) -> None:
    config = (run / "config.yaml").read_text()
    assert "width: 12" in config
    (run / "config.yaml").write_text(config.replace("width: 12", "width: 13"))


def _truncated(run: Path) -> None:
    path = run / "checkpoints" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickled(run: Path) -> None:
    (run / "checkpoints" / "last.safetensors").write_bytes(pickle.dumps({"rule": {}}))


def _foreign(run: Path) -> None:
    network = (run / "model.safetensors").read_bytes()
    (run / "checkpoints" / "last.safetensors").write_bytes(network)


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (_edit("{}"), "does not describe a run"),
        (_edit("rule: 3\nmodel: 4\n"), "does not describe a run"),
        (_edit("- 1"), "not a mapping"),
        (_edit("a: [1"), "cannot be read"),
        (_edit("a: 1\na: 2"), "the key 'a' stands twice"),
        (_edit("rule: &a [*a]"), "stands in what it names"),
        (_edit("seed: 1.5"), "does not describe a run: config seed 1.5: give a whole number"),
        (_edit("precision: .nan"), "config precision nan: give auto or 32 or bf16 or 16"),
        (_edit("augment: {scale: []}"), "config augment.scale []: give 2 values"),
        (_edit(f"model: {{name: mlp, layers: {10**30}}}"), "does not describe a run"),
        (_other_network, "belongs to another network or rule"),
        (_truncated, "corrupt or not a checkpoint"),
        (_pickled, "corrupt or not a checkpoint"),
        (_foreign, "not a checkpoint of layerwise"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "train --resume"])
def test_a_run_that_was_damaged(command, breaks, says, trained, cli):
    run = trained("run", "--epochs 1")
    breaks(run)
    result = cli(f"{command} {run}")
    assert result.code == 2
    last = result.err.splitlines()[-1]
    assert says in last
    assert "Traceback" not in result.err


def test_a_run_that_another_process_trains(trained, cli):
    import fcntl

    run = trained("run", "--epochs 1")
    with open(run / "config.yaml", "r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = cli(f"train --resume {run}")
    assert result.code == 2
    assert result.err == f"layerwise train: run {run}: another process is training it; " + (
        "wait for it, or stop it\n"
    )


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_library_that_is_not_installed(name, cli, monkeypatch):
    monkeypatch.setattr("layerwise.runs.loggers.find_spec", lambda _: None)
    result = cli(f"{MLP} --loggers {name} --runs runs")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"pip install 'layerwise[{name}]'" in result.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RANK": "0", "WORLD_SIZE": "abc"}, "WORLD_SIZE=abc: the environment variable is not"),
        ({"RANK": "abc", "WORLD_SIZE": "2"}, "RANK=abc: the environment variable is not"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1: the environment variable is not"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0: the environment variable is not"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK=5: WORLD_SIZE=2 processes are numbered from 0"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2: the environment variable RANK is missing"),
        ({"RANK": "1"}, "RANK=1: the environment variable WORLD_SIZE is missing"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "the environment variable MASTER_ADDR is missing"),
        (TWO | {"MASTER_PORT": ""}, "the environment variable MASTER_PORT is missing"),
        (TWO | {"MASTER_PORT": "abc"}, "MASTER_PORT=abc: the environment variable is not a whole"),
        (TWO | {"MASTER_PORT": "65536"}, "MASTER_PORT=65536: ports are numbered from 1 to 65535"),
        (TWO | {"MASTER_ADDR": "a b"}, "MASTER_ADDR=a b: no machine has this address"),
        (TWO | {"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT=x: the environ"),
        (TWO, "rank 1 of 2 did not meet the others at localhost:1: nothing answers there within"),
    ],
)
def test_variables_of_processes(environment, says, cli, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = cli(f"{MLP} --timeout 1")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert says in result.err


def test_a_first_process_whose_others_never_come(cli, monkeypatch):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name, value in (TWO | {"RANK": "0", "MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    result = cli(f"{MLP} --timeout 1")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"rank 0 of 2 did not meet the others at localhost:{port}: " in result.err


def test_options_that_are_wrong_do_not_blame_the_run(trained, cli):
    run = trained("run", "--epochs 1")
    for value in ("[", "1.5", "abc", "{a: 1}", "-1", "99"):
        result = cli("train", "--resume", str(run), "--stages", value)
        assert result.code == 2
        assert "--stages" in result.err.splitlines()[-1]
        assert "config.yaml" not in result.err
