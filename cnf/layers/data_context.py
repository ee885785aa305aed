"""An encoder of data that parameters are inferred from: standardised numbers, scores, features."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnf.layers.context import ContextEncoder
from cnf.layers.scalings.quantiles import curve_gains

KNOTS = 64  # of each column's scores
MAX_SCORED = 100  # columns, each of which takes some hundredths of a second to look at
UNEVEN_GAIN = 0.2  # nats over a normal distribution from which a column has scores
# Numbers may be beyond these quantiles of a column by as much as they are apart: to ±7 deviations
# of a normal column; the outermost of a Cauchy one, a thousand times as far as most, are not.
QUANTILE = 0.01


class DataContext(ContextEncoder):
    """Standardised data, followed by normal scores of its uneven columns; or features of it.

    A column is uneven where its distribution is far from normal, such as counts that range over
    orders of magnitude: its small values, which are one to a linear scale, differ in their scores
    Φ⁻¹(F(x)), with F the distribution function. Scores are 0 in other columns; data of more than
    100 numbers have none. A column without spread is 0. Values far beyond the hundredths of the fit
    at either end, by more than these are apart, are replaced: no map is extrapolated further.

    With an embedding the standardised data take their shape and pass through it.

    Args:
        shape: The data's shape, without the rows.
        embedding: A module that maps data (rows, *shape) to features (rows, features).

    Raises:
        ValueError: The shape is empty, the embedding fails or returns no rows of features; or, from
            `config`, there is an embedding, which no configuration can make anew.

    Attributes:
        features: The number of columns that it returns.

    Shapes: (rows, numbers) or (rows, *shape) → (rows, features).

    Example:
        >>> encoder = DataContext([2])
        >>> encoder.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> encoder(torch.tensor([[3.0, 5.0]]))
        tensor([[1., 0., 0., 0.]])
    """

    loc: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    knots: Tensor
    scores: Tensor
    fitted: Tensor

    def __init__(self, shape: Sequence[int], embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.dim = prod(self.shape) if self.shape else 0
        if self.dim < 1:
            raise ValueError(f"Expected data of shape (rows, numbers); got (rows, *{self.shape})")
        self.register_buffer("loc", torch.zeros(self.dim))
        self.register_buffer("scale", torch.ones(self.dim))
        self.register_buffer("low", torch.full((self.dim,), -torch.inf))
        self.register_buffer("high", torch.full((self.dim,), torch.inf))
        self.scored = self.dim if embedding is None and self.dim <= MAX_SCORED else 0
        self.register_buffer("knots", torch.linspace(0, 1, KNOTS).repeat(self.scored, 1))
        self.register_buffer("scores", torch.zeros(self.scored, KNOTS))
        self.register_buffer("fitted", torch.tensor(False))
        self.embedding = embedding
        self.features = self.dim + self.scored
        if embedding is not None:
            self.features = _features_of(embedding, self.shape)

    def fit(self, context: Tensor, weight: Tensor | None = None) -> None:
        if self.fitted:
            return
        rows, shares = context.double().cpu(), torch.ones(len(context)).double()
        if weight is not None:
            rows, shares = (each[weight.cpu() > 0] for each in (rows, weight.double().cpu()))
        shares = shares / shares.sum()
        loc = shares @ rows
        scale = (shares @ (rows - loc).square()).sqrt()
        # A column whose values differ in their last digit is constant.
        varies = scale > torch.finfo(context.dtype).eps * rows.abs().amax(0)
        scale = torch.where(varies, scale, torch.inf)
        low, high = _outer_quantiles((rows - loc) / scale, shares)
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        reach = (high - low).clamp(min=1.0)  # where nearly all values are the same
        self.low.copy_(low - reach)
        self.high.copy_(high + reach)
        for column in varies[: self.scored].nonzero().flatten().tolist():
            values = rows[:, column].numpy()
            if curve_gains(values).normal > UNEVEN_GAIN:
                knots, scores = _score_curve(values, shares.numpy())
                self.knots[column] = torch.from_numpy(knots).to(self.knots)
                self.scores[column] = torch.from_numpy(scores).to(self.scores)
        self.fitted.fill_(True)

    def forward(self, context: Tensor) -> Tensor:
        context = context.flatten(1)
        standard = ((context - self.loc) / self.scale).clamp(self.low, self.high)
        if self.embedding is not None:
            embedded: Tensor = self.embedding(standard.unflatten(1, self.shape))
            return embedded
        return torch.cat([standard, self._scored(context)], 1) if self.scored else standard

    def config(self) -> dict[str, Any]:
        if self.embedding is not None:
            raise ValueError(
                "Expected a flow without an embedding_net to save; got one with "
                f"{type(self.embedding).__name__}: save flow.state_dict() yourself, and make the "
                "flow anew before loading it"
            )
        return {"shape": [*self.shape]}

    def _scored(self, context: Tensor) -> Tensor:
        """Return the scores of all columns, interpolated between knots and constant beyond them."""
        columns = context.T.contiguous()
        above = torch.searchsorted(self.knots, columns).clamp(1, KNOTS - 1)
        (x0, x1), (y0, y1) = (
            (each.gather(1, above - 1), each.gather(1, above)) for each in (self.knots, self.scores)
        )
        share = ((columns - x0) / (x1 - x0)).clamp(0, 1)
        return torch.lerp(y0, y1, share).T


def _features_of(net: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the number of features that a net makes, which is left as it was."""
    like = next((each for each in net.parameters() if each.is_floating_point()), torch.empty(0))
    modes = {part: part.training for part in net.modules()}
    net.eval()  # in which a pass changes no statistics
    expected = f"Expected an embedding_net that maps zeros (2, *{shape}) to (2, features); got"
    try:
        with torch.no_grad():
            found: Tensor = net(like.new_zeros(2, *shape))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{expected} {' '.join(str(error).split())}") from None
    finally:
        for part, mode in modes.items():
            part.training = mode
    if found.ndim != 2 or len(found) != 2:
        raise ValueError(f"{expected} {tuple(found.shape)}")
    return found.shape[1]


def _outer_quantiles(rows: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of each column, (rows, columns), below and above which a hundredth is."""
    ordered, order = rows.sort(0)
    below = shares[order].cumsum(0)
    ends = []
    for level in (QUANTILE, 1 - QUANTILE):
        place = (below < level).sum(0, keepdim=True).clamp(max=len(rows) - 1)
        ends.append(ordered.gather(0, place)[0])
    return ends[0], ends[1]


def _score_curve(values: Any, weights: Any) -> tuple[Any, Any]:
    """Return `KNOTS` increasing values, and the scores of their middle ranks."""
    distinct, places = np.unique(values, return_inverse=True)
    counts = np.bincount(places, weights)
    shares = (counts.cumsum() - counts / 2) / counts.sum()
    places = np.searchsorted(shares, np.linspace(0, 1, KNOTS)).clip(0, len(distinct) - 1)
    places = np.unique(places)
    knots, levels = distinct[places], shares[places]
    scores = torch.special.ndtri(torch.from_numpy(levels)).numpy()
    missing = KNOTS - len(knots)  # their scores are the last one's
    beyond = knots[-1] + (1.0 + abs(knots[-1])) * np.arange(1, missing + 1)
    return np.append(knots, beyond), np.append(scores, np.full(missing, scores[-1]))
