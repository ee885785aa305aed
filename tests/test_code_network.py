"""The network of codes and its training."""

import json

import pytest
import torch

from cnf.tables.code_network import CodeNetwork
from cnf.tables.code_training import CodeRecipe, draw_visible, fit_codes

SIZES, FIRST_BIN = [3, 5, 4, 2], [3, 2, 4, 0]  # categories, atoms and bins, ordered atoms, bins


def ranks(size):
    return [[2 * i / size - 1, i / size] for i in range(size)]


FEATURES = [None, ranks(5), ranks(4), ranks(2)]


def network(given=0, **options):
    """A small network of random weights, in double precision."""
    options = {"hidden": 12, "blocks": 2, "cosines": 3, "given": given, **options}
    found = CodeNetwork(SIZES, FIRST_BIN, FEATURES, **options).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return found


def all_codes(sizes=SIZES):
    return torch.cartesian_prod(*map(torch.arange, sizes))


def dependent(rows, seed=0):
    """Codes of which the third repeats the first, and the second is near the fourth's half."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(3, (rows,), generator=generator)
    half = torch.randint(2, (rows,), generator=generator)
    second = 2 * half + torch.randint(3, (rows,), generator=generator)
    return torch.stack([first, second, first + 1, half], 1)


ENTROPY = torch.tensor([3.0, 2.0, 3.0]).log().sum().item()  # of these codes


def test_probabilities_sum_to_one_in_each_context():
    codes = all_codes()
    assert network().log_prob(codes).exp().sum().item() == pytest.approx(1, abs=1e-12)
    sums = network(given=2).log_prob(codes).exp().view(15, 8).sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-12, rtol=0)


def test_log_prob_is_the_sum_of_conditionals_and_depends_on_no_other_row():
    net, codes = network(given=1), all_codes()
    visible = torch.arange(4) < torch.arange(1, 4)[:, None]  # the prefix that each one sees
    parts = [net.logits(codes, visible[k - 1], k).log_softmax(1) for k in (1, 2, 3)]
    expected = sum(
        part.gather(1, codes[:, [k]])[:, 0] for k, part in zip((1, 2, 3), parts, strict=True)
    )
    found = net.log_prob(codes)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(net.log_prob(codes[7:8]), found[7:8], rtol=1e-12, atol=0)
    costs = net(codes, visible[1].expand(len(codes), -1))
    assert costs.shape == (120, 3)
    torch.testing.assert_close(costs[:, 1], -parts[1].gather(1, codes[:, [2]])[:, 0])


def test_hidden_codes_are_hidden_and_visible_ones_are_not():
    net, codes = network(given=1), all_codes()
    visible = torch.tensor([False, False, True, False])  # the given coordinate is always visible
    other = codes.clone()
    other[:, [1, 3]] = torch.tensor([4, 1]) - codes[:, [1, 3]]
    before = net.logits(codes, visible, 1)
    assert torch.equal(before, net.logits(other, visible, 1))
    for k in (0, 2):
        other = codes.clone()
        other[:, k] = (codes[:, k] + 1) % SIZES[k]
        assert ((net.logits(other, visible, 1) - before).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize("given", [0, 2])
def test_samples_have_the_probabilities(given):
    """Within five deviations, for every vector of codes; in any chunks, and the same by seed."""
    net, n = network(given), 20_000
    context = all_codes()[:, :given].repeat(n // 120 + 1, 1)[:n]
    argument = context if given else n
    codes = net.train().sample(argument, torch.Generator().manual_seed(1))
    assert torch.equal(codes, net.eval().sample(argument, torch.Generator().manual_seed(1)))
    assert torch.equal(codes[:, :given], context)
    places = torch.tensor([40, 8, 2, 1])
    counts = torch.bincount(codes @ places, minlength=120)
    expected = net.log_prob(all_codes()).exp()
    if given:
        expected = (
            expected
            * torch.bincount(context @ places[:2] // 8, minlength=15)[all_codes() @ places // 8]
        )
    else:
        expected = n * expected
    assert ((counts - expected).abs() < 5 * expected.clamp(min=4).sqrt()).all()


def test_a_network_starts_with_the_marginals():
    net = CodeNetwork(SIZES, FIRST_BIN, FEATURES, hidden=8).double()
    codes, weight = dependent(500), torch.rand(500)
    for weights in (None, weight):
        net.start(codes, weights)
        each = torch.ones(500) if weights is None else weights
        for k, size in enumerate(SIZES):
            share = torch.bincount(codes[:, k], each, size).double() / each.sum()
            prior = torch.where(torch.arange(size) < FIRST_BIN[k], 0.1, 0.5)
            expected = (share * 500 + prior) / (500 + prior.sum())
            found = net.logits(codes[:2], torch.ones(4, dtype=torch.bool), k).softmax(1)
            torch.testing.assert_close(found, expected.expand(2, -1), rtol=1e-5, atol=1e-8)


def test_codes_without_rows_keep_their_share():
    codes = dependent(500)  # of which the third coordinate is never 0, and the second has all codes
    net = CodeNetwork(SIZES, FIRST_BIN, FEATURES, hidden=8)
    unseen = net.unseen(codes)
    assert [each is None for each in unseen] == [True, True, False, True]
    assert unseen[2].tolist() == pytest.approx([0.1 / 500, 0, 0, 0])
    found = net(codes, torch.zeros_like(codes) > 0, 0.0, unseen) - net(
        codes, torch.zeros_like(codes) > 0
    )
    share = net.logits(codes[:1], torch.zeros(4) > 0, 2).log_softmax(1)[0, 0]
    torch.testing.assert_close(found[:, 2], -0.0002 * share.expand(500), atol=1e-6, rtol=0)
    fit_codes(net, codes, validation=codes, steps=100)
    share = net.logits(codes[:1], torch.zeros(4) > 0, 2).softmax(1)[0, 0]
    assert 1e-5 < share < 4e-4


def test_hidden_coordinates_have_the_mean_weight_one():
    """Half of the rows see the first coordinates, the others any; given ones are seen by all."""
    net, rows = network(given=1), 6000
    visible, weights = draw_visible(rows, net, CodeRecipe())
    assert visible[:, 0].all()
    assert not (visible[:, 1:] & (weights > 0)).any()
    assert (weights[~visible[:, 1:]] > 0).all()
    prefixes = visible[: rows // 2]
    assert (prefixes[:, 1:] <= prefixes[:, :-1]).all()
    assert not (visible[rows // 2 :, 2] <= visible[rows // 2 :, 1]).all()
    for half in weights.split(rows // 2):
        torch.testing.assert_close(half.sum(1).mean().item(), 3.0, rtol=0.02, atol=0)


def test_training_finds_the_dependence_and_resumes(tmp_path):
    """Down to the entropy; bit for bit as if it had not stopped."""
    codes, validation = dependent(2000), dependent(500, seed=1)

    def fit(state=None, callbacks=(), seconds=30.0):
        torch.manual_seed(0)
        net = CodeNetwork(SIZES, FIRST_BIN, FEATURES, hidden=24, blocks=1, dropout=0.1)
        options = {"steps": 200, "state": state, "state_seconds": seconds, "callbacks": callbacks}
        history = fit_codes(net, codes, validation=validation, **options)
        return net, history

    net, history = fit()
    first = history.validation_nll[0]
    assert history.reason == "steps"
    assert set(history.objective) == {"code likelihood"}
    assert min(history.validation_nll) < ENTROPY + 0.1 < first
    nll, best = -net.log_prob(validation).mean().item(), min(history.validation_nll)
    assert best - 0.02 < nll <= best + 1e-6  # lower by the calibration

    class StopError(Exception):
        pass

    def stop(event):
        if event.step == 70:
            raise StopError

    state = tmp_path / "state.safetensors"
    with pytest.raises(StopError):
        fit(state, [stop], seconds=0.0)
    again, resumed = fit(state)
    assert resumed.validation_nll.tolist() == history.validation_nll.tolist()
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(ValueError, match="its validation rows was"):
        fit_codes(again, codes, validation=codes, steps=200, state=state)


def test_weights_are_repetitions():
    """Rows of weight 0 are left out, and Ctrl-C leaves the average so far."""
    codes, weight = dependent(300), torch.zeros(300)
    weight[:30] = 2.0
    net = CodeNetwork(SIZES, FIRST_BIN, FEATURES, hidden=8)

    def interrupt(event):
        assert event.model is not net
        raise KeyboardInterrupt

    history = fit_codes(net, codes, validation=codes, weight=weight, steps=5, callbacks=[interrupt])
    assert history.reason == "interrupted"
    counts = torch.bincount(codes[:30, 0], minlength=3) + 0.1
    assert torch.allclose(net.bias[:3], (counts / 30.3).log())


def test_a_network_is_its_configuration_and_weights():
    net = network(given=1)
    again = CodeNetwork(**json.loads(json.dumps(net.config()))).double()
    again.load_state_dict(net.state_dict())
    codes = all_codes()
    assert torch.equal(net.log_prob(codes), again.log_prob(codes))


def test_a_table_of_categories_alone():
    """Without anything smooth, and with a column of one code."""
    net = CodeNetwork([1, 2], [1, 2], [None, None], hidden=8)
    codes = torch.tensor([[0, 0], [0, 1]] * 10)
    fit_codes(net, codes, validation=codes, steps=3)
    assert net.log_prob(codes[:2]).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert net.sample(0).shape == (0, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CodeNetwork([2], [2], []), "as many sizes, first bins and features"),
        (lambda: CodeNetwork([2], [2], [None], given=1), "more than are given"),
        (lambda: CodeNetwork([2], [3], [None]), "first bin from 0"),
        (lambda: CodeNetwork([2], [1], [ranks(3)]), r"features of shape \(2, 2\)"),
        (lambda: network().log_prob(torch.zeros(2, 3).long()), r"shape \(rows, 4\)"),
        (lambda: network().log_prob(torch.zeros(2, 4)), "int64; got .* torch.float32"),
        (
            lambda: network().log_prob(torch.tensor([[0, 5, 0, 0]])),
            "coordinate 1 from 0 to 4; got 5",
        ),
        (lambda: network(given=2).sample(3), r"codes \(n, 2\) of the context"),
        (
            lambda: network(given=2).sample(torch.tensor([[3, 0]])),
            "coordinate 0 from 0 to 2; got 3",
        ),
        (lambda: network(given=2).logits(all_codes(), torch.ones(4).bool(), 1), "from 2 to 3"),
        (
            lambda: fit_codes(
                network(), all_codes(), validation=all_codes(), weight=-torch.ones(120)
            ),
            "at least 0",
        ),
        (lambda: fit_codes(network(), all_codes()[:0], validation=all_codes()), "at least one row"),
        (lambda: CodeRecipe(batch_size=0), "batch_size"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_calibration_makes_the_mean_conditionals_the_shares() -> None:
    torch.manual_seed(0)
    network = CodeNetwork([3, 4], [3, 4], [None, None], hidden=16).double()
    torch.nn.init.normal_(network.free)
    codes = torch.stack([torch.randint(3, (400,)), torch.randint(2, (400,)) + 1], 1)
    weight = torch.rand(400, dtype=torch.float64)
    before = network.log_prob(codes)
    for _ in range(200):
        network.calibrate(codes, weight)
    expected = torch.zeros(4, dtype=torch.float64)
    for row, share in zip(codes, weight / weight.sum(), strict=True):
        visible = torch.tensor([True, False])
        expected += share * network.logits(row[None], visible, 1)[0].softmax(0)
    shares = torch.bincount(codes[:, 1], weight, 4) / weight.sum()
    torch.testing.assert_close(expected, shares, atol=2e-3, rtol=0)  # the priors of codes
    assert ((network.log_prob(codes) - before) * weight).sum() > 0


def test_a_run_that_steps_end_is_the_same_with_any_budget() -> None:
    """Its calibration too, which takes a share of the time."""
    codes = torch.randint(3, (600, 3), generator=torch.Generator().manual_seed(0))
    found = []
    for budget in (None, 500.0, 900.0):
        torch.manual_seed(0)
        network = CodeNetwork([3, 3, 3], [3, 3, 3], [None] * 3, hidden=8)
        options = {"validation": codes[500:], "steps": 60, "budget": budget, "threads": 1}
        fit_codes(network, codes[:500], **options)
        found.append(network.bias)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[1], found[2], rtol=0, atol=0)


def test_gaps_are_marginalised_and_drawn_given_the_other_codes():
    net, codes = network(given=1), all_codes()
    gaps = codes.clone()
    gaps[:, 2] = -1
    visible = torch.zeros_like(codes, dtype=torch.bool)
    visible[:, 3] = True
    before = torch.tensor([True, False, False, True])
    wanted = net.logits(codes, before, 1).log_softmax(1).gather(1, codes[:, [1]])[:, 0]
    torch.testing.assert_close(net.log_prob(gaps, visible), wanted)
    torch.testing.assert_close(net.log_prob(gaps[5:7], visible[5:7]), wanted[5:7])
    some = torch.where(torch.arange(120)[:, None] % 2 == 0, gaps, codes)  # two patterns
    found = net.log_prob(some, visible)
    torch.testing.assert_close(found[::2], wanted[::2])
    torch.testing.assert_close(found[1::2], net.log_prob(codes, visible)[1::2])
    costs = net(gaps, torch.ones_like(visible), unseen=[None, torch.full((4,), 0.1).double(), None])
    assert (costs[:, 1] == 0).all()
    assert torch.equal(costs, net(gaps, gaps >= 0))
    many = gaps[:1].repeat(20_000, 1)
    drawn = net.complete(many, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, [0, 1, 3]], many[:, [0, 1, 3]])
    shares = torch.bincount(drawn[:, 2], minlength=4) / len(drawn)
    expected = net.logits(gaps[:1], gaps[:1] >= 0, 2).softmax(1)[0]
    torch.testing.assert_close(shares.double(), expected, atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="coordinate 0 from 0 to 2; got -1"):
        net.log_prob(codes - 1)


def test_marginals_calibration_and_unseen_codes_are_of_rows_without_gaps():
    torch.manual_seed(0)
    net, codes, weight = network(), dependent(400), torch.rand(400).double()
    gaps = codes.clone()
    gaps[:200, 2] = -1
    part, rest = gaps[200:], weight[200:]
    for each in (None, weight):
        net.start(gaps, each)
        bias = net.bias[8:12].clone()
        net.start(part, None if each is None else rest * (400 / weight.sum() / 200 * rest.sum()))
        torch.testing.assert_close(net.bias[8:12], bias, rtol=1e-2, atol=1e-3)
    assert net.unseen(gaps)[2][0] == pytest.approx(0.1 / 200)
    for _ in range(200):
        net.calibrate(gaps)
    logits = net.logits(part, torch.tensor([True, True, False, False]), 2)
    shares = torch.bincount(part[:, 2], minlength=4) / 200
    torch.testing.assert_close(logits.softmax(1).mean(0), shares.double(), atol=5e-3, rtol=0)
    assert net.unseen(torch.full((3, 4), -1))[0].tolist() == pytest.approx([0.1] * 3)
