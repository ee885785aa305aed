"""A mixture of normal distributions and categoricals: every marginal and conditional is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf, log, pi
from time import perf_counter
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

COMPONENTS = (1, 2, 5, 10, 20, 50, 100, 200)  # numbers that are tried
ITERATIONS = 100  # passes over the rows at most
SEARCH_PASSES = 15  # of each number of components that is tried
PATIENCE = 2  # numbers of components in turn that are no better before it ends
LEAST_PASSES = 4  # that a number of components must have time for to be tried
PRIORS = (1.0, 10.0)  # rows of the table's covariance that each component is given beforehand
FLOOR = 1e-4  # of a column's variance
LEAST_INVERTED = 4  # rows of a mask for each column, from which on its factors are inverted
BLOCK_NUMBERS = 2**19  # of the largest tensor that is computed at once where masks differ


class NormalMixture(nn.Module):
    """A mixture of normal distributions times independent categoricals, exact for any question.

        p(d, z) = Σ_k w_k Π_j p_k(d_j) N(z; μ_k, Σ_k)

    log p(z_a | z_g) is the difference of two marginals, log Σ_k w_k p_k(z_g, z_a) and that of the
    given columns g alone. Draws and means of the asked columns a come of a component's Cholesky
    factor, the given columns first: with e = L⁻¹ (z − μ) of these, z_a = μ_a + (L e)_a, where the
    rest of e is normal, and the component's weight is its posterior. Rows of equal masks share a
    factor. All numbers are buffers in float64, whatever the type of the module around them;
    gradients flow to z alone.

    Args:
        components: K, the number of components.
        dim: C, the number of columns of z.
        sizes: The number of codes of each categorical coordinate.

    Masks are bool, (rows, C) or (C,) where all rows share one; a code of −1 is unknown, and is
    neither given nor asked. Results have the type of z.

    Example:
        >>> mixture = NormalMixture.fit(torch.randn(500, 2, dtype=torch.float64), components=2)
        >>> first = torch.tensor([True, False])
        >>> mixture.log_prob(torch.zeros(3, 2), given=first, asked=~first).shape
        torch.Size([3])
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor
    log_shares_joined: Tensor

    def __init__(self, components: int, dim: int, sizes: Sequence[int] = ()) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"Expected components of at least 1; got {components}: raise it")
        self.components, self.dim, self.sizes = components, dim, [*sizes]
        shares = [torch.zeros(components, size).double().log_softmax(1) for size in sizes]
        buffers = {
            "log_weights": torch.zeros(components).double().log_softmax(0),
            "means": torch.zeros(components, dim),
            "covariances": torch.eye(dim).repeat(components, 1, 1),
            "log_shares_joined": torch.cat([torch.zeros(components, 0), *shares], 1),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer.double())

    @property
    def log_shares(self) -> Sequence[Tensor]:
        """The log-shares of the codes, (K, size) for each categorical coordinate."""
        parts: Sequence[Tensor] = self.log_shares_joined.split(self.sizes, 1)
        return parts

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, ready for JSON."""
        return {"components": self.components, "dim": self.dim, "sizes": [*self.sizes]}

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """Return a mixture of that config; its numbers are those of the state to be loaded."""
        return cls(**config)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to a device, but keep float64: factors of covariances need it."""

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        return self

    @staticmethod
    def fit(
        z: Tensor,
        codes: Tensor | None = None,
        sizes: Sequence[int] = (),
        components: int = 10,
        weight: Tensor | None = None,
        iterations: int = ITERATIONS,
        seed: int = 0,
        seconds: float = inf,
        prior: float = PRIORS[0],
        floor: float = FLOOR,
    ) -> NormalMixture:
        """Return a mixture fitted by expectation maximisation to rows with gaps.

        Incremental: each step recomputes the expected moments of one batch of rows and then the
        parameters from those of all batches. What a row does not tell is marginalised, so a row of
        gaps alone counts nothing.

        Args:
            z: Rows (rows, C), NaN where unknown.
            codes: Codes (rows, J), −1 where unknown; None without categorical coordinates.
            sizes: The number of codes of each categorical coordinate.
            components: K; fewer where there are fewer rows.
            weight: Weights of the rows (rows,).
            iterations: Passes over the rows at most; it ends when they hardly improve.
            seed: Of the start, and of the order of the rows.
            seconds: Time after which it ends with what it has.
            prior: Rows of the table's covariance, shrunk by K^(−2/C), that each component has
                beforehand: the more, the smoother.
            floor: Share of a column's variance that is added to each component's.

        Source: Neal and Hinton (1998), A view of the EM algorithm that justifies incremental,
        sparse, and other variants; Ghahramani and Jordan (1994), Supervised learning from
        incomplete data via an EM approach; Fraley and Raftery (2007), Bayesian regularization for
        normal mixture estimation and model-based clustering.
        """
        from cnf.mixtures.fitting import MixtureFitting

        fitting = MixtureFitting(z, codes, sizes, weight, seed, floor)
        return fitting.run(components, iterations, seconds, prior)

    @staticmethod
    def choose(
        z: Tensor,
        validation_z: Tensor,
        codes: Tensor | None = None,
        validation_codes: Tensor | None = None,
        sizes: Sequence[int] = (),
        weight: Tensor | None = None,
        seconds: float = inf,
        max_components: int = 200,
        seed: int = 0,
    ) -> NormalMixture:
        """Return the fit whose number of components is best on held-out rows.

        The numbers 1, 2, 5, 10, 20 … are tried until the mean log-likelihood of what is seen of the
        held-out rows has worsened twice; then, from the best number on, with a stronger prior,
        since many smooth components may be better than a few. The best one is fitted to the end if
        that helps. The search ends early when the seconds are over. Other arguments as in `fit`.
        """
        from cnf.mixtures.fitting import MixtureFitting

        end = perf_counter() + seconds
        fitting = MixtureFitting(z, codes, sizes, weight, seed, FLOOR)
        best, best_score, best_prior = None, -inf, PRIORS[0]
        for prior in PRIORS:
            first = 1 if best is None else best.components
            path_score, worse = -inf, 0
            for components in (k for k in COMPONENTS if first <= k <= max_components):
                left = end - perf_counter()
                if best is not None and left < LEAST_PASSES * components * fitting.pass_seconds:
                    break
                mixture = fitting.run(components, SEARCH_PASSES, left, prior)
                score = mixture._score(validation_z, validation_codes)
                if best is None or score > best_score:
                    best, best_score, best_prior = mixture, score, prior
                worse = 0 if score > path_score else worse + 1
                if worse == PATIENCE:
                    break
                path_score = max(score, path_score)
        assert best is not None
        left = end - perf_counter()
        if left <= 0:
            return best
        mixture = fitting.run(best.components, ITERATIONS, left, best_prior, best)
        better = mixture._score(validation_z, validation_codes) > best_score
        return mixture if better else best

    def _score(self, z: Tensor, codes: Tensor | None) -> float:
        """Return the mean log-likelihood of what is seen of rows."""
        seen = ~z.isnan()
        known = None if codes is None else codes >= 0
        return self.log_prob(z.double(), ~seen & seen, seen, codes, None, known).mean().item()

    def log_prob(
        self,
        z: Tensor,
        given: Tensor,
        asked: Tensor,
        codes: Tensor | None = None,
        codes_given: Tensor | None = None,
        codes_asked: Tensor | None = None,
    ) -> Tensor:
        """Return log p(asked z and codes | given z and codes); other columns are marginalised.

        Args:
            z: Rows (rows, C); numbers that are neither given nor asked may be anything.
            given: Mask of the given columns.
            asked: Mask of the asked columns, none of them given.
            codes: Codes (rows, J), −1 where unknown; None without categorical coordinates.
            codes_given: Mask of the given codes, (rows, J) or (J,); None for none.
            codes_asked: Mask of the asked codes.

        Returns:
            Log-densities (rows,), differentiable in z; 0 where nothing is asked.
        """
        known = self.log_weights + self.log_codes(codes, codes_given, len(z))
        joint = known + self.log_codes(codes, codes_asked, len(z))
        # Rows with masks of their own often have one in common of what is given or asked.
        of_given = of_both = self.log_given(z, given)
        if asked.any():
            of_both = self.log_given(z, given | asked)
            of_both = torch.where(asked.any(-1, keepdim=True), of_both, of_given)
        found = (of_both + joint).logsumexp(1) - (of_given + known).logsumexp(1)
        return found.to(z.dtype)

    @torch.no_grad()
    def mean(
        self,
        z: Tensor,
        given: Tensor,
        asked: Tensor,
        codes: Tensor | None = None,
        codes_given: Tensor | None = None,
    ) -> Tensor:
        """Return z with E[z | given z and codes] at the asked columns, (rows, C)."""
        values = []
        blocks = MaskBlocks(given, asked, len(z), self)
        known = self.log_weights + self.log_codes(codes, codes_given, len(z))
        for block in blocks:
            factor = self.factor(block)
            white, logits = self.given_terms(factor, block, z, known)
            means = self.means[:, block.order].transpose(0, 1)[..., None] + factor @ white
            values.append(
                block.scatter((logits.softmax(1)[:, :, None] * means).sum(1).mT, self.dim)
            )
        return torch.where(asked, blocks.join(values).to(z.dtype), z)

    @torch.no_grad()
    def sample(
        self,
        z: Tensor,
        given: Tensor,
        asked: Tensor,
        codes: Tensor | None = None,
        codes_given: Tensor | None = None,
        codes_asked: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return z (rows, C) and codes (rows, J) with one joint draw of what is asked.

        Arguments as in `log_prob`; codes that are asked are drawn whether they are known or not.
        """
        shapes = (len(z), 1 + len(self.sizes)), (len(z), self.dim)
        uniform = torch.rand(shapes[0], generator=generator, dtype=torch.float64, device=z.device)
        noise = torch.randn(shapes[1], generator=generator, dtype=torch.float64, device=z.device)
        blocks = MaskBlocks(given, asked, len(z), self)
        known = self.log_weights + self.log_codes(codes, codes_given, len(z))
        values, components = [], []
        for block in blocks:
            factor = self.factor(block)
            white, logits = self.given_terms(factor, block, z, known)
            component = _draw(logits.softmax(1).mT, uniform[block.rows, 0])  # (M, r)
            index = torch.arange(len(component), device=z.device)[:, None]
            white = white[index, component, :, torch.arange(white.shape[3], device=z.device)]
            white = torch.where(block.given[:, None], white, block.gather(noise))
            means = self.means[component[..., None], block.order[:, None]]
            drawn = means + (factor[index, component] @ white[..., None])[..., 0]
            values.append(block.scatter(drawn, self.dim))
            components.append(component)
        z = torch.where(asked, blocks.join(values).to(z.dtype), z)
        if codes is None or codes_asked is None:
            return z, known.new_empty(len(z), 0, dtype=torch.long) if codes is None else codes
        component = blocks.join(components)
        drawn_codes = [
            _draw(shares[component].exp(), uniform[:, 1 + j])
            for j, shares in enumerate(self.log_shares)
        ]
        return z, torch.where(codes_asked, torch.stack(drawn_codes, 1), codes)

    def factor(self, block: MaskBlock) -> Tensor:
        """Return the Cholesky factors (M, K, V, V) of the covariances of a block's columns."""
        masks, width = block.order.shape
        shape = masks, self.components, -1
        entry = block.order[:, :, None] * self.dim + block.order[:, None]
        flat = self.covariances.view(1, self.components, -1).expand(shape)
        # A gather is several times faster than indexing by two tensors.
        chosen = flat.gather(2, entry.view(masks, 1, -1).expand(shape))
        found: Tensor = torch.linalg.cholesky(chosen.view(*shape[:2], width, width))
        return found

    def given_terms(
        self, factor: Tensor, block: MaskBlock, z: Tensor, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the given columns' e = L⁻¹ (z − μ), (M, K, V, r), and log w_k p_k, (M, K, r).

        Other columns' e are 0.
        """
        numbers = torch.where(block.given[:, None], block.gather(z.double()), 0.0)
        white = _whitened(factor, numbers, self.means[:, block.order].transpose(0, 1))
        if not block.given.all():
            white = torch.where(block.given[:, None, :, None], white, 0.0)
        scales = factor.diagonal(dim1=-2, dim2=-1).log() * block.given[:, None]
        constants = 0.5 * log(2 * pi) * block.given.double().sum(1)
        log_given = -0.5 * white.square().sum(2) - (scales.sum(2) + constants[:, None])[..., None]
        return white, log_given + known[block.rows].mT

    def log_given(self, z: Tensor, given: Tensor) -> Tensor:
        """Return log p_k(given z), (rows, K)."""
        blocks = MaskBlocks(given, torch.zeros_like(given), len(z), self)
        known = self.log_weights.new_zeros(len(z), self.components)
        terms = (self.given_terms(self.factor(block), block, z, known)[1].mT for block in blocks)
        return blocks.join([*terms])

    def log_codes(self, codes: Tensor | None, mask: Tensor | None, rows: int) -> Tensor:
        """Return Σ_j log p_k(d_j) over the codes of a mask that are known, (rows, K)."""
        total = self.log_weights.new_zeros(rows, self.components)
        if codes is None or mask is None:
            return total
        mask = (mask & (codes >= 0)).T
        for shares, column, counted in zip(self.log_shares, codes.T, mask, strict=True):
            total = total + torch.where(counted[:, None], shares.T[column.clamp(min=0)], 0.0)
        return total


class MaskBlock(NamedTuple):
    """Rows of M masks, r of each: columns in an order of the mask, given ones first, asked next.

    Masks of fewer rows repeat their last one, and masks of fewer columns have others last.
    """

    rows: Tensor  # (M, r)
    real: Tensor  # (M, r): 1 for a row, 0 for a repeated one
    order: Tensor  # (M, V)
    given: Tensor  # (M, V): whether that column is given

    def gather(self, z: Tensor) -> Tensor:
        """Return numbers (M, r, V) of rows (rows, C)."""
        return z[self.rows[..., None], self.order[:, None]]

    def scatter(self, numbers: Tensor, dim: int) -> Tensor:
        """Return rows (M, r, C) of numbers (M, r, V), 0 in columns outside of the block."""
        index = self.order[:, None].expand_as(numbers)
        return numbers.new_zeros(*numbers.shape[:2], dim).scatter(2, index, numbers)


class MaskBlocks:
    """The rows of a question in blocks of equal masks, small enough to be computed at once."""

    def __init__(self, given: Tensor, asked: Tensor, rows: int, mixture: NormalMixture) -> None:
        dim = mixture.dim
        kinds = torch.where(given, 0, torch.where(asked, 1, 2)).to(torch.int8)
        if rows == 0 or dim == 0:  # no masks to tell apart
            kinds = kinds.new_zeros(dim)
        if kinds.dim() == 1:
            self.masks, inverse = kinds[None], kinds.new_zeros(rows, dtype=torch.long)
        else:
            self.masks, inverse = torch.unique(kinds, dim=0, return_inverse=True)
        self.kinds, self.order = self.masks.sort(dim=1, stable=True)
        self.sorted = inverse.argsort(stable=True)
        self.row_cost = mixture.components * dim + dim**2 + 1
        self.mask_cost = mixture.components * dim**2 + 1
        self._split(inverse, max(1, BLOCK_NUMBERS // self.row_cost))
        self.places = inverse.new_empty(rows)

    def _split(self, inverse: Tensor, limit: int) -> None:
        """Cut the rows of each mask into pieces of at most so many rows."""
        counts = torch.bincount(inverse, minlength=len(self.masks))
        pieces = ((counts + limit - 1) // limit).clamp(min=1)  # also where there are no rows
        self.mask = torch.arange(len(counts), device=counts.device).repeat_interleave(pieces)
        first = (pieces.cumsum(0) - pieces)[self.mask]
        offset = (torch.arange(len(self.mask), device=counts.device) - first) * limit
        self.size = (counts[self.mask] - offset).clamp(max=limit)
        self.start = (counts.cumsum(0) - counts)[self.mask] + offset

    def __iter__(self) -> Iterator[MaskBlock]:
        """Yield blocks of masks whose numbers of rows differ by a factor of two at most."""
        at = 0
        magnitude = self.size.double().log2().ceil()
        for value in magnitude.unique():
            members = (magnitude == value).nonzero()[:, 0]
            count = int(self.size[members].max())
            step = max(1, BLOCK_NUMBERS // (self.mask_cost + count * self.row_cost))
            for part in members.split(step):
                block = self._block(part, count)
                rows = block.rows.flatten()
                self.places[rows] = at + torch.arange(len(rows), device=rows.device)
                at += len(rows)
                yield block

    def _block(self, part: Tensor, count: int) -> MaskBlock:
        """Return the block of some pieces, the largest of which has count rows."""
        number = torch.arange(count, device=part.device)
        last = self.size[part, None] - 1
        kinds = self.kinds[self.mask[part]]
        width = int((kinds < 2).sum(1).max())
        kinds = kinds[:, :width]
        return MaskBlock(
            self.sorted[self.start[part, None] + torch.minimum(number, last)],
            (number <= last).double(),
            self.order[self.mask[part], :width],
            kinds == 0,
        )

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Return the blocks' values (M, r, …) in the order of the rows, (rows, …)."""
        return torch.cat([value.flatten(0, 1) for value in values])[self.places]


def _whitened(factor: Tensor, z: Tensor, means: Tensor) -> Tensor:
    """Return L⁻¹ (z − μ), (M, K, V, r); of many rows by one product of matrices for all components.

    Shapes: factors (M, K, V, V), rows (M, r, V) and means (M, K, V).
    """
    found: Tensor
    if z.shape[1] < LEAST_INVERTED * z.shape[2]:
        apart = z.mT[:, None] - means[..., None]
        found = torch.linalg.solve_triangular(factor, apart, upper=False)
        return found
    identity = torch.eye(z.shape[2], dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    center = means.mean(1)  # far from 0 the difference of both products would be rounded
    products = inverse.flatten(1, 2) @ (z - center[:, None]).mT
    shifts = inverse @ (means - center[:, None])[..., None]
    found = products.unflatten(1, factor.shape[1:3]) - shifts
    return found


def _draw(shares: Tensor, uniform: Tensor) -> Tensor:
    """Return the numbers of classes (…) of shares (…, classes), by uniform numbers (…)."""
    passed = shares.cumsum(-1) <= uniform[..., None] * shares.sum(-1, keepdim=True)
    return passed.sum(-1).clamp(max=shares.shape[-1] - 1)
