"""Evolution of a flow in the data's coordinates: ends of the time interval and times between."""

import numpy as np
import pytest
import torch
from helpers import enlarged

import cnf
from cnf.plotting import base_rows, log_prob_at, log_prob_of, path_of, velocity_at


@torch.no_grad()
def made(name: str) -> cnf.Flow:
    """Return a flow in float64, for differences, with fitted scalings and curved paths."""
    torch.manual_seed(0)
    rows = torch.randn(400, 2, dtype=torch.float64) * torch.tensor([2.0, 0.5]) + 3
    flow = cnf.ffjord(2, hidden=(8,), zero_last=False, **OPTIONS[name])
    if name == "stack":
        first, *others = flow.layers
        flow = cnf.Flow(flow.base, [first, cnf.Whiten(2), *others])
    if flow.double().context is not None:
        flow.context.fit(torch.randn(50, 1, dtype=torch.float64))
    for layer in reversed(flow.layers):
        if isinstance(layer, cnf.CNF):
            enlarged(layer.field, 1.5)
        else:
            layer.fit(rows)
        rows = layer.pull(rows).value if flow.context is None else rows
    return flow


OPTIONS = {
    "plain": {},
    "stack": {"blocks": 3},
    "gaussianize": {"scaling": "gaussianize"},
    "context": {"context_dim": 1},
}
FLOWS = {name: made(name) for name in OPTIONS}
SINGLE = cnf.ffjord(2, hidden=(8,), zero_last=False)


FLOWS["steps"] = FLOWS["stack"].discretized(8, "rk4")
ONWARDS = FLOWS["plain"].discretized(8, "rk4", learnt=True, towards="data").double()
FLOWS["steps towards the data"] = ONWARDS


def context_of(name: str, *rows: int) -> np.ndarray | None:
    """The context of a flow, repeated for rows where their number is given."""
    return np.full((*rows, 1), 0.3) if name == "context" else None


@pytest.mark.parametrize("name", [*FLOWS, "single"])
def test_last_frame_and_density_at_the_end_are_the_flows(name):
    flow, before = FLOWS.get(name, SINGLE), torch.get_rng_state()
    z, own = base_rows(flow, 20), context_of(name, 20)
    assert torch.equal(torch.get_rng_state(), before)
    path = path_of(flow, z, 4, context_of(name))
    assert path.shape == (4, 20, 2)
    with torch.no_grad():
        samples = flow.transport(z, None if own is None else torch.from_numpy(own))
    np.testing.assert_allclose(path[-1], samples.double(), atol=1e-4)
    rows = np.random.default_rng(0).normal(3, 1, (20, 2))
    expected = log_prob_of(flow, rows, own)
    np.testing.assert_allclose(log_prob_at(flow, 1.0, rows, own), expected, atol=1e-3)


@pytest.mark.parametrize("name", FLOWS)
def test_density_between_is_that_of_the_path(name):
    """By the Jacobian of the map from base points to states, from differences of paths."""
    flow = FLOWS[name].with_solver(rtol=1e-9, atol=1e-9)
    z, step = base_rows(flow, 6), 1e-4
    around = torch.stack([z, *(z + sign * step * e for e in torch.eye(2) for sign in (1, -1))])
    path = path_of(flow, around.reshape(-1, 2), 11, context_of(name)).reshape(11, 5, 6, 2)
    for time in (0.0, 0.2, 0.5, 0.9):
        states = path[round(10 * time)]
        jacobian = np.stack([states[1] - states[2], states[3] - states[4]], -1) / (2 * step)
        expected = flow.base.log_prob(z).numpy() - np.log(np.abs(np.linalg.det(jacobian)))
        found = log_prob_at(flow, time, states[0], context_of(name, 6))
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_velocity_is_the_paths_slope(name):
    flow = FLOWS[name].with_solver(rtol=1e-9, atol=1e-9)
    path = path_of(flow, base_rows(flow, 6), 201, context_of(name))
    for frame in (20, 90, 160):  # away from where one CNF layer follows another
        slope = (path[frame + 1] - path[frame - 1]) / 0.01
        found = velocity_at(flow, frame / 200, path[frame], context_of(name, 6))
        np.testing.assert_allclose(found, slope, atol=1e-3 * np.abs(slope).max())


def test_time_runs_from_zero_to_one():
    for time in (-0.1, 1.1):
        with pytest.raises(ValueError, match="Expected a time from 0 to 1"):
            log_prob_at(SINGLE, time, np.zeros((1, 2)))
