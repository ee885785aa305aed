"""Conditionals of codes by a mixture, averaged with those of a network."""

from __future__ import annotations

import torch
from torch import Tensor

from cnf.mixtures.normal import NormalMixture

Rows = slice | Tensor

ROUNDS = 50  # of expectation maximisation
PRIOR_ROWS = 1.0  # that a share of one half is given beforehand


class CodePrior:
    """The conditionals of codes by a mixture, of rows whose codes become visible one by one.

        p(d_j | z, d) = Σ_k r_k p_k(d_j),   r_k ∝ w_k p_k(z) Π_i p_k(d_i),

    with the given values z and the visible codes d_i. It takes part in a network's conditionals,

        p = (1 − λ_j) p_network + λ_j p_mixture,

    so that where the network has seen too few rows the mixture speaks.

    Args:
        mixture: The mixture.
        shares: λ of each categorical coordinate of the mixture.
        places: The mixture's coordinate of each coordinate of the network, −1 where it has none.
        z: Values (rows, C).
        given: Which of them are given, (rows, C) or (C,).
    """

    def __init__(
        self, mixture: NormalMixture, shares: Tensor, places: list[int], z: Tensor, given: Tensor
    ) -> None:
        self.shares, self.places = shares, places
        self.log_shares = [each.mT for each in mixture.log_shares]  # (size, K)
        self.logits = mixture.log_weights + mixture.log_given(z, given)

    def reveal(self, coordinate: int, codes: Tensor) -> None:
        """Make a coordinate's codes (rows,) visible, but for gaps, −1."""
        place = self.places[coordinate]
        if place >= 0:
            own = self.log_shares[place][codes.clamp(min=0)]
            self.logits = self.logits + torch.where(codes[:, None] >= 0, own, 0.0)

    def probabilities(self, coordinate: int, rows: Rows) -> Tensor:
        """Return p(code | what is visible) of a coordinate, (rows, size)."""
        shares = self.log_shares[self.places[coordinate]].exp()
        return self.logits[rows].softmax(1) @ shares.mT

    def average(self, coordinate: int, rows: Rows, logits: Tensor) -> Tensor:
        """Return log p of a coordinate's codes, averaged with a network's logits (rows, size)."""
        share = self.shares[self.places[coordinate]]
        network = logits.double().log_softmax(1)
        mixture = self.probabilities(coordinate, rows).log()
        return torch.logaddexp(network + (-share).log1p(), mixture + share.log())


def fit_share(network: Tensor, mixture: Tensor, weight: Tensor) -> float:
    """Return the share λ that maximises Σ w log((1 − λ) p + λ q) over rows, by their p, q and w.

    Example:
        >>> p, q = torch.tensor([0.5, 0.1, 0.9]), torch.tensor([0.5, 0.9, 0.1])
        >>> round(fit_share(p, q, torch.ones(3)), 3)
        0.5
    """
    share = 0.5
    for _ in range(ROUNDS):
        of_mixture = share * mixture / (share * mixture + (1 - share) * network)
        rows = (weight @ of_mixture.to(weight)).item() + 0.5 * PRIOR_ROWS
        share = rows / (weight.sum().item() + PRIOR_ROWS)
    return share
