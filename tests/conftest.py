"""One thread and a fixed seed for every test, and no waiting for a disk."""

import contextlib
import gc
import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # also of the processes that tests start

import pytest
import torch

torch.set_num_threads(1)
if not torch.accelerator.is_available():
    # `torch.manual_seed` writes down the stack for each kind of device that may still come, which
    # takes longer than many tests.
    for kind in (torch.cuda, torch.xpu, torch.mtia):
        kind.manual_seed_all = lambda seed: None
os.fsync = lambda file: None  # what tests write need not outlive the machine
gc.disable()  # until everything is imported

# A shell's background job ignores Ctrl-C, and so would the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """The collector need not look again and again at what has been imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def seed() -> int:
    torch.manual_seed(0)
    return 0
