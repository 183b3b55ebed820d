"""Linear probes: what they find, and that the network does not notice."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from layerwise import Blocks, InputError, analysis, cut, rules
from layerwise.analysis import exits, linear_probe
from layerwise.data import Augment, Images, Loader


def _loaders(shape=(8, 8, 2), count=120, batch=20) -> tuple[Loader, Loader]:
    """Three classes: which third of the images' rows is bright, in the first channel."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(100, (count, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 3
    for image, y in zip(images, labels, strict=True):
        image[2 * y : 2 * y + 2, :, 0] += 120
    both = Images(images, labels)
    train = Loader(both, batch, train=True, views=2, augment=Augment())
    return train, Loader(both, 50, train=False)


class Erase(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h * 0


def test_what_a_block_has_lost_is_not_found() -> None:
    """The image tells the class, a constant does not: a third, by chance."""
    train, test = _loaders()
    blocks = Blocks([nn.Identity(), nn.AvgPool2d(2), Erase()])
    first, second, third = linear_probe(blocks, train, test, pool=None, epochs=5)
    assert first == second == 1.0
    assert third == pytest.approx(1 / 3, abs=0.01)


def test_the_network_does_not_notice() -> None:
    case = networks.cnn(dropout=0.3)
    rule = rules.DGL(case.blocks, head=networks.SMALL_HEAD)
    rule.backward(case.x, case.y)
    rule.blocks[1].eval()
    modes = [m.training for m in rule.modules()]
    state = {k: v.clone() for k, v in rule.state_dict().items()}
    gradients = networks.grads(rule)
    random = torch.get_rng_state()
    found = linear_probe(rule, *_loaders(), epochs=1)
    assert len(found) == len(rule.blocks)
    networks.assert_same(dict(rule.state_dict()), state)
    networks.assert_same(networks.grads(rule), gradients)
    assert [m.training for m in rule.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_it_repeats_and_depends_on_its_seed_alone() -> None:
    case = networks.cnn()
    a, b = (linear_probe(case.blocks, *_loaders(), epochs=2, seed=1) for _ in range(2))
    torch.manual_seed(7)
    assert a == b == linear_probe(case.blocks, *_loaders(), epochs=2, seed=1)


def test_under_autocast() -> None:
    """The network runs in bf16; the probes' weights are theirs of every step."""
    blocks = Blocks([nn.Flatten(), nn.Linear(8 * 8 * 2, 64)])
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_probe(blocks, *_loaders(), epochs=5)
    assert found == (1.0, 1.0)


def test_tokens() -> None:
    """Rows of an image as tokens, averaged two by two: each class has brightened one pair."""

    class Tokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(3).transpose(1, 2)  # (B, C, H, W) -> (B, H, C)

    assert linear_probe(Blocks([Tokens()]), *_loaders(), pool=4, epochs=5) == (1.0,)


def test_no_epoch() -> None:
    with pytest.raises(InputError, match=r"linear_probe\(epochs=0\): give 1 or more"):
        linear_probe(networks.mlp().blocks, *_loaders(), epochs=0)


def test_a_batch_of_one() -> None:
    with pytest.raises(InputError, match="got a batch of one sample"):
        linear_probe(networks.mlp().blocks, *_loaders(batch=1))


def test_any_iterable_of_batches():
    """A `DataLoader` and its data set give what a list of the same batches gives, and the global
    generator is as before."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 6), torch.arange(40) % 2
    x[:, 0] += 3 * y
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    rule = rules.DGL(cut(model, blocks=2, example=x))
    before = torch.get_rng_state()
    samples = TensorDataset(x, y)
    sources = ([(x[:20], y[:20]), (x[20:], y[20:])], DataLoader(samples, 20), samples)
    found = [analysis.linear_separability(rule, source) for source in sources]
    found += [tuple(e["accuracy"] for e in exits.evaluate(rule, s, 2)[0]) for s in sources]
    assert found[0] == found[1] == found[2]
    assert found[0][0] == 1.0
    assert found[3] == found[4] == found[5]
    assert analysis.linear_probe(rule, sources[1], samples, epochs=1) == analysis.linear_probe(
        rule, DataLoader(samples, 20), sources[0], epochs=1
    )
    assert torch.equal(torch.get_rng_state(), before)
