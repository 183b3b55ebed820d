"""Every setting does what it says, against a loop written by hand."""

from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from layerwise import data, models
from layerwise.data import Augment, Loader
from layerwise.errors import InputError, NonFiniteLoss
from layerwise.runs.run import Run
from layerwise.trainer import Observer, Settings, Trainer, fabric_for
from layerwise.trainer import loop as module
from layerwise.trainer.device import seed_generators

BACKPROP = {"rule": {"name": "Backprop"}}


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.rule.named_parameters()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def by_hand(epochs: int = 2, smoothing: float = 0.0, clip: float | None = None):
    """Plain PyTorch: the network after training, each epoch's mean loss and accuracy."""
    splits = data.load("digits")
    loader = Loader(splits.train, 200, augment=Augment(), train=True)
    torch.manual_seed(0)
    net = models.mlp(splits.shape, 10, layers=2, width=12)
    weights = [p for p in net.parameters() if p.ndim > 1]
    biases = [p for p in net.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 5e-4}, {"params": biases, "weight_decay": 0.0}],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
        fused=True,
    )
    steps, step, rows = epochs * len(loader), 0, []
    for e in range(epochs):
        losses, right = [], 0
        for x, y in loader.epoch(e):
            done = step / steps
            low, share = (0.04, 1 - done / 0.3) if done < 0.3 else (1e-4, (done - 0.3) / 0.7)
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)))
            optimizer.zero_grad()
            logits = net(x)
            loss = F.cross_entropy(logits, y, label_smoothing=smoothing)
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            losses.append(loss.item())
            right += (logits.argmax(1) == y).sum().item()
            step += 1
        rows.append((sum(losses) / len(losses), right / (200 * len(loader))))
    return net, rows


@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.2}, {"clip_norm": 0.3}], ids=["plain", "smooth", "clip"]
)
def test_backprop_is_a_plain_loop_bit_for_bit(options, trainer_in, tmp_path):
    trainer = trainer_in("run", **BACKPROP, **options)
    trainer.fit()
    net, rows = by_hand(
        smoothing=options.get("label_smoothing", 0.0), clip=options.get("clip_norm")
    )
    assert_same(dict(net.named_parameters()), dict(trainer.network.named_parameters()))
    metrics = Run(tmp_path / "run").metrics()
    assert [row["train_loss"] for row in metrics] == pytest.approx([r[0] for r in rows], abs=1e-6)
    assert [row["train_accuracy"] for row in metrics] == [r[1] for r in rows]


def test_one_block_of_dgl_is_backprop(trainer_in):
    a, b = trainer_in("a", **BACKPROP), trainer_in("b", blocks=1)
    a.fit()
    b.fit()
    assert_same(dict(a.network.named_parameters()), dict(b.network.named_parameters()))


def test_validation_and_test_are_measured_without_smoothing(trainer_in, tmp_path):
    """And block by block, on the weights of that epoch."""
    trainer = trainer_in("run", label_smoothing=0.3, epochs=1, eval_batch_size=100)
    trainer.fit()
    row = Run(tmp_path / "run").metrics()[-1]
    splits = data.load("digits")
    trainer.rule.eval()
    for name, part in (("validation", splits.validation), ("test", splits.test)):
        (x, y) = next(Loader(part, len(part), augment=Augment(), train=False).epoch(0))
        with torch.no_grad():
            h = trainer.rule.blocks[0](x)
            scores = [trainer.rule.objectives[0].head(h), trainer.rule.blocks[1](h)]
        for i, z in enumerate(scores):
            assert row[f"{name}_loss_block{i}"] == pytest.approx(F.cross_entropy(z, y).item())
            accuracy = (z.argmax(1) == y).double().mean().item()
            assert row[f"{name}_accuracy_block{i}"] == pytest.approx(accuracy)
        assert row[f"{name}_loss"] == row[f"{name}_loss_block1"]
        assert row[f"{name}_accuracy"] == row[f"{name}_accuracy_block1"]


