"""Fields and flows of the coordinates that are present in a row, given its codes."""

from math import log, pi

import pytest
import torch
from torch import Tensor

import cnf
from cnf.fields import Concat, ConcatSquash
from cnf.fields.masked import Masked
from cnf.flow import Flow, code_flow

FEATURES = [torch.linspace(-1, 1, 6).view(3, 2), None]


def make_flow(continuous: int = 3, **settings: float) -> Flow:
    torch.manual_seed(0)
    flow = code_flow([3, 2], FEATURES, continuous, hidden=(8, 8), embedding=4, **settings)
    for parameter in flow.layers[0].parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return flow.double()


def given(rows: int, continuous: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    mask = (torch.rand(rows, continuous) < 0.6).double()
    codes = torch.stack([torch.randint(3, (rows,)), torch.randint(2, (rows,))], 1).double()
    return torch.randn(rows, continuous).double(), torch.cat([codes, mask], 1), mask


@pytest.mark.parametrize("kind", [Concat, ConcatSquash])
@pytest.mark.parametrize("hidden", [(8,), (8, 7), (8, 7, 6)])
def test_the_trace_is_that_of_the_jacobian(kind, hidden):
    torch.manual_seed(0)
    field = Masked(kind(3, hidden=hidden, context_dim=5)).double()
    x, _, mask = given(7)
    context, t = torch.cat([torch.randn(7, 2).double(), mask], 1), torch.tensor(0.3).double()
    velocity, trace = field.with_divergence(t, x, context)
    for i in range(7):
        inner = field.field(t, (x * mask)[i : i + 1], context[i : i + 1])[0]
        torch.testing.assert_close(velocity[i], mask[i] * inner)
        row = context[i : i + 1]
        J = torch.autograd.functional.jacobian(lambda x, row=row: field(t, x[None], row)[0], x[i])
        torch.testing.assert_close(trace[i], J.trace())
        assert not J[mask[i] == 0].any()
        assert not J[:, mask[i] == 0].any()


def test_absent_coordinates_keep_their_value():
    flow = make_flow(rtol=1e-9, atol=1e-9)
    x, context, mask = given(9)
    for move in (flow.push, flow.pull):
        result = move(x, context)
        assert torch.equal(result.value[mask == 0], x[mask == 0])
    present = mask[0] == 1

    def block(part: Tensor) -> Tensor:
        return flow.pull(x[:1].index_put((torch.tensor(0), present), part), context[:1]).value[
            0, present
        ]

    J = torch.autograd.functional.jacobian(block, x[0, present])
    torch.testing.assert_close(result.log_det[0], J.slogdet().logabsdet, atol=1e-6, rtol=0)


@pytest.mark.parametrize("present", [1, 2])
def test_the_density_of_the_present_coordinates_integrates_to_one(present):
    flow = make_flow(rtol=1e-6, atol=1e-6)
    grid = torch.linspace(-12, 12, 2001 if present == 1 else 161).double()
    points = torch.cartesian_prod(*[grid] * present).view(-1, present)
    x = torch.nn.functional.pad(points, (0, 3 - present))
    mask = (torch.arange(3) < present).double()
    context = torch.cat([torch.tensor([2.0, 1.0]).double(), mask]).expand(len(x), -1)
    with torch.no_grad():
        log_p = flow.log_prob(x, context) + (3 - present) * log(2 * pi) / 2
    total = log_p.exp().sum() * (grid[1] - grid[0]) ** present
    assert total.item() == pytest.approx(1, abs=1e-3)


def test_fit_learns_the_shift_of_a_code_and_a_flow_is_saved(tmp_path):
    torch.manual_seed(0)
    codes = torch.randint(2, (1000, 1)).float()
    mask = torch.stack([torch.ones(1000), (torch.rand(1000) < 0.5).float()], 1)
    z = (torch.randn(1000, 2) * 0.5 + 3 * codes - 1.5) * mask
    flow = code_flow([2], None, 2, hidden=(16, 16), embedding=8)
    cnf.fit(flow, z, context=torch.cat([codes, mask], 1), steps=50, threads=1)
    rows = torch.tensor([[0.0, 1, 0], [1.0, 1, 0]])
    means = flow.sample(200, rows)[..., 0].mean(0)
    torch.testing.assert_close(means, torch.tensor([-1.5, 1.5]), atol=0.4, rtol=0)
    cnf.save(flow, tmp_path)
    context = torch.cat([codes, mask], 1)[:9]
    assert torch.equal(cnf.load(tmp_path).log_prob(z[:9], context), flow.log_prob(z[:9], context))


def test_a_row_alone_is_as_among_others():
    flow = make_flow()
    x, context, _ = given(9)
    with torch.no_grad():
        alone = torch.cat([flow.log_prob(x[i : i + 1], context[i : i + 1]) for i in range(9)])
        torch.testing.assert_close(alone, flow.log_prob(x, context), atol=1e-10, rtol=0)


def test_errors():
    with pytest.raises(ValueError, match="context_dim is at least dim = 3"):
        Masked(Concat(3, hidden=(4,), context_dim=2))
    with pytest.raises(ValueError, match="Expected codes from 0"):
        make_flow().log_prob(torch.zeros(1, 3), torch.tensor([[3.0, 0, 1, 1, 1]]))
