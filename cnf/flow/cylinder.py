"""The base distribution of flows over angles and real numbers."""

from collections.abc import Sequence
from math import log, pi
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from cnf.utils.angles import circular_columns, other_columns

_REAL_VECTOR = constraints.independent(constraints.real, 1)


class Cylinder(Distribution):
    """Independent columns: angles that are uniform on the circle, and normal real numbers.

        log p(z) = Σ ln N(z_j; loc_j, scale_j²) − m ln 2π

    with the sum over the columns that are not angles, and m the number of angles, whose draws are
    in [−π, π) and whose density is periodic.

    Args:
        loc: The means of the columns that are not angles, shape (dim − m,).
        scale: Their standard deviations, shape (dim − m,).
        circular: Which of the dim columns are angles, in radians.

    Raises:
        ValueError: The shapes differ, a scale is not above 0, or there is no such column.

    Example:
        >>> base = Cylinder(torch.zeros(1), torch.ones(1), circular=(0,))
        >>> z = base.sample((5,))
        >>> z.shape, torch.equal(base.log_prob(z), base.log_prob(z + torch.tensor([7.0, 0.0])))
        (torch.Size([5, 2]), True)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": _REAL_VECTOR,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = _REAL_VECTOR
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, circular: Sequence[int]) -> None:
        if loc.ndim != 1 or loc.shape != scale.shape:
            raise ValueError(
                "Expected means and standard deviations of one shape (columns,); got "
                f"{tuple(loc.shape)} and {tuple(scale.shape)}"
            )
        self.loc, self.scale = loc, scale
        dim = len(loc) + len(circular)
        self.circular = circular_columns(circular, dim)
        others = other_columns(self.circular, dim)
        self._others = torch.tensor(others, dtype=torch.long, device=loc.device)
        self._places = torch.tensor([*others, *self.circular], device=loc.device).argsort()
        super().__init__(event_shape=torch.Size([dim]), validate_args=None)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "Cylinder":
        new: Cylinder
        new = self._get_checked_instance(Cylinder, _instance)  # type: ignore[no-untyped-call]
        new.circular, new._others, new._places = self.circular, self._others, self._places
        new.loc = self.loc.expand(*batch_shape, -1)
        new.scale = self.scale.expand(*batch_shape, -1)
        batch = torch.Size(batch_shape)
        super(Cylinder, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = (*sample_shape, *self.batch_shape)
        like: dict[str, Any] = {"dtype": self.loc.dtype, "device": self.loc.device}
        normal = torch.randn(*shape, self.loc.shape[-1], **like)
        angles = torch.rand(*shape, len(self.circular), **like)
        drawn = torch.cat([self.loc + self.scale * normal, 2 * pi * angles - pi], -1)
        return drawn.index_select(-1, self._places)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        z = (value.index_select(-1, self._others) - self.loc) / self.scale
        each = -0.5 * z.square() - self.scale.log() - 0.5 * log(2 * pi)
        total: Tensor = each.sum(-1) - len(self.circular) * log(2 * pi)
        return total