def test_two_batches_accumulated_are_one_of_twice_the_size(trainer_in):
    """Float tolerance: the mean over 200 images is taken in two halves."""
    options = {"optimizer": {"name": "SGD", "lr": 0.05}, "schedule": {"name": "Constant"}}
    whole = trainer_in("whole", epochs=1, batch_size=640, **options)
    halves = trainer_in("halves", epochs=1, batch_size=320, accumulate=2, **options)
    assert whole.stepper.steps_per_epoch == halves.stepper.steps_per_epoch == 2
    whole.fit()
    halves.fit()
    a, b = parameters(whole), parameters(halves)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-4)


def test_batches_left_over_are_averaged_among_themselves(trainer_in):
    """Six batches, four a step: the second step averages two."""
    trainer = trainer_in("run", epochs=1, accumulate=4)
    seen = []
    backward = trainer.rule.backward

    def spy(x, y, *, scale, on_block):
        seen.append(float(scale(torch.ones(()))))
        return backward(x, y, scale=scale, on_block=on_block)

    trainer.rule.backward = spy
    trainer.fit()
    assert seen == [1 / 4] * 4 + [1 / 2] * 2
    assert trainer.position.step == 2


@pytest.mark.parametrize("optimizer", [{"name": "SGD", "lr": 0.1}, {"name": "AdamW", "lr": 0.01}])
@pytest.mark.parametrize("rule", ["DGL", "Backprop", "Greedy"])
def test_step_per_block_is_the_global_step(rule, optimizer, trainer_in):
    options = {"rule": {"name": rule}, "optimizer": optimizer, "epochs": 1}
    if rule == "Greedy":
        head = {"name": "Linear"}
        options["rule"]["objectives"] = {"name": "Classify", "head": head}
    whole = trainer_in("whole", **options)
    by_block = trainer_in("by-block", step_per_block=True, **options)
    assert len(by_block.stepper.optimizers) == 2
    whole.fit()
    by_block.fit()
    assert_same(parameters(whole), parameters(by_block))


def test_step_per_block_frees_a_blocks_gradients_before_the_next(trainer_in):
    trainer = trainer_in("run", step_per_block=True, epochs=1)
    local = trainer.rule.local_step
    alive = []

    def spy(i, h, batch):
        alive.append([p.grad is not None for p in trainer.rule.parameters()])
        return local(i, h, batch)

    trainer.rule.local_step = spy
    trainer.fit()
    assert len(alive) == 12
    assert not any(map(any, alive))


def test_the_average_of_the_weights(trainer_in, monkeypatch, tmp_path):
    """theta' <- 0.9 theta' + 0.1 theta from the first step on; it is what is evaluated."""
    trainer = trainer_in("run", ema=0.9, epochs=1)
    average: dict[str, torch.Tensor] = {}
    finish = trainer._finish_step

    def spy():
        finish()
        for name, p in parameters(trainer).items():
            average[name] = p if name not in average else 0.9 * average[name] + 0.1 * p

    monkeypatch.setattr(trainer, "_finish_step", spy)
    trainer.fit()
    assert trainer.stepper.ema is not None
    for name, p in trainer.stepper.ema.module.named_parameters():
        torch.testing.assert_close(p, average[name], atol=1e-6, rtol=1e-5)
    (x, y) = next(Loader(data.load("digits").test, 400, augment=Augment(), train=False).epoch(0))
    averaged = trainer.stepper.ema.module.eval()(x)
    accuracy = (averaged.argmax(1) == y).double().mean().item()
    assert Run(tmp_path / "run").metrics()[-1]["test_accuracy"] == pytest.approx(accuracy)
    assert not torch.equal(averaged, trainer.rule.eval()(x))


def test_bf16_is_autocast(trainer_in):
    trainer = trainer_in("run", precision="bf16", epochs=3)
    seen = []
    trainer.rule.blocks[0].register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    trainer.fit()
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in trainer.rule.parameters())


