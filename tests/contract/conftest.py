"""Rules that draw directions keep the contract for given directions."""

from pathlib import Path

import networks
import pytest

DRAWN = (
    "layerwise.rules.families.perturbation.draw_seed",
    "layerwise.rules.local_forward_gradient.draw_seed",
)


@pytest.fixture(autouse=True)
def same_directions(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Every step of a rule draws the same directions; `undo()` lets it draw."""
    for name in DRAWN:
        monkeypatch.setattr(name, lambda: 7)
    return monkeypatch


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first way of making a rule meets every network in every run of the tests. Its further
    ways meet the CNN and the transformer; the other networks are slow."""
    for item in items:
        if Path(__file__).parent not in item.path.parents or not isinstance(item, pytest.Function):
            continue
        values = getattr(item, "callspec", None)
        given = {v for v in values.params.values() if isinstance(v, str)} if values else set()
        if given & networks.FURTHER and given & {"mlp", "mlp_norm", "resnet"}:
            item.add_marker(pytest.mark.slow)
