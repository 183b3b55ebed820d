"""One thread and a fixed seed for every test."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> int:
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:  # on machines without one, `manual_seed` takes 1 ms, more than many tests
        torch.default_generator.manual_seed(0)
    return 0
