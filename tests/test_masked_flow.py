"""Flows of asked columns given others: densities, draws, and their training on rows with gaps."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cnf.fields.conditional import SUBSET_COLUMNS, Conditional, GroupedQuestions, OneQuestion
from cnf.layers import CNF
from cnf.mixtures.normal import NormalMixture
from cnf.tables import masked_flow
from cnf.tables.masked_flow import MaskedFlow
from cnf.tables.masked_training import ValuesRecipe, draw_questions, fit_values

DIM = 4
TIGHT = {"rtol": 1e-9, "atol": 1e-9, "divergence": "exact"}
GIVEN = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]).bool()
ASKED = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]]).bool()


def banana(rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    z[:, 1] = 0.4 * z[:, 1] + z[:, 0].square() - 1
    z[:, 2] = 0.4 * z[:, 2] + torch.sin(2 * z[:, 1])
    return z


def make_field() -> Conditional:
    torch.manual_seed(0)
    field = Conditional(DIM, (9, 7), time_features=1).double()
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return field


@pytest.fixture(scope="module")
def flow() -> MaskedFlow:
    """A flow of random weights, in double precision."""
    torch.manual_seed(0)
    base = NormalMixture.fit(torch.randn(300, DIM, dtype=torch.float64), components=2)
    flow = MaskedFlow(base, (9, 7)).double().with_solver(**TIGHT)
    for parameter in flow.field.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return flow


def test_field_moves_asked_columns_with_the_trace_over_them():
    field, rows = make_field(), 5
    given, asked = GIVEN.double(), ASKED.double()
    context = torch.cat([given, asked], 1).repeat_interleave(rows, 0)
    x, t = torch.randn(3 * rows, DIM).double(), torch.tensor(0.3).double()
    velocity, trace = field.with_divergence(t, x, context)
    assert not velocity[context[:, DIM:] == 0].any()
    for i in range(len(x)):
        own = context[i : i + 1]
        J = torch.autograd.functional.jacobian(lambda x, own=own: field(t, x[None], own)[0], x[i])
        torch.testing.assert_close(trace[i], J.trace())
    torch.testing.assert_close(
        field.jacobian(field.at(t, own), x[-1:])[1][0], own[0, DIM:, None] * J.T
    )
    grouped = GroupedQuestions(field, given, asked).with_divergence(t, x)
    for i in range(3):
        rows_of = slice(i * rows, (i + 1) * rows)
        one = OneQuestion(field, given[i], asked[i]).with_divergence(t, x[rows_of])
        for found, all_found, wanted in zip(one, grouped, (velocity, trace), strict=True):
            torch.testing.assert_close(found, wanted[rows_of])
            torch.testing.assert_close(all_found[rows_of], wanted[rows_of])
    with pytest.raises(ValueError, match="two hidden widths"):
        Conditional(3, (4,))


def test_trace_over_any_of_many_columns():
    """Of more columns than there are matrices for each subset of."""
    torch.manual_seed(0)
    dim, rows, t = 2 * SUBSET_COLUMNS + 3, 40, torch.tensor(0.3).double()
    field = Conditional(dim, (9, 7)).double()
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    kinds = torch.randint(3, (rows, dim))
    kinds[0], kinds[1] = 2, 0
    context = torch.cat([kinds == 0, kinds == 1], 1).double()
    x = torch.randn(rows, dim).double()
    velocity, trace = field.with_divergence(t, x, context)
    _, columns = field.jacobian(field.at(t, context), x)
    torch.testing.assert_close(trace, columns.diagonal(dim1=1, dim2=2).sum(1))
    assert trace[0] == trace[1] == 0
    assert field.with_divergence(t, x[:0], context[:0])[1].shape == (0,)
    torch.testing.assert_close(velocity, field(t, x, context))


def test_gradients_do_not_depend_on_how_masks_are_shared():
    field, rows = make_field(), 3
    x, scale = torch.randn(2, 3 * rows, DIM).double()
    given, asked = GIVEN.double(), ASKED.double()

    def gradients(layers: list[CNF], contexts: list[Tensor | None]) -> Tensor:
        field.zero_grad()
        size = len(x) // len(layers)
        for layer, own, factors, context in zip(
            layers, x.split(size), scale.split(size), contexts, strict=True
        ):
            pulled = layer.pull(own, context)
            ((pulled.value * factors).sum() + pulled.log_det.sum()).backward()
        return torch.cat([parameter.grad.flatten() for parameter in field.parameters()])

    settings = {**TIGHT, "step": "joint"}
    context = torch.cat([given, asked], 1).repeat_interleave(rows, 0)
    own = gradients([CNF(field, **settings)], [context])
    grouped = gradients([CNF(GroupedQuestions(field, given, asked), **settings)], [None])
    ones = [OneQuestion(field, *masks) for masks in zip(given, asked, strict=True)]
    torch.testing.assert_close(grouped, own, rtol=0, atol=1e-10)
    apart = gradients([CNF(one, **settings) for one in ones], [None] * 3)
    torch.testing.assert_close(apart, own, rtol=0, atol=1e-7)


def test_a_row_has_one_log_prob_whatever_rows_share_its_masks(flow, monkeypatch):
    monkeypatch.setattr(masked_flow, "MIN_GROUP", 20)
    z, rows = torch.randn(60, DIM).double(), 20
    given, asked = (mask.repeat_interleave(rows, 0) for mask in (GIVEN, ASKED))
    z[~(given | asked)] = torch.nan
    with torch.no_grad():
        shared = torch.cat(
            [flow.log_prob(z[i * rows :][:rows], GIVEN[i], ASKED[i]) for i in range(3)]
        )
        torch.testing.assert_close(flow.log_prob(z, given, asked), shared, rtol=0, atol=1e-10)
        few = torch.arange(0, len(z), 5)
        own = flow.log_prob(z[few], given[few], asked[few])
        torch.testing.assert_close(own, shared[few], rtol=0, atol=1e-10)
        grouped, _ = flow.log_prob_of_groups(z, GIVEN, ASKED)
        torch.testing.assert_close(grouped, shared, rtol=0, atol=1e-7)
    assert flow.log_prob(z, given, torch.zeros_like(asked)).eq(0).all()
    assert flow.log_prob(z[:2], GIVEN[0], torch.zeros(DIM).bool()).eq(0).all()
    single = flow.in_double().with_solver(rtol=1e-5, atol=1e-5).float()
    found = single.log_prob(z.float(), given, asked)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), shared, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "asked"), [([], [2]), ([0, 3], [1]), ([1], [0, 2]), ([], [1, 3])]
)
def test_density_integrates_to_one(flow, given, asked):
    masks = torch.zeros(2, DIM).bool()
    masks[0, given], masks[1, asked] = True, True
    grid = torch.linspace(-12, 12, 1001 if len(asked) == 1 else 121).double()
    z = torch.full((len(grid) ** len(asked), DIM), torch.nan).double()
    z[:, given] = 0.7
    z[:, asked] = torch.cartesian_prod(*[grid] * len(asked)).view(-1, len(asked))
    with torch.no_grad():
        p = flow.with_solver(rtol=1e-6, atol=1e-6).log_prob(z, *masks).exp()
    total = p.sum() * (grid[1] - grid[0]) ** len(asked)
    assert total.item() == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_draws_have_the_density_and_leave_the_rest_of_a_row(flow, shared):
    torch.manual_seed(1)
    given, asked = GIVEN[0], ASKED[2]
    z = torch.randn(1, DIM).double().repeat(4000, 1)
    z[:, 1] = torch.nan
    masks = [given, asked] if shared else [given.repeat(len(z), 1), asked.repeat(len(z), 1)]
    if not shared:  # a mask of its own for each row: others, that are not counted
        masks[0][::2], masks[1][::2] = GIVEN[1], torch.tensor([True, False, False, False])
    drawn = flow.with_solver(rtol=1e-5, atol=1e-5).sample(z, *masks)
    kept = ~masks[1].expand_as(z)
    assert torch.equal(drawn[kept].nan_to_num(), z[kept].nan_to_num())
    drawn = drawn if shared else drawn[1::2]
    grid = torch.linspace(-12, 12, 2001).double()
    row = z[:1].repeat(len(grid), 1)
    row[:, 3] = grid
    with torch.no_grad():
        cdf = flow.log_prob(row, given, asked).exp().cumsum(0) * (grid[1] - grid[0])
    places = torch.from_numpy(np.interp(drawn[:, 3].numpy(), grid.numpy(), cdf.numpy()))
    expected = (torch.arange(len(places)) + 0.5) / len(places)
    distance = (places.sort().values - expected).abs().max()
    assert distance < 1.95 / len(places) ** 0.5  # Kolmogorov-Smirnov at a level of 0.001


@pytest.mark.parametrize("shared", [True, False])
def test_a_path_leads_back_to_its_start(flow, shared):
    start = torch.randn(9, DIM).double()
    masks = (GIVEN[0], ASKED[0]) if shared else (GIVEN.repeat(3, 1), ASKED.repeat(3, 1))
    with torch.no_grad():
        end, _ = flow._moved(start, *masks, None, forward=True)
        back, _ = flow._moved(end, *masks, None, forward=False)
    assert (end - start)[masks[1].expand_as(start)].abs().min() > 1e-4
    torch.testing.assert_close(back, start, rtol=0, atol=1e-6)


def test_without_a_field_the_model_is_the_mixture(flow):
    z, none = torch.randn(9, DIM), torch.zeros(DIM).bool()
    start = MaskedFlow(flow.base, (8, 8))
    a = torch.tensor([True, False, True, False])
    parts = start.log_prob(z, none, a) + start.log_prob(z, a, ~a)
    torch.testing.assert_close(start.log_prob(z, none, ~none), parts, rtol=0, atol=1e-5)
    assert torch.equal(start.log_prob(z, a, ~a), flow.base.log_prob(z.double(), a, ~a).float())


def test_config_makes_the_model_anew(flow):
    again = MaskedFlow.of(flow.config()).double()
    again.load_state_dict(flow.state_dict())
    z = torch.randn(9, DIM).double()
    with torch.no_grad():
        values = [each.log_prob(z, GIVEN[0], ASKED[0]) for each in (flow, again)]
    assert torch.equal(*values)
    assert again.settings.rtol == flow.settings.rtol


def test_errors(flow):
    z, none = torch.zeros(2, DIM), torch.zeros(DIM).bool()
    with pytest.raises(ValueError, match=r"Expected rows of shape \(rows, 4\)"):
        flow.log_prob(z[:, 1:], none, ~none)
    with pytest.raises(ValueError, match="Expected the mask given of dtype bool"):
        flow.log_prob(z, none.float(), ~none)
    with pytest.raises(ValueError, match="given or asked; got some that are both"):
        flow.sample(z, ~none, ~none)
    nothing = torch.full((2, DIM), torch.nan)
    with pytest.raises(ValueError, match="got gaps alone"):
        fit_values(flow, nothing, validation=z)
    with pytest.raises(ValueError, match="Expected weights of shape"):
        fit_values(flow, z, validation=z, weight=-torch.ones(2))
    with pytest.raises(ValueError, match=r"Expected rows of shape \(rows, 4\)"):
        fit_values(flow, z[:, 1:], validation=z)


def test_questions_are_about_cells_that_their_rows_see():
    torch.manual_seed(0)
    z = torch.randn(200, 5).masked_fill(torch.rand(200, 5) < 0.3, torch.nan)
    z = z[~z.isnan().all(1)]
    found = draw_questions(z, 10, 7, 3)
    assert found.rows.shape == (70,)
    assert not (found.given & found.asked).any()
    assert found.asked.any(1).all()
    seen = ~z[found.rows[::7]].isnan()
    assert not found.given[:6].any()
    assert (found.asked[:3] <= seen[:3]).all()
    assert (found.asked[:3] == found.asked[3:6] | found.asked[6:9]).all()
    assert (found.given[6:9] == found.asked[3:6]).all()
    assert (found.rows[:21] == found.rows[21:42]).all()
    assert (found.rows[:21] == found.rows[42:63]).all()
    used = (found.given | found.asked).repeat_interleave(7, 0)
    assert z[found.rows][used].isfinite().all()
    complete = draw_questions(z.nan_to_num(), 4, 60, 1)
    assert complete.asked[0].all()
    assert complete.rows.shape == (240,)  # more rows than there are


@pytest.fixture
def two_components(monkeypatch: pytest.MonkeyPatch) -> None:
    few = staticmethod(lambda z, *_, **__: NormalMixture.fit(z, components=2))
    monkeypatch.setattr(NormalMixture, "choose", few)


@pytest.mark.usefixtures("two_components")
def test_answers_become_consistent():
    def gap(consistency: float) -> float:
        torch.manual_seed(0)
        flow, z, both = MaskedFlow(NormalMixture(1, 3), (32, 32)), banana(600), torch.ones(3).bool()
        recipe = ValuesRecipe(learning_rate=1e-2, patience=16, consistency=consistency)
        options = {"validation": z[:200], "threads": 1, "recipe": recipe}
        fit_values(flow, z[200:], steps=100, **options)
        assert flow.moves
        with torch.no_grad():
            gaps = [
                flow.log_prob(z[:200], ~both, both)
                - flow.log_prob(z[:200], ~both, first)
                - flow.log_prob(z[:200], first, ~first)
                for first in torch.eye(3).bool()
            ]
        return torch.stack(gaps).abs().mean().item()

    assert gap(1.0) < 0.75 * gap(0.0)


@pytest.mark.usefixtures("two_components")
def test_fit_learns_what_the_mixture_cannot():
    z = banana(1500)
    flow = MaskedFlow(NormalMixture(1, 3), (32, 32))
    events = []
    recipe = ValuesRecipe(learning_rate=1e-2, patience=16, consistency=0.0)
    options = {"validation": z[:300], "threads": 1, "callbacks": [events.append]}
    history = fit_values(flow, z[300:], steps=100, recipe=recipe, **options)
    assert (history.steps, history.reason, len(events)) == (100, "steps", 100)
    assert history.step[0] == 0
    assert history.validation_nll.min() < history.validation_nll[0] - 0.02
    assert events[-1].model is not flow
    fresh, gain = banana(1000, seed=1), []
    for given, asked in (([], [0, 1, 2]), ([0], [1]), ([1], [2]), ([2], [0, 1])):
        masks = torch.zeros(2, 3).bool()
        masks[0, given], masks[1, asked] = True, True
        with torch.no_grad():
            gain.append((flow.log_prob(fresh, *masks) - flow.base.log_prob(fresh, *masks)).mean())
    assert torch.stack(gain).mean() > 0.02


def test_the_mixture_stays_where_nothing_is_better():
    z = torch.randn(120, 2, generator=torch.Generator().manual_seed(0))
    flow = MaskedFlow(NormalMixture(1, 2), (8, 8))
    recipe = ValuesRecipe(learning_rate=1.0, groups=2, group_rows=4, patience=2)
    history = fit_values(flow, z[:60], validation=z[60:], steps=30, recipe=recipe, threads=1)
    assert history.best_step == 0
    assert not flow.moves


def test_a_run_resumes_bit_for_bit(tmp_path):
    z = banana(300).masked_fill(torch.rand(300, 3) < 0.2, torch.nan)
    weight = torch.linspace(0, 1, 240)

    def run(name: str, stop: int | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        flow = MaskedFlow(NormalMixture(1, 3), (8, 8))

        def interrupt(event):
            last.update(event.model.state_dict())
            if event.step == stop:
                raise KeyboardInterrupt

        options = {"weight": weight, "validation": z[240:], "validation_weight": weight[:60]}
        state = tmp_path / name
        options |= {"state": state, "state_seconds": 0.0, "threads": 1, "callbacks": [interrupt]}
        history = fit_values(flow, z[:240], steps=6, recipe=ValuesRecipe(groups=4), **options)
        assert history.reason == ("steps" if stop is None else "interrupted")
        return dict(last)

    last: dict[str, Tensor] = {}
    whole = run("whole")
    run("parts", stop=3)
    resumed = run("parts")
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    assert whole["field.last.linear.weight"].any()
