"""Angles in a flow: a density on the circle × R^n, its wrap-around, and what trains it.

The density that flows are fitted to is a mixture of two von Mises distributions, one of them
across the ends of the interval, and a normal column whose mean depends on the angle.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import max_difference
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    VonMises,
)

import cnf
from cnf.fields import FIELDS, ConcatSquash, make_field
from cnf.flow.cylinder import Cylinder
from cnf.layers import (
    CNF,
    LAYERS,
    SCALINGS,
    Circular,
    Concatenate,
    Identity,
    Positive,
    Standardize,
)
from cnf.plotting import density_figure
from cnf.tables.schema import Column, Schema
from cnf.training.couplings import COUPLINGS, optimal_transport
from cnf.training.objectives import FlowMatching
from cnf.training.recipes import Recipe
from cnf.utils.angles import circular_columns, nearest_image, wrap

DOUBLE = torch.float64
TURN = 2 * math.pi
T = torch.tensor(0.3, dtype=DOUBLE)
TRUTH = MixtureSameFamily(
    Categorical(torch.tensor([0.6, 0.4])),
    VonMises(torch.tensor([math.pi - 0.2, 0.5]), torch.tensor([8.0, 3.0])),
)


FIXED = {"method": "rk4", "step_size": 0.1, "step": "joint"}  # with no error of a tolerance


def bent(flow, scale=2.0, **solver):
    """A flow in float64, its weights large enough to bend its paths."""
    flow = flow.with_solver(**(solver or {"rtol": 1e-8, "atol": 1e-8})).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(scale)
    return flow


def points(*sides):
    return torch.cartesian_prod(*sides).reshape(-1, len(sides))


def midpoints(low, high, count):
    return low + (high - low) * (torch.arange(count, dtype=DOUBLE) + 0.5) / count


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_density_integrates_to_one_over_circle_and_line(name, scaling):
    torch.manual_seed(1)
    options = {"field": name, "hidden": (6, 6), "zero_last": False}
    flow = cnf.ffjord(2, circular=(0,), scaling=scaling, **options)
    flow.layers[-2].fit(torch.randn(50, 2) * 2 + 1)
    flow = bent(flow, 1.3, **FIXED)
    low = float(flow.layers[-2].loc[1] - 12 * flow.layers[-2].scale[1])
    high = float(flow.layers[-2].loc[1] + 12 * flow.layers[-2].scale[1])
    count = 720 if scaling == "gaussianize" else 120  # whose density has corners
    grid = points(midpoints(-math.pi, math.pi, 40), midpoints(low, high, count))
    with torch.no_grad():
        density = flow.log_prob(grid).exp()
    total = density.mean().item() * TURN * (high - low)
    assert total == pytest.approx(1, abs=1e-3)
    by_angle = density.reshape(40, count).sum(1)
    assert by_angle.max() > 1.05 * by_angle.min()  # it is not the base's


@pytest.mark.parametrize("name", FIELDS)
def test_the_density_is_the_same_a_turn_further(name):
    flow = bent(cnf.ffjord(3, circular=(0, 2), field=name, hidden=(6, 5), zero_last=False), **FIXED)
    x = torch.randn(30, 3, dtype=DOUBLE)
    turns = TURN * torch.randint(-3, 4, (30, 3)).double() * torch.tensor([1.0, 0.0, 1.0])
    inside = cnf.Flow(flow.base, flow.layers[:-1])  # which wraps nothing
    with torch.no_grad():
        log_prob = flow.log_prob(x)
        for each in (flow, inside):
            assert max_difference(each.log_prob(x + turns), log_prob) < 1e-10
        shifted = flow.log_prob(x + torch.tensor([0.0, TURN, 0.0]))
    assert max_difference(log_prob, shifted) > 1e-3


def test_degrees_are_equal_to_the_last_bit_a_turn_further():
    flow = cnf.ffjord(2, columns=[Concatenate([Circular(1, 0.0, 360.0), Identity(1)], [[0], [1]])])
    x = torch.tensor([[90.0, 1.0], [359.0, -1.0]])
    turned = x + torch.tensor([360.0, 0.0])
    assert torch.equal(flow.log_prob(x), flow.log_prob(turned))
    assert torch.equal(flow.score(x).log_prob, flow.score(turned).log_prob)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("hidden", [(7,), (7, 9), (7, 9, 8)])
@pytest.mark.parametrize("circular", [(0,), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("times", ["one", "rows"])
def test_traces_are_autograds(name, hidden, circular, times):
    field = make_field(name, dim=4, hidden=hidden, context_dim=2, circular=circular).double()
    t = T if times == "one" else torch.rand(6, 1, dtype=DOUBLE)
    x, context = torch.randn(6, 4, dtype=DOUBLE), torch.randn(6, 2, dtype=DOUBLE)
    velocity, trace = field.with_divergence(t, x, context)
    for i in range(6):
        at = t if t.ndim == 0 else t[i : i + 1]

        def one(row, at=at, i=i):
            return field(at, row.unsqueeze(0), context[i : i + 1]).squeeze(0)

        jacobian = torch.autograd.functional.jacobian(one, x[i])
        assert trace[i].item() == pytest.approx(jacobian.trace().item(), abs=1e-12)
        torch.testing.assert_close(velocity[i], one(x[i]))
    assert trace.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["ignore", "concat", "squash", "concat_squash"])
def test_drawn_frequencies_are_whole_for_angles_alone(name):
    options = {"x_features": 20, "x_scale": 2.0, "circular": (1,), "harmonics": 2}
    field = make_field(name, dim=3, hidden=(8,), **options).double()
    drawn = field.frequencies[4:24]
    assert (drawn[:, 1] == drawn[:, 1].round()).all()
    assert drawn[:, 1].abs().max() > 1
    assert (drawn[:, [0, 2]] != drawn[:, [0, 2]].round()).all()
    x = torch.randn(9, 3, dtype=DOUBLE)
    turned = x + TURN * torch.tensor([0.0, 2.0, 0.0], dtype=DOUBLE)
    for one, other in zip(
        field.with_divergence(T, x), field.with_divergence(T, turned), strict=True
    ):
        assert max_difference(one, other) < 1e-12
    again = make_field(name, **field.config()).double()
    again.load_state_dict(field.state_dict())
    assert torch.equal(again(T, x), field(T, x))


def test_more_harmonics_are_finer_waves():
    """A linear map of the features: of K harmonics the highest frequency is K."""
    angles = (torch.arange(64, dtype=DOUBLE) * TURN / 64).unsqueeze(1)
    for harmonics in (1, 4):
        features = make_field("residual", dim=1, circular=(0,), harmonics=harmonics).features
        waves = torch.fft.rfft(features.double()(angles), dim=0).abs().sum(1)
        assert (waves > 1e-9).nonzero().flatten().tolist() == list(range(1, harmonics + 1))


def test_the_form_of_the_trace_counts_the_waves_as_a_layer():
    forms = [ConcatSquash(2, (4,) * depth, circular=(0,)).trace for depth in (1, 2)]
    assert forms == ["closed form", "tangents"]
    assert "exact by tangents" in repr(CNF(ConcatSquash(32, (4, 4), circular=(0,))))
    assert "exact by closed form" in repr(CNF(ConcatSquash(40, (4,), circular=(0,))))
    assert "Hutchinson" in repr(CNF(ConcatSquash(33, (4, 4), circular=(0,))))


@pytest.mark.parametrize("name", FIELDS)
def test_gradients_of_log_prob_are_finite_differences(name):
    options = {"field": name, "hidden": (3, 3), "zero_last": False, "context_dim": 1}
    flow = cnf.ffjord(2, circular=(1,), **options, **FIXED).double()
    x = torch.tensor([[0.3, 3.0], [-1.0, 3.5]], dtype=DOUBLE, requires_grad=True)
    context = torch.randn(2, 1, dtype=DOUBLE, requires_grad=True)

    def log_prob(x, context, *_):
        return flow.log_prob(x, context)

    assert torch.autograd.gradcheck(log_prob, (x, context, *flow.parameters()), fast_mode=True)


@pytest.mark.parametrize("hidden", [(5,), (5, 6), (5, 6, 4)])
@pytest.mark.parametrize("name", FIELDS)
def test_gradients_of_training_are_those_of_backprop(name, hidden):
    field = make_field(name, dim=3, hidden=hidden, circular=(0, 2)).double()
    x = torch.randn(6, 3, dtype=DOUBLE, requires_grad=True)

    def gradients(**settings):
        result = CNF(field, step="joint", **settings).pull(x)
        loss = result.value.square().sum() + result.log_det.sum()
        inputs = [x, *field.parameters()]
        return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)

    for one, other in zip(
        gradients(activation_bytes=2**28), gradients(gradient="backprop"), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_draws_have_the_density_that_they_are_scored_with():
    flow = bent(cnf.ffjord(3, circular=(0, 2), hidden=(8, 8), zero_last=False))
    flow.layers[-2].fit(torch.randn(40, 3) * 3 + 2)
    x, log_prob = flow.sample_and_log_prob((5, 6))
    assert max_difference(flow.log_prob(x).detach(), log_prob) < 1e-6
    scores = flow.score(x)
    assert max_difference(scores.log_prob, log_prob) < 1e-6
    assert (scores.stderr == 0).all()
    drawn, _ = flow.rsample_and_log_prob(3)
    assert drawn.requires_grad


def test_draws_follow_the_density():
    """The mass of where it is above the base's, by draws and by quadrature."""
    flow = bent(cnf.ffjord(1, circular=(0,), hidden=(8, 8), zero_last=False), 4.0, **FIXED)
    angles = midpoints(-math.pi, math.pi, 400)
    with torch.no_grad():
        density = flow.log_prob(angles.unsqueeze(1)).exp()
    above = density > 1 / TURN
    mass = density[above].mean().item() * above.double().mean().item() * TURN
    assert mass > above.double().mean() + 0.05
    cells = (flow.sample(20_000) + math.pi) / TURN * 400
    found = above[cells.flatten().long()].double().mean().item()
    assert found == pytest.approx(mass, abs=4 * math.sqrt(mass * (1 - mass) / 20_000))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize(("low", "high"), [(0.0, 360.0), (-math.pi, math.pi), (0.1, 24.3)])