def test_channels_last_gives_close_results(trainer_in):
    model = {"name": "basic_cnn", "channels": 4, "kernel_size": 3, "hidden": 8}
    plain = trainer_in("plain", model=model, epochs=1)
    other = trainer_in("other", model=model, epochs=1, channels_last=True)
    weight = next(p for p in other.rule.parameters() if p.ndim == 4 and p.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    plain.fit()
    other.fit()
    a, b = parameters(plain), parameters(other)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-3, rtol=1e-2)


def scaled(trainer: Trainer) -> Trainer:
    """The loss scaled by a power of two, as with --precision 16, but on the CPU in float32."""
    trainer.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    return trainer


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_norm": 0.3}, {"step_per_block": True}, {"step_per_block": True} | BACKPROP],
)
def test_a_scaled_loss_takes_the_same_steps(options, trainer_in):
    """A power of two is exact, so it must not show; also where the scale changes in between."""
    plain = trainer_in("plain", epochs=1, **options)
    other = scaled(trainer_in("scaled", epochs=1, **options))
    plain.fit()
    other.fit()
    assert other.stepper.scaler is not None
    assert other.stepper.scaler.get_scale() == 8192.0  # grew at steps 2, 4 and 6
    assert_same(parameters(plain), parameters(other))


def test_a_scale_that_is_too_large_skips_the_step(trainer_in):
    trainer = scaled(trainer_in("run", epochs=1, clip_norm=1.0))
    before = parameters(trainer)
    trainer.stepper.scaler.scale(torch.ones(()))  # makes the scale's tensor
    trainer.stepper.scaler._scale.fill_(torch.inf)
    x, y = next(iter(trainer.train_loader))
    trainer._backward(x, y, 1)
    trainer._finish_step()
    assert_same(before, parameters(trainer))


@pytest.mark.slow
# PyTorch itself asks for .grad while it compiles; it hides this warning, but not as an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_blocks_train_the_same(trainer_in):
    plain = trainer_in("plain", epochs=1)
    compiled = trainer_in("compiled", epochs=1, compile=True)
    plain.fit()
    compiled.fit()
    a, b = parameters(plain), parameters(compiled)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-4, rtol=1e-3)


def test_the_best_epoch_is_chosen_on_validation(trainer_in, monkeypatch, tmp_path):
    """Whatever the test accuracy says; of equal ones, the first."""
    trainer = trainer_in("run", epochs=4)
    row = Trainer._row
    validation, test = [0.2, 0.6, 0.6, 0.5], [0.9, 0.1, 0.3, 1.0]

    def invented(self, results):
        e = self.position.epoch
        made = {"validation_accuracy": validation[e], "test_accuracy": test[e]}
        return row(self, results) | made

    monkeypatch.setattr(Trainer, "_row", invented)
    trainer.fit()
    assert Run(tmp_path / "run").load("best")["epoch"] == 2
    assert Run(tmp_path / "run").load("last")["epoch"] == 4
    assert trainer.position.best == 0.6


def test_without_validation_nothing_is_chosen(trainer_in, tmp_path):
    trainer_in("run", epochs=1, data={"name": "digits", "validation": 0.0}).fit()
    assert Run(tmp_path / "run").load("best") is None
    assert "validation_loss" not in Run(tmp_path / "run").metrics()[0]


def test_the_learning_rate_of_every_step(trainer_in):
    trainer = trainer_in("run", epochs=2, schedule={"name": "Step", "at": [0.5], "warmup": 0.5})
    rates = []
    finish = trainer._finish_step

    def spy():
        rates.extend({group["lr"] for group in trainer.stepper.optimizers[0].param_groups})
        finish()

    trainer._finish_step = spy
    trainer.fit()
    # 6 steps an epoch: 3 of warm-up (1/4, 2/4, 3/4), then half of the other 9.
    assert rates == pytest.approx([0.1 * f for f in [0.25, 0.5, 0.75] + [1] * 5 + [0.1] * 4])


