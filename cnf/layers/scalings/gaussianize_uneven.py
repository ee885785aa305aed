"""A Gaussianization of the columns that are far from normal, or have edges."""

from cnf.layers.scalings.gaussianize import Gaussianize
from cnf.layers.scalings.quantiles import Array, curve_gains

LEAST_GAIN = 0.2  # nats over a normal distribution
LEAST_EDGES = 0.05  # nats over smooth ones


class GaussianizeUneven(Gaussianize):
    """The marginal Gaussianization of the columns that are far from normal, or have edges.

    A column has a curve where this gains 0.2 nats over a normal distribution, or 0.05 over the best
    of this, a uniform distribution and a curve of few bins; the others are standardised. 0.2 is a
    little more than a uniform column gains, 0.18; skewed columns, spikes and separate clusters gain
    more. Edges are what rounded numbers have to which noise was added, and what a field learns
    slowly. But a curve bends whatever depends on its column, which the field has to undo: with many
    rows it learns the shape of a nearly even, smooth column sooner.

    Arguments are those of `cnf.layers.scalings.scaling.Scaling`.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Source: Chen and Gopinath (2000), Gaussianization.

    Example:
        >>> import torch
        >>> x = torch.stack([torch.linspace(-2, 2, 2000), torch.linspace(-4, 4, 2000).exp()], 1)
        >>> GaussianizeUneven(2).fit(x).shaped
        tensor([False,  True])
    """

    def _needs_curve(self, values: Array, weights: Array) -> bool:
        gains = curve_gains(values, weights)
        return gains.normal > LEAST_GAIN or gains.edges > LEAST_EDGES
