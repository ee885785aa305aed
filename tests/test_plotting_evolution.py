"""Evolution of a flow in the data's coordinates: ends of the time interval and times between."""

import numpy as np
import pytest
import torch

import cnf
from cnf.plotting import base_rows, log_prob_at, log_prob_of, path_of, velocity_at


def flows() -> dict[str, cnf.Flow]:
    """Of each kind: one layer, several with another between, a curved scaling, given something."""
    torch.manual_seed(0)
    rows = torch.randn(400, 2, dtype=torch.float64) * torch.tensor([2.0, 0.5]) + 3
    made = {
        "plain": cnf.ffjord(2, hidden=(8,), zero_last=False),
        "stack": cnf.ffjord(2, hidden=(8,), blocks=3, zero_last=False),
        "gaussianize": cnf.ffjord(2, hidden=(8,), scaling="gaussianize", zero_last=False),
        "context": cnf.ffjord(2, hidden=(8,), context_dim=1, zero_last=False),
    }
    first, *others = made["stack"].layers
    made["stack"] = cnf.Flow(made["stack"].base, [first, cnf.Whiten(2), *others])
    for name, flow in made.items():
        made[name] = fitted_scalings(flow.double(), rows)
    made["single"] = cnf.ffjord(2, hidden=(8,), zero_last=False)
    return made


def fitted_scalings(flow: cnf.Flow, rows: torch.Tensor) -> cnf.Flow:
    with torch.no_grad():
        if flow.context is not None:
            flow.context.fit(torch.randn(50, 1, dtype=torch.float64))
        for layer in reversed(flow.layers):
            if isinstance(layer, cnf.CNF):
                for weight in layer.field.parameters():
                    weight.mul_(1.5)
            else:
                layer.fit(rows)
            rows = layer.pull(rows).value if flow.context is None else rows
    return flow


FLOWS = flows()
DOUBLE = [name for name in FLOWS if name != "single"]  # what differences can be taken of
CONTEXT = np.array([0.3])


def given(name: str, rows: int) -> np.ndarray | None:
    return np.tile(CONTEXT, (rows, 1)) if name == "context" else None


def tensor(name: str, rows: int) -> torch.Tensor | None:
    return torch.full((rows, 1), CONTEXT[0], dtype=torch.float64) if name == "context" else None


@pytest.mark.parametrize("name", FLOWS)
def test_last_frame_is_the_flows_samples(name):
    flow, z = FLOWS[name], base_rows(FLOWS[name], 40)
    path = path_of(flow, z, 4, CONTEXT if name == "context" else None)
    assert path.shape == (4, 40, 2)
    with torch.no_grad():
        samples = flow.transport(z, tensor(name, 40)).double().numpy()
    np.testing.assert_allclose(path[-1], samples, atol=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_density_at_the_end_is_the_flows(name):
    flow, rows = FLOWS[name], np.random.default_rng(0).normal(3, 1, (20, 2))
    own = given(name, 20)
    np.testing.assert_allclose(
        log_prob_at(flow, 1.0, rows, own), log_prob_of(flow, rows, own), atol=1e-3
    )


@pytest.mark.parametrize("time", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", DOUBLE)
def test_density_on_the_way_is_that_of_the_path(name, time):
    """By the Jacobian of the map from base points to where they are, from differences of paths."""
    flow = FLOWS[name].with_solver(rtol=1e-9, atol=1e-9)
    z, step = base_rows(flow, 6), 1e-4
    around = torch.stack([z, *(z + sign * step * e for e in torch.eye(2) for sign in (1, -1))])
    context = CONTEXT if name == "context" else None
    states = path_of(flow, around.reshape(-1, 2), 11, context)[round(10 * time)].reshape(5, 6, 2)
    jacobian = np.stack([states[1] - states[2], states[3] - states[4]], -1) / (2 * step)
    expected = flow.base.log_prob(z).numpy() - np.log(np.abs(np.linalg.det(jacobian)))
    found = log_prob_at(flow, time, states[0], given(name, 6))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", DOUBLE)
def test_velocity_is_the_paths_slope(name):
    flow = FLOWS[name].with_solver(rtol=1e-10, atol=1e-10)
    path = path_of(flow, base_rows(flow, 6), 1001, CONTEXT if name == "context" else None)
    for frame in (100, 450, 800):  # away from where one CNF layer follows another
        slope = (path[frame + 1] - path[frame - 1]) / 0.002
        found = velocity_at(flow, frame / 1000, path[frame], given(name, 6))
        np.testing.assert_allclose(found, slope, atol=1e-3 * np.abs(slope).max())


@pytest.mark.parametrize("time", [-0.1, 1.1])
def test_time_runs_from_zero_to_one(time):
    with pytest.raises(ValueError, match="Expected a time from 0 to 1"):
        log_prob_at(FLOWS["plain"], time, np.zeros((1, 2)))


def test_base_rows_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    base_rows(FLOWS["plain"], 3)
    assert torch.equal(torch.rand(1), expected)
