"""The posterior in a VAE that knows nothing of it, trained on scikit-learn's digits."""

import difflib
from pathlib import Path

import flow_vae
import plain_vae
import pytest
import torch
from sklearn.datasets import load_digits


@pytest.fixture(scope="module")
def digits():
    """Black and white, the rows to train on and those held out."""
    x = (torch.from_numpy(load_digits().data).float() > 8).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1500]], x[order[1500:]]


def test_it_takes_fewer_than_ten_changed_lines():
    plain, flow = (Path(module.__file__).read_text() for module in (plain_vae, flow_vae))
    lines = [text.split('"""', 2)[2].splitlines() for text in (plain, flow)]  # not the title
    changed = [line for line in difflib.ndiff(*lines) if line.startswith("+ ")]
    assert 0 < len(changed) < 10


def test_it_trains_as_before(digits):
    train, test = digits
    losses = {}
    for module in (plain_vae, flow_vae):
        torch.manual_seed(0)
        model = module.train(module.VAE(), train)
        with torch.no_grad():
            losses[module] = module.loss_of(model, test.repeat(20, 1)).item()
    weights = model.posterior.flow.field.last.linear.weight
    assert weights.abs().max() > 0.01  # the flow has left its start
    assert losses[flow_vae] < losses[plain_vae]
    assert losses[plain_vae] < 22
