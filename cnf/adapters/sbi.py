"""Flows in sbi: posteriors and likelihoods of simulators, for NPE, NLE and FMPE."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from cnf.adapters.hosts import check_host
from cnf.adapters.pairs import check_pairs
from cnf.adapters.simulation_flow import fit_simulations, simulation_flow, simulation_recipe
from cnf.flow import Flow
from cnf.layers import Standardize
from cnf.layers.data_context import DataContext
from cnf.training.history import Callback
from cnf.training.recipes import Recipe

check_host("sbi")

from cnf.adapters.sbi_estimators import FieldEstimator, FlowEstimator  # noqa: E402

PAIR = "parameters", "observations"  # in errors

__all__ = [
    "FieldEstimator",
    "FlowEstimator",
    "fit",
    "likelihood_cnf",
    "posterior_cnf",
    "posterior_field",
]


def posterior_cnf(
    prior: Distribution | None = None,
    *,
    embedding_net: nn.Module | None = None,
    recipe: Recipe | None = None,
    matching: int = 500,
    seed: int = 0,
) -> "FlowBuilder":
    """Return the builder of a posterior p(θ | x), for `sbi.inference.NPE(density_estimator=…)`.

    The flow is that of `cnf.adapters.simulation_flow`, built when NPE's `train` hands it the
    simulations: first a Gaussian given x is trained by likelihood, then the field by flow matching.
    NPE then trains all of it by likelihood. Scaling is the flow's: nothing is z-scored outside.

    Args:
        prior: The prior, whose bounds become the flow's: no mass leaks out. Unbounded when None.
        embedding_net: A map of simulations (rows, *shape) → (rows, features), copied and trained
            with the flow; without one their entries are the flow's context. A flow with one cannot
            be saved by `cnf.save`.
        recipe: The flow's architecture, and the batch and rate of flow matching; chosen by the
            number of simulations when None.
        matching: Steps of flow matching, at least 1; the Gaussian takes three tenths as many.
        seed: Seed of flow matching; initial weights are drawn by PyTorch's generator.

    Raises:
        ValueError: There is no step of matching; or, when simulations come: they are not finite,
            fewer than three, or outside the prior, a parameter is constant, or the prior's support
            is no product of intervals, half-lines with a lower end, and real lines.

    Source: Papamakarios & Murray (2016); Greenberg et al. (2019), Automatic posterior
    transformation for likelihood-free inference.

    Example:
        >>> import torch
        >>> build = posterior_cnf(matching=2)
        >>> estimator = build(torch.randn(40, 2), torch.randn(40, 3))
        >>> estimator.sample((5,), torch.zeros(1, 3)).shape
        torch.Size([5, 1, 2])
    """
    return FlowBuilder(False, _support_of(prior), embedding_net, recipe, matching, seed)


def likelihood_cnf(
    support: Constraint | None = None,
    *,
    embedding_net: nn.Module | None = None,
    recipe: Recipe | None = None,
    matching: int = 500,
    seed: int = 0,
) -> "FlowBuilder":
    """Return the builder of a likelihood p(x | θ), for `sbi.inference.NLE(density_estimator=…)`.

    Simulations are vectors here. Arguments are those of `posterior_cnf`, but for two.

    Args:
        support: The simulations' support, such as `torch.distributions.constraints.positive`;
            unbounded when None.
        embedding_net: A map of parameters (rows, dim) → (rows, features).
        recipe: As in `posterior_cnf`.
        matching: As in `posterior_cnf`.
        seed: As in `posterior_cnf`.

    Raises:
        ValueError: As in `posterior_cnf`.

    Source: Papamakarios et al. (2019), Sequential neural likelihood.

    Example:
        >>> import torch
        >>> build = likelihood_cnf(matching=2)
        >>> estimator = build(torch.randn(40, 2), torch.randn(40, 3))
        >>> estimator.log_prob(torch.zeros(1, 7, 3), torch.zeros(7, 2)).shape
        torch.Size([1, 7])
    """
    return FlowBuilder(True, support, embedding_net, recipe, matching, seed)


def posterior_field(
    *, embedding_net: nn.Module | None = None, recipe: Recipe | None = None
) -> "FieldBuilder":
    """Return the builder of a posterior's vector field, for `sbi.inference.FMPE(vf_estimator=…)`.

    FMPE trains it by flow matching, and its posteriors integrate it by their own solver. They start
    from a Gaussian in the units of θ, so that bounds are kept by rejection alone. They ask for
    the velocity given the observation, which an embedding net then encodes in each step.

    Args:
        embedding_net: As in `posterior_cnf`.
        recipe: The field's architecture, of one block, with columns that are standardised; by
            default two hidden layers of 64.

    Raises:
        ValueError: As in `posterior_cnf`.

    Source: Wildberger et al. (2023), Flow matching for scalable simulation-based inference.

    Example:
        >>> import torch
        >>> estimator = posterior_field()(torch.randn(40, 2), torch.randn(40, 3))
        >>> estimator.ode_fn(torch.zeros(5, 1, 2), torch.zeros(1, 3), torch.tensor(0.5)).shape
        torch.Size([5, 1, 2])
    """
    return FieldBuilder(embedding_net, recipe)


def fit(
    theta: Tensor,
    x: Tensor,
    *,
    prior: Distribution | None = None,
    embedding_net: nn.Module | None = None,
    recipe: Recipe | None = None,
    budget: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
) -> FlowEstimator:
    """Return a posterior p(θ | x) fitted to pairs, by flow matching and then by likelihood.

    `sbi.inference.DirectPosterior(estimator, prior)` takes it, and so does the `build_posterior` of
    NPE. With the two exchanged, `fit(x, theta)` is a likelihood for that of NLE.

    Args:
        theta: Parameters, (pairs, dim).
        x: Their simulations, (pairs, *shape).
        prior: As in `posterior_cnf`.
        embedding_net: As in `posterior_cnf`.
        recipe: The architecture and the training, as in `posterior_cnf`.
        budget: Seconds, as in `cnf.fit`: 60 where neither they nor steps are given.
        steps: Number of steps.
        seed: Seed of training; initial weights are drawn by PyTorch's generator.
        callbacks: Called after every step.

    Raises:
        ValueError: As in `posterior_cnf`.
        TypeError: θ or x is no tensor.
        TrainingError: As from `cnf.fit`.

    Example:
        >>> import torch
        >>> theta = torch.randn(100, 2)
        >>> estimator = fit(theta, theta + torch.randn(100, 2), steps=3)
        >>> estimator.log_prob(torch.zeros(5, 1, 2), torch.zeros(1, 2)).shape
        torch.Size([5, 1])
    """
    check_pairs(theta, x, PAIR)
    pairs = (theta.float(), x.float())
    copied = copy.deepcopy(embedding_net)
    flow = simulation_flow(*pairs, support=_support_of(prior), embedding_net=copied, recipe=recipe)
    fit_simulations(
        flow,
        *pairs,
        recipe=recipe,
        budget=budget,
        steps=steps,
        seed=seed,
        callbacks=callbacks,
    )
    estimator = FlowEstimator(flow, x.shape[1:])
    estimator.eval()
    return estimator


@dataclass(frozen=True, eq=False)
class FlowBuilder:
    """A function of parameters and simulations that returns a `FlowEstimator`.

    Attributes are the arguments of `posterior_cnf` and `likelihood_cnf`; `likelihood` is whether x
    is modelled given θ. It can be pickled, as sbi's trainers are.

    Example:
        >>> import torch
        >>> build = FlowBuilder(False, None, None, None, matching=1, seed=0)
        >>> build(torch.randn(40, 2), torch.randn(40, 3)).input_shape
        torch.Size([2])
    """

    likelihood: bool
    support: Constraint | None
    embedding_net: nn.Module | None
    recipe: Recipe | None
    matching: int
    seed: int

    def __post_init__(self) -> None:
        if self.matching < 1:
            raise ValueError(
                f"Expected matching of at least 1 step, which fits the scaling; got {self.matching}"
            )

    def __call__(self, theta: Tensor, x: Tensor) -> FlowEstimator:
        """Return the estimator after flow matching on the pairs (pairs, dim), (pairs, *shape)."""
        target, condition, names = theta, x, PAIR
        if self.likelihood:
            target, condition, names = x, theta, (PAIR[1], PAIR[0])
        check_pairs(target, condition, names)
        recipe = self.recipe or simulation_recipe(len(target))
        recipe = replace(recipe, objective="matching", regularizers={}, steer=0.0)
        pairs = (target.float(), condition.float())
        copied = copy.deepcopy(self.embedding_net)
        flow = simulation_flow(*pairs, support=self.support, embedding_net=copied, recipe=recipe)
        fit_simulations(flow, *pairs, recipe=recipe, steps=self.matching, seed=self.seed)
        return FlowEstimator(flow, condition.shape[1:])


@dataclass(frozen=True, eq=False)
class FieldBuilder:
    """A function of parameters and simulations that returns a `FieldEstimator`.

    Attributes are the arguments of `posterior_field`.

    Example:
        >>> import torch
        >>> FieldBuilder(None, None)(torch.randn(40, 2), torch.randn(40, 3)).condition_shape
        torch.Size([3])
    """

    embedding_net: nn.Module | None
    recipe: Recipe | None

    def __call__(self, theta: Tensor, x: Tensor) -> FieldEstimator:
        """Return the untrained estimator, its scaling fitted to (pairs, dim), (pairs, *shape)."""
        check_pairs(theta, x, PAIR)
        encoder = DataContext(x.shape[1:], copy.deepcopy(self.embedding_net))
        made = (self.recipe or Recipe()).flow(theta.shape[1], encoder.features)
        flow = Flow(made.base, made.layers, encoder).to(theta.device)
        encoder.fit(x.float().flatten(1))
        if isinstance(scaling := flow.layers[-1], Standardize):
            scaling.fit(theta.float())
        return FieldEstimator(flow, x.shape[1:])


def _support_of(prior: Distribution | None) -> Constraint | None:
    """Return a prior's support, None where it does not say."""
    try:
        return None if prior is None else prior.support
    except (AttributeError, NotImplementedError):
        return None
