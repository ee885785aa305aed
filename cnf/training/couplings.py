"""Couplings of base points and data points, between which flow matching draws its paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cnf.utils.angles import other_columns, wrapped


@dataclass(frozen=True)
class Coupling:
    """A joint distribution of base and data points that keeps what each is by itself.

    Attributes:
        pair: From base points and data points, each (rows, dim), and which columns are angles, the
            base points in the order that pairs them with the data points.
        keeps_condition: Whether, given a data point's context, its base point is distributed as the
            base: what the flow of p(x | c) starts from.
    """

    pair: Callable[[Tensor, Tensor, Sequence[int]], Tensor]
    keeps_condition: bool


def independent(base: Tensor, data: Tensor, circular: Sequence[int] = ()) -> Tensor:
    """Each data point's base point is any: the coupling of Lipman et al. (2022).

    Example:
        >>> independent(torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [4.0]]))
        tensor([[0.],
                [1.]])
    """
    return base


def optimal_transport(base: Tensor, data: Tensor, circular: Sequence[int] = ()) -> Tensor:
    """The pairs with the least sum of squared distances, over the batch: an exact assignment.

    Its paths cross less, so that the flow's own are straighter. It takes the cube of the rows. Of
    two angles the distance is the shorter way round.

    Source: Tong et al. (2023), Improving and generalizing flow-based generative models with
    minibatch optimal transport, section 3.2.3.

    Example:
        >>> optimal_transport(torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [4.0]]))
        tensor([[1.],
                [0.]])
    """
    # Of |x - z|² = |x|² - 2 x·z + |z|² only the middle depends on the pairs.
    # Its products are of double precision, which far from the origin takes to tell pairs apart.
    others = other_columns(circular, base.shape[1])
    x, z = data.double(), base.double()
    cost = -(x[:, others] @ z[:, others].T)
    for angle in circular:
        cost = cost + 0.5 * wrapped(x[:, angle].unsqueeze(1) - z[:, angle]).square()
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return base[torch.from_numpy(columns).to(base.device)]


COUPLINGS: dict[str, Coupling] = {
    "independent": Coupling(independent, keeps_condition=True),
    # The assignment sees x, which tells of c: given c, its base points would be some of the base's.
    "optimal_transport": Coupling(optimal_transport, keeps_condition=False),
}
