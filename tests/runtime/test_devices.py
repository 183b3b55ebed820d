"""Which accelerator each of several processes takes."""

from __future__ import annotations

import pytest
import torch

from layerwise import InputError
from layerwise.runtime.processes import local_device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two GPUs, in the second of four processes."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "taken"),
    [("cuda", "cuda:1"), ("auto", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")],
)
@pytest.mark.usefixtures("two_gpus")
def test_each_process_has_its_own_unless_one_is_named(given: str, taken: str) -> None:
    assert local_device(given) == taken


def test_more_processes_than_gpus(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match=r"--device cuda: .*has 2 .* --device cuda:0") as error:
        local_device("cuda")
    assert "\n" not in str(error.value)


def test_a_single_process_takes_what_it_was_given(two_gpus: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        two_gpus.delenv(name)
    assert local_device("cuda") == "cuda"