def test_draws_are_within_the_interval(dtype, low, high):
    """100,000 of them, and points around its ends from where rounding could leave it."""
    layer = Circular(1, low, high)
    flow = cnf.Flow(Cylinder(torch.empty(0), torch.empty(0), (0,)), [layer]).to(dtype)
    z = torch.cat([flow.base.sample((50_000,)), 50 * torch.randn(50_000, 1, dtype=dtype)])
    ends = TURN * torch.arange(-20.0, 21.0, dtype=dtype) - math.pi
    ends = [ends + sign * 2.0**-k for k in range(10, 60) for sign in (-1, 0, 1)]
    z = torch.cat([z, torch.cat(ends).unsqueeze(1)])
    x = layer.push(z).value
    assert x.dtype == dtype
    assert (x >= low).all()
    assert (x < high).all()
    back = layer.pull(x).value
    assert max_difference(wrap(back - z), torch.zeros_like(z)) < (
        2e-4 if z.dtype != DOUBLE else 1e-12
    )
    assert flow.sample(100_000).max() < high


DTYPES = [torch.float16, torch.bfloat16, torch.float32, DOUBLE]
VALUES = st.floats(-1e4, 1e4) | st.floats(-1e-3, 1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("low", "high"), [(0.0, 360.0), (-math.pi, math.pi), (0.1, 24.3)])
@given(value=VALUES)
@example(value=-1e-6)
@settings(max_examples=60, deadline=None)
def test_rounding_leaves_no_interval_by_its_upper_end(dtype, low, high, value):
    layer = Circular(1, low, high)
    for start in (0.0, low, high, math.pi):
        point = torch.tensor([[start + value]], dtype=dtype)
        z, x = layer.pull(point).value, layer.push(point).value
        assert z.dtype == x.dtype == dtype
        assert (-math.pi <= z).all()
        assert (z < math.pi).all()
        assert (low <= x).all()
        assert (x < high).all()
        assert (wrap(point) < math.pi).all()


