"""What `layerwise list` reads from the source is what the registry and the loader have."""

import inspect

import pytest

from layerwise import data
from layerwise.experiment import catalog
from layerwise.experiment.registry import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_the_source_says_what_the_registry_has(kind):
    known = {
        name: catalog.one_line(inspect.getdoc(thing)) for name, thing in sorted(KINDS[kind].items())
    }
    assert catalog.things(kind) == known
    assert list(catalog.things(kind)) == list(known)
    assert all(known.values())


def test_the_source_says_what_the_loader_takes():
    assert catalog.data_sets() == list(data.NAMES)
