"""Expectation maximisation for mixtures of normal distributions, on rows with gaps."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from time import perf_counter
from typing import NamedTuple, Self

import torch
from sklearn.cluster import kmeans_plusplus
from torch import Tensor
from torch.nn.functional import one_hot

from cnf.mixtures.normal import MaskBlock, MaskBlocks, NormalMixture

BATCH_ROWS, BATCHES = 100, 10  # of incremental steps: rows at least, and their number at most
TOLERANCE = 3e-4  # nats a row that a pass must gain
SINGLE_PASSES = 20  # at most, for the covariance of the table
MEAN_PRIOR = 0.01  # rows at the table's mean that each component is given beforehand
TINY = 1e-10  # rows of a component that has none
CODE_PRIOR = 1.0  # rows of a coordinate's shares that each component is given beforehand


class _Moments(NamedTuple):
    """Expected moments of some rows in each component, and the rows' log-likelihood."""

    weights: Tensor  # (K,)
    sums: Tensor  # (K, C)
    squares: Tensor  # (K, C, C)
    counts: Tensor  # (K, codes of all coordinates)
    log_likelihood: Tensor  # ()

    def plus(self, other: Sequence[Tensor]) -> Self:
        """Return the moments of both."""
        return type(self)(*(a + b for a, b in zip(self, other, strict=True)))


