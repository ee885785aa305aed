"""Angles in a flow: a density on the circle × R^n, its wrap-around, and what trains it."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import DOUBLE, enlarged, max_difference, near, refused, seeded_draw
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, VonMises
from torch.testing import assert_close

import cnf
from cnf.datasets import Table
from cnf.fields import FIELDS, ConcatSquash, make_field
from cnf.flow.cylinder import Cylinder
from cnf.layers import LAYERS, SCALINGS, Circular, Concatenate, Identity, Positive
from cnf.plotting import density_figure
from cnf.tables.schema import Column, Schema
from cnf.training import COUPLINGS
from cnf.training.couplings import optimal_transport
from cnf.training.objectives import FlowMatching
from cnf.training.recipes import Recipe
from cnf.utils.angles import circular_columns, nearest_image, wrap

TURN = 2 * math.pi
T = torch.tensor(0.3, dtype=DOUBLE)
# One of the two lies across the ends of the interval.
TRUTH = MixtureSameFamily(
    Categorical(torch.tensor([0.6, 0.4])),
    VonMises(torch.tensor([math.pi - 0.2, 0.5]), torch.tensor([8.0, 3.0])),
)
BATCHES = {"batch_size": 128, "matching_batch": 512, "validation_rows": 200, "validations": 2}
RECIPE = Recipe(hidden=(32, 32), ema_decay=0.98, learning_rate=2e-2, **BATCHES)
FIXED = {"method": "rk4", "step_size": 0.1, "step": "joint"}  # with no error of a tolerance


def bent(dim, circular, scale=2.0, **options):
    options = {"hidden": (8, 8), "zero_last": False, **FIXED, **options}
    return enlarged(cnf.ffjord(dim, circular=circular, **options).double(), scale)


def midpoints(low, high, count):
    return low + (high - low) * (torch.arange(count, dtype=DOUBLE) + 0.5) / count


@pytest.mark.parametrize(
    ("name", "scaling"),
    [*((name, "standardize") for name in FIELDS), *(("concat", scaling) for scaling in SCALINGS)],
)
def test_the_density_integrates_to_one_over_circle_and_line(name, scaling):
    flow = bent(2, (0,), 1.3, field=name, scaling=scaling, hidden=(6, 6))
    norm = flow.layers[-2].fit(torch.randn(50, 2, dtype=DOUBLE) * 2 + 1)
    low, high = (float(norm.loc[1] + side * norm.scale[1]) for side in (-12, 12))
    count = 720 if scaling == "gaussianize" else 120  # whose density has corners
    grid = torch.cartesian_prod(midpoints(-math.pi, math.pi, 40), midpoints(low, high, count))
    with torch.no_grad():
        density = flow.log_prob(grid).exp()
    assert density.mean().item() * TURN * (high - low) == pytest.approx(1, abs=1e-3)
    by_angle = density.reshape(40, count).sum(1)
    assert by_angle.max() > 1.05 * by_angle.min()  # it is not the base's


@pytest.mark.parametrize("name", FIELDS)
def test_the_density_is_the_same_a_turn_further(name):
    flow = bent(3, (0, 2), field=name, hidden=(6, 5))
    x = torch.randn(30, 3, dtype=DOUBLE)
    turns = TURN * torch.randint(-3, 4, (30, 3)).double() * torch.tensor([1.0, 0.0, 1.0])
    inside = cnf.Flow(flow.base, flow.layers[:-1])  # which wraps nothing
    with torch.no_grad():
        log_prob = flow.log_prob(x)
        for each in (flow, inside):
            near(each.log_prob(x + turns), log_prob, 1e-10)
        shifted = flow.log_prob(x + torch.tensor([0.0, TURN, 0.0]))
    assert max_difference(log_prob, shifted) > 1e-3
    # Degrees are equal to the last bit.
    columns = [Concatenate([Circular(1, 0.0, 360.0), Identity(1)], [[0], [1]])]
    flow = cnf.ffjord(2, field=name, columns=columns)
    x = torch.tensor([[90.0, 1.0], [359.0, -1.0]])
    turned = x + torch.tensor([360.0, 0.0])
    assert torch.equal(flow.log_prob(x), flow.log_prob(turned))
    assert torch.equal(flow.score(x).log_prob, flow.score(turned).log_prob)


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
    near(field.with_divergence(T, x), field.with_divergence(T, turned), 1e-12)
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


@pytest.mark.parametrize("name", ["concat_squash", "residual"])
def test_gradients_of_log_prob_are_finite_differences(name):
    flow = bent(2, (1,), 1.0, field=name, hidden=(3, 3), context_dim=1, step_size=0.25)
    x = torch.tensor([[0.3, 3.0], [-1.0, 3.5]], dtype=DOUBLE, requires_grad=True)
    context = torch.randn(2, 1, dtype=DOUBLE, requires_grad=True)

    def log_prob(x, context, *_):
        return flow.log_prob(x, context)

    assert torch.autograd.gradcheck(log_prob, (x, context, *flow.parameters()), fast_mode=True)


def test_draws_follow_the_density():
    """The mass of where it is above the base's, by draws and by quadrature."""
    flow, angles = bent(1, (0,), 4.0), midpoints(-math.pi, math.pi, 400)
    with torch.no_grad():
        density = flow.log_prob(angles.unsqueeze(1)).exp()
    above = density > 1 / TURN
    mass = density[above].mean().item() * above.double().mean().item() * TURN
    assert mass > above.double().mean() + 0.05
    cells = (flow.sample(20_000) + math.pi) / TURN * 400
    found = above[cells.flatten().long()].double().mean().item()
    assert found == pytest.approx(mass, abs=4 * math.sqrt(mass * (1 - mass) / 20_000))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE])