@given(st.floats(-1e3, 1e3), st.integers(-50, 50))
@settings(max_examples=60, deadline=None)
def test_wrapped_angles(angle, turns):
    angles = torch.tensor([angle, angle + TURN * turns], dtype=DOUBLE)
    one, other = wrap(angles).tolist()
    assert -math.pi <= one < math.pi
    assert math.cos(one) == pytest.approx(math.cos(angle), abs=1e-10)
    assert math.sin(one) == pytest.approx(math.sin(other), abs=1e-10)


def test_what_is_no_number_stays_none():
    x = torch.tensor([[math.nan, 0.0], [0.0, math.nan], [math.inf, 0.0]])
    layer = Circular(2, 0.0, 360.0)
    assert layer.push(x).value.isnan().any(1).all()
    assert layer.pull(x).value.isnan().any(1).all()


def test_the_base_is_uniform_beside_normal():
    base = Cylinder(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]), (1,))
    z = base.sample((20_000,))
    assert z.shape == (20_000, 3)
    assert kstest(z[:, 1].numpy(), "uniform", args=(-math.pi, TURN)).pvalue > 1e-3
    assert kstest(z[:, 0].numpy(), "norm", args=(1.0, 0.5)).pvalue > 1e-3
    assert kstest(z[:, 2].numpy(), "norm", args=(-2.0, 3.0)).pvalue > 1e-3
    normal = Independent(Normal(base.loc, base.scale), 1).log_prob(z[:, [0, 2]])
    torch.testing.assert_close(base.log_prob(z), normal - math.log(TURN))
    assert torch.equal(base.log_prob(z), base.log_prob(z + torch.tensor([0.0, 9.0, 0.0])))
    assert base.rsample((4, 5)).shape == (4, 5, 3)


