"""Every distribution of PyTorch that can be a base is saved and loaded, or refused in one line."""

from inspect import signature

import pytest
import torch
from helpers import near, refused
from torch import distributions as pytorch
from torch.distributions import Independent, Normal

import cnf
from cnf.flow.base_config import describe

VECTOR = torch.tensor([0.7, 1.6])
PAIR = Independent(Normal(torch.tensor([[0.5, -1.0], [1.0, 0.0]]), torch.ones(2, 2)), 1)
MATRIX = torch.tensor([[2.0, 0.3], [0.3, 1.0]])
ARGUMENTS = {
    **dict.fromkeys(("scale", "rate", "concentration", "concentration0", "alpha"), VECTOR),
    **dict.fromkeys(("df", "df1", "df2", "concentration1"), torch.tensor([3.0, 4.0])),
    **dict.fromkeys(("covariance_matrix", "precision_matrix"), MATRIX),
    "scale_tril": torch.linalg.cholesky(MATRIX),
    "loc": torch.tensor([0.5, -1.0]),
    "low": torch.tensor([-1.0, 0.0]),
    "high": torch.tensor([2.0, 1.0]),
    "probs": torch.tensor([0.3, 0.7]),
    "logits": torch.tensor([0.2, -0.4]),
    "lims": (0.45, 0.55),
    "temperature": torch.tensor(0.7),
    "total_count": 3,
    "cov_factor": torch.tensor([[0.5], [1.0]]),
    "cov_diag": VECTOR,
    "mixture_distribution": pytorch.Categorical(torch.tensor([0.3, 0.7])),
    "component_distribution": PAIR,
    "base_distribution": Normal(torch.tensor([0.5, -1.0]), VECTOR),
    "reinterpreted_batch_ndims": 1,
    "transforms": [pytorch.ComposeTransform([pytorch.ExpTransform(), pytorch.ExpTransform()])],
    "dim": 2,
    "validate_args": False,
}
CHOICES = [("probs", "logits"), ("covariance_matrix", "precision_matrix", "scale_tril")]
NO_BASES = {"Distribution", "ExponentialFamily", "LKJCholesky", "Wishart"}  # none, or of matrices
REFUSED = {"TransformedDistribution"}
KINDS = [
    kind
    for name in pytorch.__all__
    if isinstance(kind := getattr(pytorch, name), type)
    and issubclass(kind, pytorch.Distribution)
    and name not in NO_BASES
]


def ways(kind):
    """The sets of arguments that make a distribution: one for each choice that it leaves."""
    names = set(signature(kind).parameters)
    for choices in CHOICES:
        if names >= set(choices):
            return [names - set(choices) | {choice} for choice in choices]
    return [names]


CASES = [(kind, names) for kind in KINDS for names in ways(kind)]
IDS = ["-".join([kind.__name__, *(names & {*sum(CHOICES, ())})]) for kind, names in CASES]


def make(kind, names):
    base = kind(**{name: ARGUMENTS[name] for name in names})
    if base.event_shape:
        return base
    return Independent(base if base.batch_shape else base.expand((2,)), 1)


@pytest.mark.parametrize(("kind", "names"), CASES, ids=IDS)
def test_a_base_comes_back_or_is_refused_in_one_line(kind, names, tmp_path):
    base = make(kind, names)
    x = base.sample((5,)).float()
    log_prob = base.log_prob(x)
    flow = cnf.Flow(base, [])
    if kind.__name__ in REFUSED:
        refused(rf"^Expected a base .*{kind.__name__}.*\Z", cnf.save, flow, tmp_path)
        return
    cnf.save(flow, tmp_path)
    loaded = cnf.load(tmp_path)
    near(loaded.log_prob(x), log_prob, 2e-6)
    cnf.save(loaded, tmp_path)
    near(cnf.load(tmp_path).log_prob(x), log_prob, 2e-6)
    if kind.__name__ != "GeneralizedPareto":  # whose log_prob PyTorch has in float32 alone
        near(loaded.score(x).log_prob, log_prob, 2e-6)


def test_whether_arguments_are_validated_comes_back(tmp_path):
    uniform = pytorch.Uniform(torch.zeros(2), torch.ones(2), validate_args=False)
    cnf.save(cnf.Flow(Independent(uniform, 1, validate_args=False), []), tmp_path)
    assert cnf.load(tmp_path).log_prob(torch.full((1, 2), 3.0)).item() == -torch.inf
    # So is which of probs and logits was given, or a probability would be rounded anew each time.
    for name in ("probs", "logits"):
        base = pytorch.RelaxedOneHotCategorical(ARGUMENTS["temperature"], **{name: ARGUMENTS[name]})
        assert len({base.probs, base.logits}) == 2
        _, tensors = describe(base, "base")
        assert sorted(tensors) == [f"base.{name}", "base.temperature"]