@pytest.mark.parametrize("per_block", [False, True])
def test_factors_of_the_learning_rate(per_block, trainer_in):
    """Heads, the last block and the other blocks move by their own rates, on the same gradients."""
    moved = {}
    for name, factors in {"one": {}, "own": {"lr_auxiliary": 0.25, "lr_last": 3.0}}.items():
        sgd = {"name": "SGD", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}
        constant = {"name": "Constant"}
        trainer = trainer_in(
            f"{name}-{per_block}",
            optimizer=sgd,
            schedule=constant,
            epochs=1,
            batch_size=1000,  # one step
            step_per_block=per_block,
            **factors,
        )
        before = {n: p.detach().clone() for n, p in trainer.rule.named_parameters()}
        trainer.fit()
        assert trainer.position.step == 1
        moved[name] = {n: p.detach() - before[n] for n, p in trainer.rule.named_parameters()}
    for name, step in moved["one"].items():
        assert step.abs().max() > 0
        factor = 0.25 if name.startswith("objectives") else 1.0 if "fc1" in name else 3.0
        torch.testing.assert_close(moved["own"][name], factor * step, atol=1e-6, rtol=1e-4)


def test_divergence_names_block_step_and_rate(trainer_in, tmp_path):
    options = {"optimizer": {"name": "SGD", "lr": 1e30}, "schedule": {"name": "Constant"}}
    with pytest.raises(NonFiniteLoss, match=r"block \d \(.+\) is not finite at step \d, learning"):
        trainer_in("run", **options).fit()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "learning rate 1e+30" in log


def test_divergence_keeps_the_last_good_checkpoint(trainer_in, tmp_path):
    trainer = trainer_in("run", epochs=3, save_every=2)

    def poison(module, inputs, output):
        return output * math.nan if trainer.position.step == 9 else output

    trainer.rule.blocks[1].register_forward_hook(poison)
    with pytest.raises(
        NonFiniteLoss, match=r"of block 1 \(.*\) is not finite at step 9.*last good"
    ):
        trainer.fit()
    state = Run(tmp_path / "run").load("last")
    assert state["step"] == 8
    assert all(t.isfinite().all() for t in state["rule"].values() if t.is_floating_point())
    trainer_in("run", epochs=3, save_every=2).fit()  # what diverged was not kept


def test_the_first_block_to_diverge_is_named(trainer_in):
    trainer = trainer_in("run", epochs=1, blocks=3)
    trainer.rule.objectives[0].register_forward_hook(
        lambda *a: a[-1] * math.inf if trainer.position.step == 3 else a[-1]
    )
    trainer.rule.objectives[2].register_forward_hook(
        lambda *a: a[-1] * math.inf if trainer.position.step == 2 else a[-1]
    )
    with pytest.raises(NonFiniteLoss, match=r"the loss of block 2 \(.*\) is not finite at step 2"):
        trainer.fit()


def test_weights_that_are_not_finite_are_not_saved(trainer_in, monkeypatch, tmp_path):
    """The last step's loss was finite, and its gradient was not."""
    trainer = trainer_in("run", epochs=2, save_every=1)
    finish = trainer._finish_step

    def finish_step():
        if trainer.position.step == 7:
            next(iter(trainer.rule.blocks[1].parameters())).grad.fill_(torch.inf)
        finish()

    monkeypatch.setattr(trainer, "_finish_step", finish_step)
    with pytest.raises(NonFiniteLoss, match=r"a weight of block 1 \(.*\) is not finite at step 7"):
        trainer.fit()
    state = Run(tmp_path / "run").load("last")
    assert state["step"] == 7
    assert all(t.isfinite().all() for t in state["rule"].values())


class Recorder(Observer):
    def __init__(self):
        self.epochs = []

    def after_epoch(self, epoch, rule, row):
        assert row["epoch"] == epoch
        self.epochs.append(epoch)


def test_an_epoch_is_observed_once_though_it_is_trained_twice(trainer_in, monkeypatch, crash):
    recorder = Recorder()
    save = Run.save

    def dies(run, name, state):
        if name == "last" and state["epoch"] == 2:
            raise crash
        save(run, name, state)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "save", dies)
        with pytest.raises(crash):
            trainer_in("run", observers=[recorder], epochs=3).fit()
    trainer_in("run", observers=[recorder], epochs=3).fit()
    assert recorder.epochs == [1, 2, 3]