@pytest.mark.parametrize(("low", "high"), [(0.0, 360.0), (-math.pi, math.pi), (0.1, 24.3)])
def test_both_ways_end_within_the_interval(dtype, low, high):
    """Rounding leaves no interval by its upper end, also from points around many turns' ends."""
    layer = Circular(1, low, high)
    steps = torch.tensor([sign * 2.0**-k for k in range(-14, 60) for sign in (-1, 0, 1)]).double()
    turns = TURN * torch.arange(-20, 21, dtype=DOUBLE) - math.pi
    starts = torch.cat([turns, torch.tensor([0.0, low, high, math.pi], dtype=DOUBLE)])
    points = (starts[:, None] + steps).flatten()
    points = torch.cat([points, 50 * torch.randn(50_000, dtype=DOUBLE)]).to(dtype).unsqueeze(1)
    z, x = layer.pull(points).value, layer.push(points).value
    assert z.dtype == x.dtype == dtype
    assert ((z >= -math.pi) & (z < math.pi)).all()
    assert ((x >= low) & (x < high)).all()
    assert (wrap(points) < math.pi).all()
    if dtype in (torch.float32, DOUBLE):
        assert wrap(layer.pull(x).value - points)[-50_000:].abs().max() <= 2e-4
        flow = cnf.Flow(Cylinder(torch.empty(0), torch.empty(0), (0,)), [layer]).to(dtype)
        assert flow.sample(100_000).max() < high


def test_what_is_no_number_stays_none_and_columns_know_which_are_circular():
    x = torch.tensor([[math.nan, 0.0], [0.0, math.nan], [math.inf, 0.0]])
    layer = Circular(2, 0.0, 360.0)
    assert layer.push(x).value.isnan().any(1).all()
    assert layer.pull(x).value.isnan().any(1).all()
    layers = [Positive([0.0]), Circular(2), Identity(1)]
    assert Concatenate(layers, [[1], [3, 0], [2]]).circular == (1, 2)
    assert Concatenate([Identity(1)], [[0]]).circular is None


def test_the_base_is_uniform_beside_normal():
    base = Cylinder(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]), (1,))
    z = base.sample((20_000,))
    assert z.shape == (20_000, 3)
    marginals = [("norm", (1.0, 0.5)), ("uniform", (-math.pi, TURN)), ("norm", (-2.0, 3.0))]
    for column, (name, args) in zip(z.T.numpy(), marginals, strict=True):
        assert kstest(column, name, args=args).pvalue > 1e-3
    normal = Independent(Normal(base.loc, base.scale), 1).log_prob(z[:, [0, 2]])
    assert_close(base.log_prob(z), normal - math.log(TURN))
    assert torch.equal(base.log_prob(z), base.log_prob(z + torch.tensor([0.0, 9.0, 0.0])))
    assert base.rsample((4, 5)).shape == (4, 5, 3)


