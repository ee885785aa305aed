"""Couplings of base points and data points, between which flow matching draws its paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnf.utils.angles import other_columns, wrap


@dataclass(frozen=True)
class Coupling:
    """A joint distribution of base and data points with the marginals of both.

    Attributes:
        pair: Return base points (rows, dim) in the order of their data points (rows, dim), given
            the columns that are angles.
        keeps_condition: Whether a base point is distributed as the base given its data point's
            context, as the flow of p(x | c) requires.
    """

    pair: Callable[[Tensor, Tensor, Sequence[int]], Tensor]
    keeps_condition: bool


def independent(base: Tensor, data: Tensor, circular: Sequence[int] = ()) -> Tensor:
    """Pair base and data points as they come: the coupling of Lipman et al. (2022).

    Example:
        >>> independent(torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [4.0]]))
        tensor([[0.],
                [1.]])
    """
    return base


def optimal_transport(base: Tensor, data: Tensor, circular: Sequence[int] = ()) -> Tensor:
    """Pair base and data points so that the sum of squared distances is least.

    The paths of such pairs cross less, so that the flow's paths are straighter. The assignment is
    exact over the batch and costs the cube of its rows. The distance of angles is the shorter arc.

    Source: Tong et al. (2023), Improving and generalizing flow-based generative models with
    minibatch optimal transport, section 3.2.3.

    Example:
        >>> optimal_transport(torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [4.0]]))
        tensor([[1.],
                [0.]])
    """
    from scipy.optimize import linear_sum_assignment  # here, since it takes long to import

    # Only the middle term of |x - z|² = |x|² - 2 x·z + |z|² depends on the pairs; far from the
    # origin only double precision distinguishes them.
    others = other_columns(circular, base.shape[1])
    x, z = data.double(), base.double()
    cost = -(x[:, others] @ z[:, others].T)
    for angle in circular:
        cost = cost + 0.5 * wrap(x[:, angle].unsqueeze(1) - z[:, angle]).square()
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return base[torch.from_numpy(columns).to(base.device)]


INDEPENDENT = Coupling(independent, keeps_condition=True)
# The assignment depends on x, and so on c: given c, base points are not the base's draws.
OPTIMAL_TRANSPORT = Coupling(optimal_transport, keeps_condition=False)