def test_the_display_is_told_at_most_twice_a_second(trainer_in, monkeypatch):
    trainer = trainer_in("run", epochs=1, batch_size=20)
    clock = [0.0]

    def tick():
        clock[0] += 0.01
        return clock[0]

    monkeypatch.setattr(module.time, "perf_counter", tick)
    updates, said = [], []
    monkeypatch.setattr(trainer.progress, "update", lambda *a: updates.append((clock[0], a)))
    monkeypatch.setattr(trainer.progress, "start", lambda *a: said.append(a))
    trainer.fit()
    assert said == [(1, 1, 1280, 0)]
    times = [at for at, _ in updates[:-1]]
    assert len(times) == 1  # 64 batches, a tick of 10 ms each
    done, loss, accuracy = updates[-1][1]
    assert (done, 0 < loss < 10, 0 <= accuracy <= 1) == (1280, True, True)


def test_seeding_a_block_keeps_nothing(trainer_in, monkeypatch):
    """The bits of `torch.manual_seed`, which keeps stack traces."""
    torch.manual_seed(2**63 - 1)
    wanted = torch.rand(3)
    seed_generators(torch.device("cpu"), 2**63 - 1)
    assert torch.equal(torch.rand(3), wanted)
    trainer = trainer_in("run")
    x, y = next(iter(trainer.train_loader))
    monkeypatch.setattr(torch, "manual_seed", None)
    trainer._backward(x, y, 1)


def test_a_step_adds_no_copy_from_the_host(trainer_in):
    """What the trainer does beside the rule reads no number and sends no index to the device."""
    trainer = trainer_in("run")
    x, y = next(iter(trainer.train_loader))
    report = trainer._backward(x, y, 1)
    with torch.profiler.profile() as profile:
        trainer.finite.note(
            trainer.state.metrics.add(report.local_losses, report.local_logits, y), 0
        )
    called = {event.key for event in profile.key_averages()}
    assert "aten::argmax" in called
    assert not called & {
        "aten::item",
        "aten::_local_scalar_dense",
        "aten::index",
        "aten::index_put_",
        "aten::nonzero",
        "aten::lift_fresh",
    }


def test_the_network_file_has_every_name(trainer_in, tmp_path):
    """Tied weights under both names, and what a cut leaves out."""
    trainer = trainer_in("run", epochs=1)
    trainer.network.register_parameter("unused", nn.Parameter(torch.ones(2)))
    trainer.fit()
    saved = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    assert saved.keys() == trainer.network.state_dict().keys()
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(saved[name], tensor)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"accumulate": -1},
        {"eval_batch_size": 0},
        {"label_smoothing": 1.0},
        {"ema": 1.0},
        {"clip_norm": 0.0},
        {"lr_last": -0.1},
        {"lr_auxiliary": math.inf},
        {"clip_norm": math.nan},
        {"save_every": -1},
        {"seed": -1},
        {"seed": 1 << 63},
        {"step_per_block": True, "accumulate": 2},
        {"step_per_block": True, "clip_norm": 1.0},
    ],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(InputError, match=rf"(--|Settings\(){next(iter(settings))}") as error:
        Settings(**settings)
    assert "\n" not in str(error.value)


def test_devices():
    assert fabric_for("cpu").device == torch.device("cpu")
    for device in ("cuda:7", "tpu", "cpu:1", "", "cuda:x"):
        with pytest.raises(InputError, match="no such device"):
            fabric_for(device)
    with pytest.raises(InputError, match="--precision 16 --device cpu"):
        fabric_for("cpu", "16")


def test_a_checkpoint_of_another_network(trainer_in):
    trainer = trainer_in("run", model={"name": "mlp", "layers": 2, "width": 12})
    state = trainer_in("other", model={"name": "mlp", "layers": 2, "width": 13}).state.state_dict()
    with pytest.raises(InputError, match=r"to another network or rule: .* is \(.*\) there"):
        trainer.state.load_state_dict(state)