class MixtureFitting:
    """Expectation maximisation on one table, its columns standardised meanwhile."""

    def __init__(
        self,
        z: Tensor,
        codes: Tensor | None,
        sizes: Sequence[int],
        weight: Tensor | None,
        seed: int,
        floor: float,
    ) -> None:
        codes = torch.empty(len(z), 0, dtype=torch.long) if codes is None else codes
        told = (~z.isnan().all(1) | (codes >= 0).any(1)).nonzero()[:, 0]
        if not len(told):
            raise ValueError("Expected rows with numbers or codes; got gaps alone: add rows")
        generator = torch.Generator().manual_seed(seed)
        order = told[torch.randperm(len(told), generator=generator)]
        weight = (torch.ones(len(z)) if weight is None else weight).double()[order]
        self.weight = weight * (len(order) / weight.sum())
        z = z[order].detach().double()
        self.center = z.nanmean(0).nan_to_num()
        scale = (z - self.center).square().nanmean(0).nan_to_num().sqrt()
        self.scale = torch.where(scale > 0, scale, 1.0)
        self.z, self.codes = (z - self.center) / self.scale, codes[order]
        self.seen = ~z.isnan()
        self.sizes, self.seed, self.floor = [*sizes], seed, floor
        # Rows that share a mask share factors: they come in few batches, the masks in random order.
        masks, mask = torch.unique(self.seen, dim=0, return_inverse=True)
        places = torch.randperm(len(masks), generator=generator)[mask].argsort(stable=True)
        self.batches = places.chunk(min(max(1, len(z) // BATCH_ROWS), BATCHES))
        self.pass_seconds = 0.0  # of a component, as last measured
        self.prior = 0.0
        self.single = NormalMixture(1, z.shape[1], self.sizes)
        self._improve(self.single, torch.zeros(len(z), dtype=torch.long), SINGLE_PASSES, inf)

    def run(
        self,
        components: int,
        iterations: int,
        seconds: float,
        prior: float,
        start: NormalMixture | None = None,
    ) -> NormalMixture:
        """Return a mixture after passes over the rows, which begin with `start` if there is one."""
        components, self.prior = min(components, len(self.z)), prior
        mixture = NormalMixture(components, self.z.shape[1], self.sizes)
        mixture.means.copy_(self.single.means)
        mixture.covariances.copy_(self.single.covariances.expand_as(mixture.covariances))
        mixture.log_shares_joined.copy_(self.single.log_shares_joined)
        if start is None:
            labels = self._labels(components)
        else:
            labels = None
            mixture.load_state_dict(start.state_dict())
            mixture.means.sub_(self.center).div_(self.scale)
            mixture.covariances.div_(self.scale[:, None] * self.scale)
        self._improve(mixture, labels, iterations, seconds)
        mixture.means.mul_(self.scale).add_(self.center)
        mixture.covariances.mul_(self.scale[:, None] * self.scale)
        return mixture

    def _labels(self, components: int) -> Tensor:
        """Return the nearest of K distant rows to each row, gaps filled by their means, (rows,)."""
        points = [self.single.mean(self.z, self.seen, ~self.seen)]
        for column, shares in zip(self.codes.T, self.single.log_shares, strict=True):
            known = one_hot(column.clamp(min=0), shares.shape[1])
            points.append(torch.where(column[:, None] < 0, shares.exp(), known))
        joined = torch.cat(points, 1)
        centers, _ = kmeans_plusplus(joined.numpy(), components, random_state=self.seed)
        return torch.cdist(joined, torch.from_numpy(centers)).argmin(1)

    def _improve(
        self, mixture: NormalMixture, labels: Tensor | None, iterations: int, seconds: float
    ) -> None:
        """Fit a mixture by passes that begin with rows in the components of labels or its own."""
        begin = perf_counter()
        blocks = [
            [*MaskBlocks(self.seen[rows], ~self.seen[rows], len(rows), mixture)]
            for rows in self.batches
        ]
        moments = [
            self._moments(mixture, rows, each, None if labels is None else labels[rows])
            for rows, each in zip(self.batches, blocks, strict=True)
        ]
        self._maximise(mixture, moments)
        self.pass_seconds = (perf_counter() - begin) / mixture.components
        before = -inf
        for _ in range(iterations):
            for i, (rows, each) in enumerate(zip(self.batches, blocks, strict=True)):
                moments[i] = self._moments(mixture, rows, each)
                self._maximise(mixture, moments)
                if perf_counter() - begin > seconds:
                    return
            now = sum(each.log_likelihood.item() for each in moments) / len(self.z)
            if now - before < TOLERANCE:
                return
            before = now

    def _moments(
        self,
        mixture: NormalMixture,
        rows: Tensor,
        blocks: Sequence[MaskBlock],
        labels: Tensor | None = None,
    ) -> _Moments:
        """Return the expected moments of a batch by its posterior, or by labels (rows,)."""
        z, codes, weight = self.z[rows], self.codes[rows], self.weight[rows]
        known = mixture.log_weights + mixture.log_codes(codes, codes >= 0, len(rows))
        chosen = None if labels is None else one_hot(labels, mixture.components).double()
        posterior = z.new_zeros(len(rows), mixture.components)
        total = None
        for block in blocks:
            factor = mixture.factor(block)
            white, logits = mixture.given_terms(factor, block, z, known)
            share = logits.softmax(1) if chosen is None else chosen[block.rows].mT
            counted = weight[block.rows] * block.real
            share = share * counted[:, None]
            posterior.index_add_(0, block.rows.flatten(), share.mT.flatten(0, 1))
            found = _block_moments(mixture, block, factor, white, share)
            likelihood = (logits.logsumexp(1) * counted).sum()
            part = _Moments(*found, z.new_zeros(mixture.components, 0), likelihood)
            total = part if total is None else total.plus(part)
        assert total is not None
        counts = [
            posterior.T @ one_hot(column + 1, size + 1)[:, 1:].double()
            for column, size in zip(codes.T, self.sizes, strict=True)
        ]
        return total._replace(counts=torch.cat([total.counts, *counts], 1))

    def _maximise(self, mixture: NormalMixture, moments: Sequence[_Moments]) -> None:
        """Set a mixture's parameters to the most probable ones given expected moments."""
        total = moments[0]
        for each in moments[1:]:
            total = total.plus(each)
        weights = total.weights + TINY
        mixture.log_weights.copy_((weights / weights.sum()).log())
        shrunk = weights[:, None] + (MEAN_PRIOR if self.prior else 0.0)
        means = mixture.means.copy_(total.sums / shrunk)
        scatter = total.squares - shrunk[..., None] * means[:, :, None] * means[:, None]
        scatter = (scatter + scatter.mT) / 2 + self.prior * self._scatter_prior(mixture.components)
        covariances = scatter / (weights + self.prior)[:, None, None]
        mixture.covariances.copy_(covariances).diagonal(dim1=1, dim2=2).add_(self.floor)
        for shares, counts in zip(
            mixture.log_shares, total.counts.split(self.sizes, 1), strict=True
        ):
            overall = counts.sum(0) + 0.5
            counts = counts + CODE_PRIOR * overall / overall.sum()
            shares.copy_((counts / counts.sum(1, keepdim=True)).log())

    def _scatter_prior(self, components: int) -> Tensor:
        """Return a row's share of the covariance that each component is given beforehand."""
        if components == 1:
            return torch.eye(self.z.shape[1], dtype=torch.float64)
        shrinkage: float = components ** (2 / max(1, self.z.shape[1]))
        return self.single.covariances[0] / shrinkage


def _block_moments(
    mixture: NormalMixture, block: MaskBlock, factor: Tensor, white: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ share, Σ share E[z] and Σ share E[z zᵀ] of a block's rows, for each component.

    With the factor L of the columns in the block's order, z = μ + L e, where e is known for the
    columns that are seen (`white`), and is standard normal for the others.

    Shapes: (M, K, V, V), (M, K, V, r) and (M, K, r) → (K,), (K, C) and (K, C, C).
    """
    weighted = share[:, :, None] * white
    rows = share.sum(2)
    hidden = torch.diag_embed((~block.given).double())[:, None]
    spread = factor @ (weighted @ white.mT + rows[..., None, None] * hidden) @ factor.mT
    apart = (factor @ weighted.sum(3)[..., None])[..., 0]
    back = block.order.argsort(1)
    mask = torch.arange(len(back))[:, None, None]
    spread = spread[mask, :, back[:, :, None], back[:, None]].sum(0).permute(2, 0, 1)
    apart = apart[mask[..., 0], :, back].sum(0).T
    weights, means = rows.sum(0), mixture.means
    cross = apart[:, :, None] * means[:, None]
    own = weights[:, None, None] * means[:, :, None] * means[:, None]
    return weights, weights[:, None] * means + apart, spread + cross + cross.mT + own
