"""Fixtures that several test modules share."""

from collections.abc import Iterator

import pytest
import torch
from torch.distributions import Distribution

import cnf
from cnf.datasets import TOYS

torch.set_num_threads(1)  # the tests' tensors are small: more threads only wait for each other


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fitted() -> cnf.Flow:
    """A flow fitted to moons: small and quick, with as many layers as the toy recipe has."""
    torch.manual_seed(0)
    rows = torch.from_numpy(TOYS["moons"].sample(5000, seed=0))
    flow = cnf.ffjord(2, hidden=(32, 32, 32))
    cnf.fit(flow, rows, steps=200)
    return flow.double()


@pytest.fixture
def validating() -> Iterator[None]:
    """PyTorch's own default, which zuko and Pyro switch off for the whole process on import."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    yield
    Distribution.set_default_validate_args(before)