def test_a_flow_of_angles_alone():
    flow = cnf.ffjord(2, circular=(0, 1), hidden=(4,), scaling="whiten")
    history = cnf.fit(flow, torch.rand(100, 2) * TURN, steps=2)
    assert history.steps == 2
    assert flow.layers[-2].fitted
    torch.testing.assert_close(flow.layers[-2].loc, torch.zeros(2))
    assert flow.path(flow.base.sample((7,)), 4).shape == (4, 7, 2)


@pytest.mark.parametrize("name", SCALINGS)
def test_a_scaling_leaves_angles_alone(name):
    x = torch.randn(200, 4, dtype=DOUBLE) @ torch.randn(4, 4, dtype=DOUBLE) + 3
    layer = LAYERS[name](4, circular=(1,)).double().fit(x)
    plain = LAYERS[name](3).double().fit(x[:, [0, 2, 3]])
    (z, log_det), (others, wanted) = layer.inverse(x), plain.inverse(x[:, [0, 2, 3]])
    torch.testing.assert_close(z[:, [0, 2, 3]], others)
    torch.testing.assert_close(log_det, wanted)
    assert torch.equal(z[:, 1], x[:, 1])
    torch.testing.assert_close(layer(z)[0], x)
    again = LAYERS[name](**layer.config()).double()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.inverse(x)[0], z)
    x[:, 1] = 2.0
    with pytest.raises(ValueError, match="constant: column 1"):
        LAYERS[name](4, circular=(1,)).fit(x)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("blocks", [1, 2])
def test_matching_never_goes_the_long_way_round(coupling, blocks):
    """The velocities that the field is asked for, and where, between angles on either side of π."""
    z = torch.stack([torch.linspace(2, 3, 8), torch.zeros(8)], 1).double()
    x = torch.stack([torch.linspace(-3, -2, 8), 5 * torch.ones(8)], 1).double()
    seen = []

    class Recording(torch.nn.Module):
        def forward(self, t, x):
            seen.append((t, x))
            return torch.zeros_like(x)

    base = Cylinder(torch.zeros(1).double(), torch.ones(1).double(), (0,))
    flow = cnf.Flow(base, [CNF(Recording()) for _ in range(blocks)])
    flow.base.sample = lambda shape: z
    loss = FlowMatching(coupling)(flow, x).value
    change = x - z + torch.tensor([TURN, 0.0], dtype=DOUBLE)
    if coupling == "independent" and blocks == 1:
        assert loss.item() == pytest.approx(change.square().sum(1).mean().item())
        ((t, at),) = seen
        torch.testing.assert_close(at, z + t * change)
    assert loss.item() < TURN**2 / 4 + 26  # the long way round is more than π
    for t, at in seen:
        assert (wrap(at[:, 0]).abs() > 1.9).all()
        assert ((t >= 0) & (t <= 1)).all()


