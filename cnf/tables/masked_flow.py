"""A flow of the asked columns of a row given other ones, for any two disjoint sets of columns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from cnf.fields.conditional import Conditional, GroupedQuestions, OneQuestion
from cnf.layers import CNF, TransformResult
from cnf.layers.settings import SolverSettings
from cnf.mixtures.normal import NormalMixture
from cnf.ode import SolveError, Status

MIN_GROUP = 256  # rows of a mask that are worth a solve
MAX_NUMBERS = 2**21  # of a matrix or a layer of rows that are solved together, each with a mask


class Whitening(NamedTuple):
    """The affine maps of masks to coordinates in which asked columns are about white.

    With the mean μ and covariance Σ of the mixture, an asked column's coordinates are

        e_a = L⁻¹ (z_a − μ_a − Σ_ag Σ_gg⁻¹ (z_g − μ_g)),   L Lᵀ = Σ_aa − Σ_ag Σ_gg⁻¹ Σ_ga,

    those of a given one z_g − μ_g, and those of others 0.

    Attributes:
        mean: μ, (dim,).
        given: The masks of given columns, (masks, 1, dim).
        asked: Those of asked columns.
        regression: The map from given columns to the mean of asked ones, (masks, dim, dim).
        factor: L, with ones on the diagonal in other columns, (masks, dim, dim).
    """

    mean: Tensor
    given: Tensor
    asked: Tensor
    regression: Tensor
    factor: Tensor

    @staticmethod
    @torch.no_grad()
    def of(base: NormalMixture, given: Tensor, asked: Tensor) -> Whitening:
        """Return the maps of masks, bool, (masks, dim)."""
        shares = base.log_weights.softmax(0)
        mean = shares @ base.means
        apart = base.means - mean
        covariance = torch.einsum("k,kij->ij", shares, base.covariances)
        covariance = covariance + (shares * apart.T) @ apart
        g, a = (mask.to(mean).unsqueeze(1) for mask in (given, asked))
        own = torch.linalg.cholesky(covariance * g.mT * g + torch.diag_embed(1 - g[:, 0]))
        cross = torch.linalg.solve_triangular(own, covariance * g.mT * a, upper=False)
        rest = covariance * a.mT * a - cross.mT @ cross + torch.diag_embed(1 - a[:, 0])
        regression = torch.linalg.solve_triangular(own.mT, cross, upper=True)
        return Whitening(mean, g, a, regression, torch.linalg.cholesky(rest))

    def forward(self, z: Tensor) -> Tensor:
        """Return coordinates (rows, dim) of rows, equally many of each mask."""
        apart = (z - self.mean).unflatten(0, (len(self.given), -1))
        given = torch.where(self.given > 0, apart, 0.0)
        rest = torch.where(self.asked > 0, apart, 0.0) - given @ self.regression
        white: Tensor = torch.linalg.solve_triangular(self.factor, rest.mT, upper=False)
        return (white.mT * self.asked + given).flatten(0, 1)

    def inverse(self, e: Tensor) -> Tensor:
        """Return rows with the asked columns of coordinates; others of no use."""
        e = e.unflatten(0, (len(self.given), -1))
        asked = (e * self.asked) @ self.factor.mT + (e * self.given) @ self.regression
        return (asked + self.mean).flatten(0, 1)


class MaskedFlow(nn.Module):
    """p(z_a | z_g) for any disjoint sets of asked columns a and given columns g.

        log p(z_a | z_g) = log p_base(y_a | z_g) + ∫ tr_a,   y_a the start of the path to z_a

    The asked columns alone move, along a field of the given values and of both masks, from the
    exact conditional of a mixture of normal distributions. The field starts at zero, where the
    model is the mixture. It is one over coordinates in which the asked columns are about white
    (`Whitening`): an affine map for each mask, which no log-determinant depends on. Columns that
    are neither given nor asked are marginalised.

    Codes d of other columns are given where the mixture has categoricals, log p(z_a | z_g, d); the
    sum of a vector for each code, or for an unknown one, is a further given part of the state.

    Args:
        base: The mixture.
        hidden: Widths of the field's two hidden layers.
        activation: A name in `cnf.fields.ACTIVATIONS`.
        time_features: The number of sines and of cosines of time in the field.
        embedding: Width of the vectors of codes.
        solver: Any of `cnf.layers.SolverSettings`' attributes.

    Raises:
        ValueError: A size or a setting is out of range.
        cnf.ode.SolveError: From any method: a solve failed.

    Attributes:
        dim: The number of columns.
        code_shares: The share of the mixture in conditionals of each coordinate of codes, which a
            network answers besides; see `cnf.tables.code_prior.CodePrior`.

    Shapes: rows z (rows, dim), of any floating dtype, and masks, bool, (rows, dim) or (dim,) where
        all rows share one. Values that are neither given nor asked may be anything, NaN included.
        Codes (rows, J), −1 where unknown; all are unknown when None.

    Example:
        >>> flow = MaskedFlow(NormalMixture(2, 3), hidden=(8, 8))
        >>> given, asked = torch.tensor([[True, False, False], [False, True, False]])
        >>> flow.log_prob(torch.zeros(5, 3), given, asked).shape
        torch.Size([5])
    """

    def __init__(
        self,
        base: NormalMixture,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        time_features: int = 0,
        embedding: int = 16,
        **solver: Any,
    ) -> None:
        super().__init__()
        self.base = base
        self.embedding = embedding
        self.code_shares: Tensor
        shares = torch.zeros(len(base.sizes), dtype=torch.float64)
        self.register_buffer("code_shares", shares)
        self.vectors = _code_vectors(base.sizes, embedding)
        width = base.dim + (embedding if base.sizes else 0)
        self.field = Conditional(width, hidden, activation, time_features)
        self.settings = SolverSettings().replaced({"divergence": "exact", **solver})

    @property
    def dim(self) -> int:
        return self.base.dim

    @property
    def device(self) -> torch.device:
        return self.field.last.linear.weight.device

    @property
    def moves(self) -> bool:
        """Whether the field differs from zero, so that the model is more than the mixture."""
        return any(bool(parameter.any()) for parameter in self.field.last.parameters())

    @torch.no_grad()
    def begin(self) -> None:
        """Set the field to zero, where the model is the mixture."""
        for parameter in self.field.last.parameters():
            parameter.zero_()

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments (without weights), JSON-ready; see `of`."""
        network = self.field.config()
        del network["dim"]
        own = {"base": self.base.config(), "embedding": self.embedding}
        return {**own, **network, **self.settings.model_config()}

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """Return the model of a `config`, with a mixture and weights to be loaded."""
        return cls(**{**config, "base": NormalMixture.of(config["base"])})

    def with_solver(self, **changes: Any) -> Self:
        """Return a model that shares the parameters, with some `SolverSettings` changed."""
        view = copy.copy(self)
        view.settings = self.settings.replaced(changes)
        return view

    def in_double(self) -> Self:
        """Return a copy in double precision, whose code is not compiled."""
        return copy.deepcopy(self).with_solver(compile=False).double()

    def log_prob(
        self, z: Tensor, given: Tensor, asked: Tensor, codes: Tensor | None = None
    ) -> Tensor:
        """Return log p(asked | given, codes), (rows,), 0 where nothing is asked."""
        self._check(z, given, asked)
        start, log_det = self._moved(z, given, asked, codes, forward=False)
        known = None if codes is None else codes >= 0
        return (self.base.log_prob(start, given, asked, codes, known) + log_det).to(z.dtype)

    def score(
        self, z: Tensor, given: Tensor, asked: Tensor, codes: Tensor
    ) -> tuple[Tensor, NDArray[np.object_]]:
        """Return log p(asked | given, codes), NaN where a solve fails, and each row's status."""
        try:
            return self.log_prob(z, given, asked, codes), np.full(len(z), Status.FINISHED)
        except SolveError as error:
            if len(z) == 1:
                return z.new_full((1,), torch.nan), np.array([error.solution.status])
        half = len(z) // 2
        parts = []
        for some in (slice(half), slice(half, None)):
            g, a = (mask[some] if mask.ndim == 2 else mask for mask in (given, asked))
            parts.append(self.score(z[some], g, a, codes[some]))
        found, status = zip(*parts, strict=True)
        return torch.cat(found), np.concatenate(status)

    def log_prob_of_groups(
        self, z: Tensor, given: Tensor, asked: Tensor, codes: Tensor | None = None
    ) -> tuple[Tensor, TransformResult]:
        """Return log p(asked | given), (rows,), and the cost, for groups of rows in joint steps.

        The rows come in groups of equal size, one after the other, each with one row of the masks,
        (groups, dim). All rows of a group see what it asks and is given.
        """
        rows = len(z) // len(given)
        field = GroupedQuestions(self.field, *self._numbers(given, asked))
        white = Whitening.of(self.base, given, asked)
        given, asked = (mask.repeat_interleave(rows, 0) for mask in (given, asked))
        settings = vars(self.settings) | {"step": "joint", "compile": False}
        states = self._states(white.forward(z.double()), codes)
        pulled = CNF(field, **settings).pull(states)
        start = torch.where(asked, white.inverse(pulled.value[:, : self.dim].double()), z)
        known = None if codes is None else codes >= 0
        log_prob = self.base.log_prob(start, given, asked, codes, known) + pulled.log_det
        return log_prob.to(z.dtype), pulled

    @torch.no_grad()
    def sample(
        self, z: Tensor, given: Tensor, asked: Tensor, codes: Tensor | None = None
    ) -> Tensor:
        """Return rows with asked columns drawn jointly given the given ones, the others as z's."""
        self._check(z, given, asked)
        known = None if codes is None else codes >= 0
        start, _ = self.base.sample(z.double(), given, asked, codes, known)
        drawn, _ = self._moved(start, given, asked, codes, forward=True)
        return torch.where(asked, drawn.to(z.dtype), z)

    def _moved(
        self, z: Tensor, given: Tensor, asked: Tensor, codes: Tensor | None, forward: bool
    ) -> tuple[Tensor, Tensor]:
        """Return asked values at the other end, in double precision, and log-determinants.

        Others are as they were; draws, forward, have no log-determinant.
        """
        z = z.double()
        if not (len(z) and self.moves):
            return z, z.new_zeros(len(z))
        ends, log_dets = [], []
        parts = self._parts(given, asked, len(z))
        for rows, own_given, own_asked in parts:
            own = None if codes is None else codes[rows]
            end, log_det = self._solved(z[rows], own_given, own_asked, own, forward)
            ends.append(end)
            log_dets.append(log_det)
        places = torch.cat([rows for rows, *_ in parts]).argsort()
        end, log_det = torch.cat(ends)[places], torch.cat(log_dets)[places]
        return torch.where(asked, end, z), log_det

    def _parts(
        self, given: Tensor, asked: Tensor, count: int
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return the numbers of rows that are solved together, with their masks.

        Masks of many rows are solved apart, as one mask each; the other rows have masks of theirs.
        """
        numbers = torch.arange(count, device=asked.device)
        if given.ndim == asked.ndim == 1:
            return [(numbers, given, asked)]
        given, asked = (mask.expand(count, -1) for mask in (given, asked))
        masks, inverse, counts = torch.unique(
            torch.cat([given, asked], 1), dim=0, return_inverse=True, return_counts=True
        )
        large = counts >= MIN_GROUP
        parts = [
            (numbers[inverse == group], *masks[group].split(self.dim))
            for group in large.nonzero().flatten().tolist()
        ]
        numbers_of_row = max(self.dim**2, sum(self.field.hidden))
        rest = numbers[~large[inverse]].split(max(MIN_GROUP, MAX_NUMBERS // numbers_of_row))
        return [*parts, *((rows, given[rows], asked[rows]) for rows in rest if len(rows))]

    def _solved(
        self, z: Tensor, given: Tensor, asked: Tensor, codes: Tensor | None, forward: bool
    ) -> tuple[Tensor, Tensor]:
        """Return rows at the other end of one solve, and their log-determinants."""
        white = Whitening.of(self.base, given.view(-1, self.dim), asked.view(-1, self.dim))
        x, masks = self._states(white.forward(z), codes), self._numbers(given, asked)
        if given.ndim == 1:
            if not asked.any():
                return z, z.new_zeros(len(z))
            layer, context = CNF(OneQuestion(self.field, *masks), **vars(self.settings)), None
        else:
            settings = vars(self.settings) | {"compile": False}
            layer, context = CNF(self.field, **settings), torch.cat(masks, 1)
        if forward:
            end = layer.transport(x, context)[:, : self.dim]
            return white.inverse(end.double()), z.new_zeros(len(z))
        pulled = layer.pull(x, context)
        return white.inverse(pulled.value[:, : self.dim].double()), pulled.log_det.double()

    def _states(self, x: Tensor, codes: Tensor | None) -> Tensor:
        """Return rows as the field takes them: whitened columns, and the sum of codes' vectors."""
        x = self._cast(x)
        if self.vectors is None:
            return x
        sizes = torch.tensor(self.base.sizes, device=x.device)
        codes = sizes.new_full((len(x), len(sizes)), -1) if codes is None else codes
        places = torch.where(codes < 0, sizes, codes) + (sizes + 1).cumsum(0) - (sizes + 1)
        return torch.cat([x, self.vectors(places)], 1)

    def _numbers(self, given: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Return the masks as the field takes them, with the vectors of codes given."""
        width = self.field.dim - self.dim
        return pad(self._cast(given), (0, width), value=1.0), pad(self._cast(asked), (0, width))

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.field.last.linear.weight)

    def _check(self, z: Tensor, given: Tensor, asked: Tensor) -> None:
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise ValueError(f"Expected rows of shape (rows, {self.dim}); got {tuple(z.shape)}")
        for name, mask in (("given", given), ("asked", asked)):
            if mask.dtype != torch.bool or mask.shape not in (z.shape, z.shape[1:]):
                raise ValueError(
                    f"Expected the mask {name} of dtype bool and shape {tuple(z.shape)} or "
                    f"({self.dim},); got {mask.dtype} and {tuple(mask.shape)}"
                )
        if bool((given & asked).any()):
            raise ValueError("Expected columns that are given or asked; got some that are both")


def _code_vectors(sizes: Sequence[int], embedding: int) -> nn.EmbeddingBag | None:
    """Return a vector of each code, and of an unknown one as each coordinate's last."""
    if not sizes:
        return None
    vectors = nn.EmbeddingBag(sum(sizes) + len(sizes), embedding, mode="sum")
    nn.init.normal_(vectors.weight, std=len(sizes) ** -0.5)
    return vectors