def test_a_flow_of_angles_alone_and_its_paths():
    flow = cnf.ffjord(2, circular=(0, 1), hidden=(4,), scaling="whiten")
    assert cnf.fit(flow, torch.rand(100, 2) * TURN, steps=2).steps == 2
    assert flow.layers[-2].fitted
    assert_close(flow.layers[-2].loc, torch.zeros(2))
    assert flow.path(flow.base.sample((7,)), 4).shape == (4, 7, 2)
    # Paths of angles are drawn within the interval.
    flow = bent(2, (0,), hidden=(8,))
    path = flow.path(flow.base.sample((300,)), 5)
    assert ((path[..., 0] >= -math.pi) & (path[..., 0] < math.pi)).all()
    assert len(density_figure(flow, flow.sample(300).numpy(), None).subfigs) == 2


@pytest.mark.parametrize("name", SCALINGS)
def test_a_scaling_leaves_angles_alone(name):
    x = torch.randn(200, 4, dtype=DOUBLE) @ torch.randn(4, 4, dtype=DOUBLE) + 3
    real = x[:, [0, 2, 3]]
    layer = LAYERS[name](4, circular=(1,)).double().fit(x)
    z, log_det = layer.inverse(x)
    others, wanted = LAYERS[name](3).double().fit(real).inverse(real)
    assert_close(z[:, [0, 2, 3]], others)
    assert_close(log_det, wanted)
    assert torch.equal(z[:, 1], x[:, 1])
    assert_close(layer(z)[0], x)
    again = LAYERS[name](**layer.config()).double()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.inverse(x)[0], z)
    x[:, 1] = 2.0
    refused("constant: column 1", LAYERS[name](4, circular=(1,)).fit, x)


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
    flow = cnf.Flow(base, [cnf.CNF(Recording()) for _ in range(blocks)])
    flow.base.sample = lambda shape: z
    loss = FlowMatching(coupling)(flow, x).value
    change = x - z + torch.tensor([TURN, 0.0], dtype=DOUBLE)
    if coupling == "independent" and blocks == 1:
        assert loss.item() == pytest.approx(change.square().sum(1).mean().item())
        ((t, at),) = seen
        assert_close(at, z + t * change)
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


@given(st.lists(st.floats(-4, 4), min_size=16, max_size=16))
@settings(max_examples=30, deadline=None)
def test_optimal_transport_is_the_best_of_all_permutations(numbers):
    z, x = torch.tensor(numbers, dtype=DOUBLE).reshape(2, 4, 2)

    def cost(points):
        return (nearest_image(x, points, (1,)) - points).square().sum().item()

    best = min(cost(z[list(order)]) for order in itertools.permutations(range(4)))
    assert cost(optimal_transport(z, x, (1,))) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(
    ("objective", "steps"),
    [
        pytest.param("mle", 50, marks=pytest.mark.slow),  # both are parts of the hybrid
        pytest.param("matching", 150, marks=pytest.mark.slow),
        ("hybrid", 50),
    ],
)
def test_training_on_a_density_across_the_ends(objective, steps):
    """KL to the truth, by quadrature over the hours of a day."""
    x = (TRUTH.sample((10_000, 1)) + math.pi) / TURN * 24
    recipe = replace(RECIPE, objective=objective)
    flow = recipe.flow(1, columns=[Circular(1, 0.0, 24.0)])
    cnf.fit(flow, x, recipe=recipe, steps=steps)
    angles = midpoints(-math.pi, math.pi, 500).float()
    with torch.no_grad():
        found = flow.log_prob((angles.unsqueeze(1) + math.pi) / TURN * 24) + math.log(24 / TURN)
    truth = TRUTH.log_prob(angles)
    assert ((truth - found) * truth.exp()).mean().item() * TURN < 0.06