@given(st.lists(st.floats(-10, 10), min_size=6, max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_nearest_turn_is_the_nearest(numbers):
    x, to = torch.tensor(numbers, dtype=DOUBLE).reshape(2, 1, 3)
    found = nearest_image(x, to, (0, 2))
    for column in (0, 2):
        candidates = x[0, column] + TURN * torch.arange(-5.0, 6.0, dtype=DOUBLE)
        least = (candidates - to[0, column]).abs().min().item()
        assert (found - to)[0, column].abs().item() == pytest.approx(least, abs=1e-12)
        assert wrap(found - x)[0, column].abs().item() < 1e-12
    assert found[0, 1] == x[0, 1]


def test_optimal_transport_pairs_angles_across_the_ends():
    x, z = torch.tensor([[3.0], [1.0]]), torch.tensor([[2.0], [-3.0]])
    assert optimal_transport(z, x, (0,)).tolist() == [[-3.0], [2.0]]
    assert optimal_transport(z, x).tolist() == [[2.0], [-3.0]]


@given(st.lists(st.floats(-4, 4), min_size=16, max_size=16))
@settings(max_examples=30, deadline=None)
def test_optimal_transport_is_the_best_of_all_permutations(numbers):
    z, x = torch.tensor(numbers, dtype=DOUBLE).reshape(2, 4, 2)

    def cost(points):
        return (nearest_image(x, points, (1,)) - points).square().sum().item()

    best = min(cost(z[list(order)]) for order in itertools.permutations(range(4)))
    assert cost(optimal_transport(z, x, (1,))) == pytest.approx(best, abs=1e-9)


def excess(flow, low, high):
    """KL of a flow of one angle to the truth, by quadrature."""
    angles = midpoints(-math.pi, math.pi, 1000).float()
    with torch.no_grad():
        x = low + (high - low) * (angles.unsqueeze(1) + math.pi) / TURN
        found = flow.log_prob(x) + math.log((high - low) / TURN)
    truth = TRUTH.log_prob(angles)
    return ((truth - found) * truth.exp()).mean().item() * TURN


@pytest.mark.parametrize(
    ("objective", "steps"), [("mle", 120), ("matching", 1000), ("hybrid", 160)]
)
def test_training_on_a_density_across_the_ends(objective, steps):
    x = (TRUTH.sample((20_000, 1)) + math.pi) / TURN * 24  # hours of the day
    recipe = Recipe(
        objective=objective, hidden=(32, 32), batch_size=256, matching_batch=1024, ema_decay=0.98,
        matching=0.5, learning_rate=2e-2, validations=2, validation_rows=500,
    )  # fmt: skip
    flow = recipe.flow(1, columns=[Circular(1, 0.0, 24.0)])
    cnf.fit(flow, x, recipe=recipe, steps=steps)
    assert excess(flow, 0.0, 24.0) < 0.02


def test_a_real_column_that_depends_on_the_angle():
    angle = TRUTH.sample((10_000,))
    rows = torch.stack([3 + 2 * torch.cos(angle) + 0.5 * torch.randn(10_000), angle], 1)
    rows[:, 1] = torch.rad2deg(rows[:, 1]) + 360  # from 180 to 540, whatever the interval
    recipe = Recipe(
        hidden=(32, 32), batch_size=128, matching_batch=512, ema_decay=0.98, matching=0.5,
        validations=2, validation_rows=500, scaling="whiten",
    )  # fmt: skip
    flow = recipe.flow(
        2, columns=[Concatenate([Identity(1), Circular(1, -180.0, 180.0)], [[0], [1]])]
    )
    train, fresh = rows[:8000], rows[8000:]
    cnf.fit(flow, train, recipe=recipe, steps=200)
    angles = torch.deg2rad(fresh[:, 1] - 360)
    truth = TRUTH.log_prob(angles) + math.log(TURN / 360)
    truth = truth + Normal(3 + 2 * torch.cos(angles), 0.5).log_prob(fresh[:, 0])
    with torch.no_grad():
        kl = (truth - flow.log_prob(fresh)).mean().item()
    assert kl < 0.05
    drawn = flow.sample(4000)
    assert ((drawn[:, 1] >= -180) & (drawn[:, 1] < 180)).all()
    left = drawn[:, 0] - 3 - 2 * torch.cos(torch.deg2rad(drawn[:, 1]))
    assert left.std().item() == pytest.approx(0.5, abs=0.1)


def test_a_saved_flow_comes_back(tmp_path):
    flow = cnf.ffjord(
        3, circular=(0, 2), field="concat", field_options={"x_features": 4, "harmonics": 2},
        scaling="whiten", blocks=2, zero_last=False,
    )  # fmt: skip
    flow.layers[-2].fit(torch.randn(40, 3) + 2)
    for folder, saved in (("single", flow), ("double", flow.double())):
        cnf.save(saved, tmp_path / folder)
        again = cnf.load(tmp_path / folder)
        x = torch.randn(9, 3).to(saved.like)
        assert torch.equal(again.log_prob(x), saved.log_prob(x))
        torch.manual_seed(2)
        one = saved.sample(4)
        torch.manual_seed(2)
        assert torch.equal(again.sample(4), one)
        assert again.circular == (0, 2)
        assert again.base.sample((2,)).dtype == saved.like.dtype


def test_the_paths_of_angles_are_drawn_within_the_interval():
    flow = bent(cnf.ffjord(2, circular=(0,), hidden=(8,), zero_last=False), **FIXED)
    data = flow.sample(300)
    path = flow.path(flow.base.sample((300,)), 5)
    assert (path[..., 0] >= -math.pi).all()
    assert (path[..., 0] < math.pi).all()
    assert len(density_figure(flow, data.numpy(), None).subfigs) == 2


ANGLE = Column("direction", "circular", 0.0, 360.0)


def table(rows=400):
    rng = np.random.default_rng(0)
    category = rng.integers(0, 3, size=rows)
    direction = (rng.vonmises(np.pi, 4.0, size=rows) + category) * 180 / np.pi
    speed = np.exp(np.cos(direction * np.pi / 180) + rng.normal(size=rows))
    return np.stack([category, direction % 360, speed], 1)


def test_a_schema_with_angles():
    values = table()
    kinds = {"direction": ANGLE}
    schema = Schema.infer(values, ["c", "direction", "speed"], {"c": ["a", "b", "d"]})
    assert "circular" not in [column.kind for column in schema.columns]
    schema = schema.with_columns(kinds)
    assert (schema.width, schema.circular) == (4, (2,))
    recipe = Recipe(objective="matching", hidden=(16,), scaling="whiten", validations=2)
    flow = recipe.flow(schema.width, columns=schema.layers(values))
    assert flow.circular == schema.circular
    cnf.fit(flow, torch.from_numpy(values), recipe=recipe, steps=10)
    drawn = flow.sample(500)
    assert ((drawn[:, 1] >= 0) & (drawn[:, 1] < 360)).all()
    schema.check(drawn.double().numpy())
    x = torch.from_numpy(values[:20]).float()
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    turned = x + torch.tensor([0.0, 720.0, 0.0])
    one = flow.score(x, probes=2, generator=generators[0]).log_prob
    other = flow.score(turned, probes=2, generator=generators[1]).log_prob
    assert one.isfinite().all()
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_circular_column_is_anything_finite():
    assert ANGLE.describe() == "direction: circular from 0 to 360"
    assert ANGLE.width == 1
    assert not ANGLE.of_kind.outside(np.array([-720.0, 0.0, 360.0, 1e6])).any()
    again = Schema.of(Schema((ANGLE,)).json(), ["direction"])
    assert again == {"direction": ANGLE}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cnf.ffjord(2, circular=(2,)), r"circular columns from 0 to 1, .*; got \[2\]"),
        (lambda: cnf.ffjord(2, circular=(0, 0)), r"each once; got \[0, 0\]"),
        (lambda: cnf.ffjord(2, circular=(-1,)), r"got \[-1\]"),
        (lambda: circular_columns([1.5], 3), r"got \[1.5\]"),
        (lambda: ConcatSquash(2, circular=(0,), harmonics=0), "harmonics of at least 1; got 0"),
        (lambda: Standardize(2, circular=(5,)), "circular columns from 0 to 1"),
        (lambda: Circular(1, 360.0, 0.0), "lower one first; got 360.0 and 0.0"),
        (lambda: Circular(1, 0.0, math.inf), "finite ends"),
        (lambda: Cylinder(torch.zeros(2), torch.ones(1), (0,)), "of one shape"),
        (lambda: Cylinder(torch.zeros(1), -torch.ones(1), (0,)), "scale"),
        (
            lambda: cnf.ffjord(2, circular=(0,), field_options={"circular": (1,)}),
            r"base's circular columns, \[0\], to be those of CNF; got \[1\]",
        ),
        (
            lambda: cnf.Flow(cnf.ffjord(2).base, [Circular(2)]),
            r"base's circular columns, \[\], to be those of Circular; got \[0, 1\]",
        ),
        (
            lambda: cnf.Flow(cnf.ffjord(2, circular=(1,)).base, [Standardize(2)]),
            r"base's circular columns, \[1\], to be those of Standardize; got \[\]",
        ),
        (lambda: Column("a", "circular"), "both bounds for kind circular in column 'a'; got 0"),
        (lambda: Column("a", "circular", 3.0, 3.0), "lower bound below"),
    ],
)
@pytest.mark.usefixtures("validating")  # which torch.compile switches off, in an earlier test
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_angles_beside_other_columns_are_told_of():
    layers = [Positive([0.0]), Circular(2), Identity(1)]
    assert Concatenate(layers, [[1], [3, 0], [2]]).circular == (1, 2)
    assert Concatenate([Identity(1)], [[0]]).circular is None
