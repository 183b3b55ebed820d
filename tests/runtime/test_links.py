"""Links to a process that neither sends nor takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from layerwise.errors import LostStage
from layerwise.runtime import link


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another process that never answers."""
    over = threading.Event()

    def waits(*arguments: object, **options: object) -> None:
        over.wait()
        raise RuntimeError("over")

    monkeypatch.setattr(dist, "send", waits)
    monkeypatch.setattr(dist, "recv", waits)
    monkeypatch.setattr(link, "PATIENCE_S", 0.3)
    monkeypatch.setattr(link, "SLICE_S", 0.1)
    yield
    over.set()


def test_a_process_that_takes_nothing(silent: None) -> None:
    sender = link.Sender(1, None, depth=1, timeout_s=0.2)  # type: ignore[arg-type]
    sender.send(torch.zeros(1))  # the thread takes it, and waits for the other process
    sender.send(torch.zeros(1))  # waits to be sent
    with pytest.raises(LostStage, match=r"rank 1 is lost: it took nothing for 0\.3 s"):
        sender.send(torch.zeros(1))


def test_a_process_that_does_not_take_the_end(silent: None) -> None:
    sender = link.Sender(1, None, depth=2, timeout_s=0.2)  # type: ignore[arg-type]
    with pytest.raises(LostStage, match=r"rank 1 is lost: it took nothing for 0\.3 s"):
        sender.close()


def test_a_process_that_sends_nothing(silent: None) -> None:
    receiver = link.Receiver(0, None, timeout_s=0.2)  # type: ignore[arg-type]
    with pytest.raises(LostStage, match=r"rank 0 is lost: it sent nothing for 0\.2 s"):
        receiver.receive()


@pytest.mark.parametrize("wait_s", [0.5, 1.0, 2.5])
def test_waiting_is_divided_into_slices(wait_s: float) -> None:
    found = list(link.slices(wait_s))
    assert sum(found) == pytest.approx(wait_s)
    assert max(found) <= link.SLICE_S
    assert not list(link.slices(0.0))