def test_a_real_column_that_depends_on_the_angle():
    angle = TRUTH.sample((6000,))
    rows = torch.stack([3 + 2 * torch.cos(angle) + 0.5 * torch.randn(6000), angle], 1)
    rows[:, 1] = torch.rad2deg(rows[:, 1]) + 360  # from 180 to 540, whatever the interval
    recipe = replace(RECIPE, scaling="whiten", learning_rate=3e-2)
    layers = [Identity(1), Circular(1, -180.0, 180.0)]
    flow = recipe.flow(2, columns=[Concatenate(layers, [[0], [1]])])
    train, fresh = rows[:5000], rows[5000:]
    cnf.fit(flow, train, recipe=recipe, steps=60)
    angles = torch.deg2rad(fresh[:, 1] - 360)
    truth = TRUTH.log_prob(angles) + math.log(TURN / 360)
    truth = truth + Normal(3 + 2 * torch.cos(angles), 0.5).log_prob(fresh[:, 0])
    with torch.no_grad():
        assert (truth - flow.log_prob(fresh)).mean().item() < 0.12
    drawn = flow.sample(2000)
    assert ((drawn[:, 1] >= -180) & (drawn[:, 1] < 180)).all()
    left = drawn[:, 0] - 3 - 2 * torch.cos(torch.deg2rad(drawn[:, 1]))
    assert left.std().item() == pytest.approx(0.5, abs=0.12)


def test_a_saved_flow_comes_back(tmp_path):
    options = {"field_options": {"x_features": 4, "harmonics": 2}, "zero_last": False}
    flow = cnf.ffjord(3, circular=(0, 2), field="concat", scaling="whiten", blocks=2, **options)
    flow.layers[-2].fit(torch.randn(40, 3) + 2)
    for folder, saved in (("single", flow), ("double", flow.double())):
        cnf.save(saved, tmp_path / folder)
        again, x = cnf.load(tmp_path / folder), torch.randn(9, 3).to(saved.like)
        assert torch.equal(again.log_prob(x), saved.log_prob(x))
        assert torch.equal(*(seeded_draw(each, 4) for each in (saved, again)))
        assert again.circular == (0, 2)
        assert again.base.sample((2,)).dtype == saved.like.dtype


def test_a_circular_column_is_anything_finite_and_never_inferred():
    angle = Column("direction", "circular", 0.0, 360.0)
    assert (angle.describe(), angle.width) == ("direction: circular from 0 to 360", 1)
    assert not angle.of_kind.outside(np.array([-720.0, 0.0, 360.0, 1e6])).any()
    assert Schema.of(Schema((angle,)).json(), ["direction"]) == {"direction": angle}
    angles = np.random.default_rng(0).uniform(0, 360, (400, 1))
    inferred = Schema.infer(Table("angles", angles, ("direction",)))
    assert inferred.columns[0].kind != "circular"
    assert inferred.with_columns({"direction": angle}).columns == (angle,)


def of_base(circular, layer):
    """A flow whose layer says other columns than its base."""
    return cnf.Flow(cnf.ffjord(2, circular=circular).base, [layer])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cnf.ffjord(2, circular=(2,)), r"circular columns from 0 to 1, .*; got \[2\]"),
        (lambda: cnf.ffjord(2, circular=(0, 0)), r"each once; got \[0, 0\]"),
        (lambda: cnf.ffjord(2, circular=(-1,)), r"got \[-1\]"),
        (lambda: circular_columns([1.5], 3), r"got \[1.5\]"),
        (lambda: ConcatSquash(2, circular=(0,), harmonics=0), "harmonics of at least 1; got 0"),
        (lambda: cnf.Standardize(2, circular=(5,)), "circular columns from 0 to 1"),
        (lambda: Circular(1, 360.0, 0.0), "lower one first; got 360.0 and 0.0"),
        (lambda: Circular(1, 0.0, math.inf), "finite ends"),
        (lambda: Cylinder(torch.zeros(2), torch.ones(1), (0,)), "of one shape"),
        (lambda: Cylinder(torch.zeros(1), -torch.ones(1), (0,)), "scale"),
        (lambda: of_base((0,), cnf.CNF(ConcatSquash(2, circular=(1,)))), r"of CNF; got \[1\]"),
        (lambda: of_base((), Circular(2)), r", \[\], to be those of Circular; got \[0, 1\]"),
        (
            lambda: of_base((1,), cnf.Standardize(2)),
            r"base's circular columns, \[1\], to be those of Standardize; got \[\]",
        ),
        (lambda: Column("a", "circular"), "both bounds for kind circular in column 'a'; got 0"),
        (lambda: Column("a", "circular", 3.0, 3.0), "lower bound below"),
    ],
)
@pytest.mark.usefixtures("validating")  # which torch.compile switches off, in an earlier test
def test_mistakes(make, message):
    refused(message, make)
