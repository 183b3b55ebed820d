"""Rules that draw directions keep the contract for given directions."""

import pytest

DRAWN = (
    "layerwise.families.perturbation.draw_seed",
    "layerwise.rules.local_forward_gradient.draw_seed",
)


@pytest.fixture(autouse=True)
def same_directions(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Every step of a rule draws the same directions; `undo()` lets it draw."""
    for name in DRAWN:
        monkeypatch.setattr(name, lambda: 7)
    return monkeypatch
