"""A Gaussianization of the columns that are far from normal."""

from typing import ClassVar

from cnf.layers.scalings.gaussianize import Gaussianize


class GaussianizeUneven(Gaussianize):
    """The marginal Gaussianization of the columns whose curve gains 0.2 nats over a Gaussian.

    The others are standardised. That is a little more than a uniform column gains, 0.18; skewed
    columns, spikes and separate clusters gain more. A curve bends whatever depends on its column,
    which the field has to undo: with many rows it learns the shape of a nearly even column sooner.

    Arguments are those of `cnf.layers.scalings.scaling.Scaling`.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Source: Chen and Gopinath (2000), Gaussianization.

    Example:
        >>> import torch
        >>> x = torch.stack([torch.linspace(-2, 2, 2000), torch.linspace(-4, 4, 2000).exp()], 1)
        >>> GaussianizeUneven(2).fit(x).shaped
        tensor([False,  True])
    """

    least_gain: ClassVar[float] = 0.2
