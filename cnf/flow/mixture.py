"""A mixture of flows, whose density is the weighted mean of theirs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from cnf.flow.casting import cast_tensor
from cnf.flow.flow import Flow
from cnf.flow.scores import RowLogProbs, Scores
from cnf.ode import Stats, Status
from cnf.utils.shapes import Shape, per_row, sizes

WEIGHT_PASSES = 500  # of expectation maximisation at most
PRIOR_ROWS = 1.0  # of each flow beforehand, so that few held-out rows leave none out


class FlowMixture(nn.Module):
    """A mixture of flows over the same columns, with the same context.

        p(x | c) = Σ_k w_k p_k(x | c)

    Flows that were trained from other weights err in other places: on tables of few rows, where a
    flow's error is mostly what it has overfitted, their mixture is better than the best of them.
    It has no map between base and data; its flows do. Source of weights by held-out rows: Smyth and
    Wolpert (1999), Linearly combining density estimators via stacking.

    Args:
        flows: At least one flow.
        weights: Their weights w_k, at least 0, of which only the ratios matter; equal when None.

    Raises:
        ValueError: There is no flow, flows differ in their columns, context or dtype, or the
            weights do not fit.

    Attributes:
        flows: The flows.
        weights: Their weights, shape (K,), whose sum is 1. A flow of weight 0 is never evaluated.

    Shapes: as of `Flow`: x is (*batch, dim) and a context (*batch, context_dim).

    Example:
        >>> from cnf.flow import ffjord
        >>> mixture = FlowMixture([ffjord(2, hidden=(8,)), ffjord(2, hidden=(8,))])
        >>> x = mixture.sample(5)
        >>> mixture.log_prob(x).shape
        torch.Size([5])
    """

    kind: ClassVar[str] = "mixture"
    weights: Tensor

    def __init__(self, flows: Iterable[Flow], weights: Tensor | None = None) -> None:
        super().__init__()
        self.flows = cast("Sequence[Flow]", nn.ModuleList(flows))
        if not len(self.flows):
            raise ValueError("Expected at least one flow; got none")
        kinds = {(flow.dim, flow.context_dim, flow.like.dtype) for flow in self.flows}
        if len(kinds) > 1:
            got = ", ".join(f"{dim} with {size} in {dtype}" for dim, size, dtype in kinds)
            raise ValueError(
                f"Expected flows over as many columns, with contexts of one size, in one dtype; "
                f"got {got}"
            )
        given = torch.ones(len(self.flows)) if weights is None else weights
        shape, total = given.shape, float(given.double().sum())
        if shape != (len(self.flows),) or not (given >= 0).all() or not 0 < total < float("inf"):
            raise ValueError(
                f"Expected {len(self.flows)} weights, at least 0 and not all 0; got "
                f"{given.tolist()}"
            )
        self.register_buffer("weights", given.to(self.like) / total)

    @property
    def dim(self) -> int:
        """The size of x."""
        return self.flows[0].dim

    @property
    def like(self) -> Tensor:
        """An empty tensor of the flows' dtype on their device."""
        return self.flows[0].like

    @property
    def noisy(self) -> bool:
        """A flag for noise that is drawn for each row: log p is then a lower bound on average."""
        return any(flow.noisy for flow in self.flows)

    @property
    def context_dim(self) -> int | None:
        """The size of the context, 0 without one; None where the layers do not know."""
        return self.flows[0].context_dim

    @property
    def solves(self) -> int:
        """The number of ODE solves in one pass through all flows whose weight is above 0."""
        return sum(flow.solves for flow in self.weighted)

    @property
    def weighted(self) -> list[Flow]:
        """The flows whose weight is above 0."""
        return [
            flow for flow, weight in zip(self.flows, self.weights.tolist(), strict=True) if weight
        ]

    def log_prob(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        max_batch: int | None = None,
        seed: int | None = None,
        draws: int = 1,
    ) -> Tensor:
        """Return log p(x | context) in nats, shape (*batch); arguments and errors as in `Flow`.

        With a seed all flows read a row with the same noise.
        """
        options: dict[str, Any] = {"max_batch": max_batch, "seed": seed, "draws": draws}
        found = [flow.log_prob(x, context, **options) for flow in self.weighted]
        return self._mixed(torch.stack(found))

    def score_draws(
        self, x: Tensor, context: Tensor | None = None, seed: int | None = None, draws: int = 1
    ) -> RowLogProbs:
        """Return log p of rows, and the cost of all flows, as `Flow.score_draws` does."""
        found = [flow.score_draws(x, context, seed, draws) for flow in self.weighted]
        log_prob = self._mixed(torch.stack([each.log_prob for each in found]))
        return RowLogProbs(log_prob, sum((each.stats for each in found), start=Stats()))

    def score(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        probes: int = 16,
        generator: torch.Generator | None = None,
        max_batch: int | None = None,
        seed: int | None = None,
    ) -> Scores:
        """Return log p(x | context) with its errors, without a gradient, as `Flow.score` does.

        A row fails where a flow does. With the flows' shares in a row's density, r_k = w_k p_k / p,
        its standard error is Σ r_k e_k, since the flows read a row with the same noise.
        """
        if seed is None:
            device = torch.device("cpu") if generator is None else generator.device
            seed = int(torch.randint(2**63 - 1, (), generator=generator, device=device))
        options: dict[str, Any] = {"probes": probes, "max_batch": max_batch, "seed": seed}
        return self._mixed_scores([flow.score(x, context, **options) for flow in self.weighted])

    def sample(
        self, shape: Shape = (), context: Tensor | None = None, *, max_batch: int | None = None
    ) -> Tensor:
        """Return draws, shape (*shape, *context's batch, dim), without a gradient.

        Each is of one flow, chosen by the weights; see `Flow.sample`.
        """
        batch, given = torch.Size(()), None
        if context is not None:
            cast_tensor(self.like, "context", context)
            batch = context.shape[:-1]
        whole = torch.Size((*sizes(shape), *batch))
        if context is not None:
            given = per_row(context, whole)
        ends = self.weights.cumsum(0)
        uniform = torch.rand(whole.numel()).to(ends)
        chosen = torch.searchsorted(ends / ends[-1], uniform, right=True)
        drawn = None
        for k, flow in enumerate(self.flows):
            places = (chosen == k).nonzero().squeeze(1)
            if drawn is not None and not len(places):
                continue
            if given is None:
                part = flow.sample((len(places),), max_batch=max_batch)
            else:
                part = flow.sample((), given[places], max_batch=max_batch)
            drawn = part.new_empty(whole.numel(), self.dim) if drawn is None else drawn
            drawn[places] = part
        assert drawn is not None
        return drawn.reshape(*whole, self.dim)

    def sample_and_log_prob(
        self, shape: Shape = (), context: Tensor | None = None, *, max_batch: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return draws and their log p, without a gradient; see `log_prob`."""
        with torch.no_grad():
            x = self.sample(shape, context, max_batch=max_batch)
            return x, self.log_prob(x, context, max_batch=max_batch)

    def support(self, context: Tensor | None = None) -> Constraint:
        """Return the support of x, as `Flow.support` does; flows differ in none of its layers."""
        return self.flows[0].support(context)

    @torch.no_grad()
    def fit_weights(self, log_probs: Tensor, row_weights: Tensor | None = None) -> None:
        """Set the weights to those that are most likely given held-out rows.

        They maximise Σ_i a_i log Σ_k w_k p_k(x_i) + Σ_k log w_k, by expectation maximisation; the
        second term is a prior of one row for each flow.

        Args:
            log_probs: The first flows' log p of rows that none was trained on, shape (n, rows).
                Flows without a number, all NaN, and those after the first n have weight 0; other
                rows where one is NaN do not count. Weights stay where no flow has a number.
            row_weights: Weights a_i of the rows, whose mean becomes 1; equal when None.

        Example:
            >>> from cnf.flow import ffjord
            >>> mixture = FlowMixture([ffjord(1, hidden=(8,)), ffjord(1, hidden=(8,))])
            >>> mixture.fit_weights(torch.tensor([[0.0] * 98, [-9.0] * 98]))
            >>> mixture.weights
            tensor([0.9900, 0.0100])
        """
        trained = ~log_probs.isnan().all(1)
        if not trained.any():
            return
        kept = ~log_probs[trained].isnan().any(0) & (log_probs > -inf).any(0)
        found = log_probs[trained][:, kept].double().cpu()
        rows = torch.ones(found.shape[1]).double()
        if row_weights is not None:
            rows = row_weights[kept].double().cpu()
            rows = rows / rows.mean()
        weights = torch.full((len(found), 1), 1 / len(found)).double()
        for _ in range(WEIGHT_PASSES):
            shares = (found + weights.log()).softmax(0) @ rows + PRIOR_ROWS
            weights = (shares / shares.sum()).unsqueeze(1)
        self.weights.zero_()
        places = trained.nonzero().squeeze(1).to(self.weights.device)
        self.weights[places] = weights.squeeze(1).to(self.weights)

    def with_solver(self, **changes: Any) -> Self:
        """Return a mixture of the flows that `Flow.with_solver` returns."""
        return self._each(lambda flow: flow.with_solver(**changes))

    def in_double(self) -> Self:
        """Return a copy in double precision, whose code is not compiled."""
        return self._each(Flow.in_double)

    def inner_flows(self) -> dict[str, Flow]:
        """Return the flows by their names in the state dict."""
        return {f"flows.{k}": flow for k, flow in enumerate(self.flows)}

    def config(self) -> dict[str, Any]:
        """Return the configuration beside that of the flows."""
        return {}

    @classmethod
    def of(cls, config: Mapping[str, Any], parts: Mapping[str, Flow]) -> Self:
        """Return a mixture of flows, whose weights are loaded afterwards."""
        return cls(parts.values())

    def _each(self, change: Callable[[Flow], Flow]) -> Self:
        return type(self)(map(change, self.flows), self.weights.clone())

    def _log_shares(self, log_probs: Tensor) -> Tensor:
        """Return log w_k p_k of rows, of the flows whose weight is above 0."""
        weights = self.weights[self.weights > 0].to(log_probs)
        return log_probs + weights.log().reshape(-1, *[1] * (log_probs.ndim - 1))

    def _mixed(self, log_probs: Tensor) -> Tensor:
        return self._log_shares(log_probs).logsumexp(0)

    def _mixed_scores(self, scores: Sequence[Scores]) -> Scores:
        stacked = partial(_stack, scores)
        log_probs = stacked("log_prob")
        log_prob, tighter = self._mixed(log_probs), self._mixed(stacked("tighter"))
        shares = (self._log_shares(log_probs) - log_prob).exp().nan_to_num()  # 0 of no density
        status = np.full(tuple(log_prob.shape), Status.FINISHED)
        for each in scores:
            status = np.where(status == Status.FINISHED, each.status, status)
        change = (log_prob - tighter).abs().masked_fill(log_prob == tighter, 0.0)
        return Scores(
            log_prob,
            (shares * stacked("stderr")).sum(0),
            change.to(log_prob),
            status,
            sum((each.stats for each in scores), start=Stats()),
            tighter,
            scores[0].probes,
        )


def _stack(scores: Sequence[Scores], name: str) -> Tensor:
    return torch.stack([getattr(each, name) for each in scores])
