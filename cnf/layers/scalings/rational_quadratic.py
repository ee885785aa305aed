"""Monotone rational-quadratic interpolation."""

from typing import NamedTuple, Self

import torch
from torch import Tensor


class RationalQuadratic(NamedTuple):
    """An increasing curve for each column, between knots a ratio of quadratics.

    It passes through the knots (x_k, y_k) with slopes δ_k. Between two of them, h apart in y and
    with a secant of slope s, at the fraction t of the distance,

        y = y_k + h (s t² + δ_k t (1 − t)) / (s + (δ_k + δ_{k+1} − 2 s) t (1 − t)),

    which increases for any positive slopes, and whose inverse is the root of a quadratic. Beyond
    the ends, where y < 0 and y > 0, y² continues linearly with its slope there: x has exponential
    tails where y ~ N(0, 1).

    Attributes:
        x: The knots, shape (columns, knots), padded after a column's last one by larger numbers.
        y: Values at the knots, shape (columns, knots).
        slope: Slopes at the knots, shape (columns, knots).
        last: Index of each column's last knot, shape (columns, 1).

    Source: Gregory and Delbourgo (1982), Piecewise rational quadratic interpolation to monotonic
    data.

    Example:
        >>> knots = torch.tensor([[-1.0, 0.0, 3.0]], dtype=torch.float64)
        >>> curve = RationalQuadratic.through(knots, knots.sinh())
        >>> y, log_slope = curve.forward(torch.tensor([[-1.0, 0.5, 4.0]], dtype=torch.float64))
        >>> curve.inverse(y)
        tensor([[-1.0000,  0.5000,  4.0000]], dtype=torch.float64)
    """

    x: Tensor
    y: Tensor
    slope: Tensor
    last: Tensor

    @classmethod
    def through(cls, x: Tensor, y: Tensor) -> Self:
        """Build the curve through knots of shape (columns, knots), increasing in x and y.

        A knot's slope is the weighted harmonic mean of the adjacent secants, and at an end the
        secant.

        Source: Fritsch and Butland (1984), A method for constructing local monotone piecewise cubic
        interpolants.
        """
        width = x.diff()
        secant = y.diff() / width
        left, right = width[:, :-1] + 2 * width[:, 1:], 2 * width[:, :-1] + width[:, 1:]
        inner = (left + right) / (left / secant[:, :-1] + right / secant[:, 1:])
        slope = torch.cat([secant[:, :1], inner, secant[:, -1:]], 1)
        return cls(x, y, slope, torch.full_like(x[:, :1], x.shape[1] - 1, dtype=torch.long))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate y at points x, shape (columns, points), with the logarithm of the slope."""
        (x0, x1), (y0, y1), (d0, d1) = self._bracket(self.x, x)
        inside = x.clamp(*self._ends(self.x))
        width, height = x1 - x0, y1 - y0
        secant, t = height / width, ((inside - x0) / width).clamp(0, 1)
        both = t * (1 - t)
        below = secant + (d0 + d1 - 2 * secant) * both
        y = y0 + height * (secant * t.square() + d0 * both) / below
        above = d1 * t.square() + 2 * secant * both + d0 * (1 - t).square()
        log_slope = 2 * (secant.log() - below.log()) + above.log()
        outside = x != inside
        growth = y * log_slope.exp()
        root = (y.square() + 2 * growth * (x - inside)).clamp(min=1e-12).sqrt()
        return (
            torch.where(outside, root.copysign(y), y),
            torch.where(outside, growth.abs().clamp(min=1e-30).log() - root.log(), log_slope),
        )

    def inverse(self, y: Tensor) -> Tensor:
        """Return the points x with values y, both of shape (columns, points)."""
        (x0, x1), (y0, y1), (d0, d1) = self._bracket(self.y, y)
        inside = y.clamp(*self._ends(self.y))
        width, height = x1 - x0, y1 - y0
        secant, risen = height / width, (inside - y0).clamp(min=0)
        bend = risen * (d0 + d1 - 2 * secant)
        a, b, c = height * (secant - d0) + bend, height * d0 - bend, -secant * risen
        root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
        t = (-2 * c / (b + root)).clamp(0, 1)
        end_slope = torch.where(inside <= y0, d0, d1)
        growth = torch.where(y != inside, 2 * inside * end_slope, 1.0)
        return x0 + t * width + (y.square() - inside.square()) / growth * (y != inside)

    def _ends(self, knots: Tensor) -> tuple[Tensor, Tensor]:
        return knots[:, :1], knots.gather(1, self.last)

    def _bracket(self, knots: Tensor, points: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return x, y and slope at the knots around points; at the last two beyond an end."""
        after = torch.searchsorted(knots, points.detach().contiguous(), right=True)
        after = torch.minimum(after.clamp(min=1), self.last)
        return [
            (each.gather(1, after - 1), each.gather(1, after))
            for each in (self.x, self.y, self.slope)
        ]
