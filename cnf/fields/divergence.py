"""The divergence of a vector field, tr ∂f/∂x: exact, or estimated from random probes.

A divergence is a small frozen object that gives the velocity and its divergence together. Its
random vectors come from `probes`, once for each solve, so that they stay fixed for one solve.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from cnf.fields import DIVERGENCES, VectorField, as_field
from cnf.fields.field import Traced, trace_of_columns, unit_vectors
from cnf.utils.random import RowNoise

# Up to this dimension "auto" takes the exact trace even where it costs a pass for each dimension.
LARGEST_EXACT_DIM = 32

Source = torch.Generator | RowNoise
Noise = Literal["rademacher", "gaussian"]


class Divergence(ABC):
    """A method to compute a field's velocity and the trace of its Jacobian.

    Attributes:
        exact: Whether the trace is free of noise.
    """

    exact: ClassVar[bool] = True

    def probes(self, vector_field: VectorField, stage: Any, x: Tensor) -> Tensor:
        """Return the probes of one solve from states x at a stage, (rows, probes, dim)."""
        return x.new_empty(len(x), 0, x.shape[1])

    @abstractmethod
    def __call__(self, vector_field: VectorField, stage: Any, x: Tensor, probes: Tensor) -> Traced:
        """Return the velocity and its divergence at x (rows, dim)."""


@dataclass(frozen=True)
class FieldTrace(Divergence):
    """The exact trace that a field computes itself, by its cheapest method."""

    def __call__(self, vector_field: VectorField, stage: Any, x: Tensor, probes: Tensor) -> Traced:
        return vector_field.traced(stage, x)


@dataclass(frozen=True)
class TangentTrace(Divergence):
    """The exact trace by the field's Jacobian, its products with the unit vectors in one stack."""

    def __call__(self, vector_field: VectorField, stage: Any, x: Tensor, probes: Tensor) -> Traced:
        return trace_of_columns(*vector_field.products(stage, x, unit_vectors(x)))


@dataclass(frozen=True)
class AutogradTrace(Divergence):
    """The exact trace of any field, by one vectorised vector-Jacobian product per dimension."""

    def __call__(self, vector_field: VectorField, stage: Any, x: Tensor, probes: Tensor) -> Traced:
        return trace_of_columns(*vector_field.transposed_products(stage, x, unit_vectors(x)))


@dataclass(frozen=True)
class Hutchinson(Divergence):
    """An unbiased estimate of the trace: the mean over probes ε of εᵀ (∂f/∂x) ε.

    Every row has separate probes, fixed for one solve.

    Args:
        count: Number of probes, each of which costs one product with the Jacobian.
        noise: `"rademacher"` (entries ±1, the lower variance) or `"gaussian"`.
        generator: The source of the probes; PyTorch's own when None.

    Raises:
        ValueError: The count is below 1, or the noise is unknown.

    Source: Hutchinson (1990); Grathwohl et al. (2019), FFJORD, equation 8.

    Example:
        >>> import torch
        >>> doubled = type("Field", (nn.Module,), {"forward": lambda self, t, x: 2 * x})()
        >>> trace_of(doubled, torch.zeros(4, 3), Hutchinson(count=2)).trace
        tensor([6., 6., 6., 6.])
    """

    exact: ClassVar[bool] = False
    count: int = 1
    noise: Noise = "rademacher"
    generator: Source | None = field(default=None, compare=False, repr=False)

    def with_estimates(self, estimates: int, dim: int) -> Self:
        """Return this estimator with the count that gives so many estimates in `dim` dimensions."""
        return replace(self, count=estimates)

    def __post_init__(self) -> None:
        if not (isinstance(self.count, int) and self.count >= 1):
            raise ValueError(f"Expected count to be at least 1 probe; got {self.count!r}")
        if self.noise not in ("rademacher", "gaussian"):
            raise ValueError(f"Expected noise to be rademacher or gaussian; got {self.noise!r}")

    def probes(self, vector_field: VectorField, stage: Any, x: Tensor) -> Tensor:
        return random_vectors(self.noise, self.generator, x, self.count)

    def __call__(self, vector_field: VectorField, stage: Any, x: Tensor, probes: Tensor) -> Traced:
        vectors = probes.transpose(0, 1)
        velocity, products = vector_field.products(stage, x, vectors)
        estimates = (products * vectors).sum(-1).T
        return Traced(velocity, estimates.mean(1), estimates, products)


@dataclass(frozen=True)
class HutchPlusPlus(Hutchinson):
    """An exact trace of the largest part of the Jacobian, with Hutchinson's estimate of the rest.

    With the columns of Q spanning the Jacobian's products with random vectors at the solve's start,

        tr J = tr Qᵀ J Q + tr (1 − QQᵀ) J (1 − QQᵀ),

    the first term is exact, and the second estimated without bias, with a far lower variance where
    the Jacobian's spectrum decays. Q is found once for each solve, by as many products as it has
    columns; it stays, so that the integrand is smooth.

    Args:
        count: Products for each evaluation, at least 2: half of them the columns of Q.
        noise: As in `Hutchinson`.
        generator: As in `Hutchinson`.

    Raises:
        ValueError: The count is below 2, or the noise is unknown.

    Source: Meyer, Musco, Musco & Woodruff (2021), Hutch++: optimal stochastic trace estimation,
    algorithm 1.

    Example:
        >>> HutchPlusPlus()
        HutchPlusPlus(count=6, noise='rademacher')
    """

    count: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 2:
            raise ValueError(f"Expected count of at least 2 products; got {self.count}")

    def probes(self, vector_field: VectorField, stage: Any, x: Tensor) -> Tensor:
        """Return the columns of Q, then probes projected on their orthogonal complement."""
        columns = self._columns(x.shape[1])
        with torch.no_grad():
            start = random_vectors(self.noise, self.generator, x, columns)
            _, products = vector_field.products(stage, x, start.transpose(0, 1))
            Q, _ = torch.linalg.qr(products.permute(1, 2, 0))
            rest = random_vectors(self.noise, self.generator, x, self.count - columns)
            rest = rest - (rest @ Q) @ Q.transpose(1, 2)
        return torch.cat([Q.transpose(1, 2), rest], 1)

    def __call__(self, vector_field: VectorField, stage: Any, x: Tensor, probes: Tensor) -> Traced:
        found = super().__call__(vector_field, stage, x, probes)
        assert found.estimates is not None
        columns = self._columns(x.shape[1])
        estimates = found.estimates[:, :columns].sum(1, keepdim=True) + found.estimates[:, columns:]
        return Traced(found.velocity, estimates.mean(1), estimates)

    def with_estimates(self, estimates: int, dim: int) -> Self:
        """Return this estimator with as many columns of Q as estimates, at most `dim`."""
        return replace(self, count=estimates + min(estimates, dim))

    def _columns(self, dim: int) -> int:
        return min(self.count // 2, dim)


def gaussian_hutchinson() -> Hutchinson:
    """Return Hutchinson's estimate with one Gaussian probe."""
    return Hutchinson(noise="gaussian")


def choose_divergence(wanted: str | Divergence, vector_field: VectorField, dim: int) -> Divergence:
    """Return the divergence of a name for a field.

    Args:
        wanted: A divergence, a name in `cnf.fields.DIVERGENCES`, or `"auto"`: the field's closed
            form where it has one; else exact up to dimension 32; above that Hutchinson.
        vector_field: The vector field.
        dim: Size of its state.

    Raises:
        ValueError: The name is unknown.

    Example:
        >>> from cnf.fields import ConcatSquash
        >>> choose_divergence("auto", ConcatSquash(100, hidden=(8, 8)), 100)
        FieldTrace()
        >>> choose_divergence("auto", as_field(nn.Linear(100, 100)), 100)
        Hutchinson(count=1, noise='rademacher')
    """
    check_divergence(wanted)
    if isinstance(wanted, Divergence):
        return wanted
    if wanted == "auto":
        cheap = vector_field.trace == "closed form" or dim <= LARGEST_EXACT_DIM
        return FieldTrace() if cheap else Hutchinson()
    return DIVERGENCES[wanted]()


def check_divergence(wanted: str | Divergence) -> None:
    """Check that a value is a divergence or the name of one.

    Raises:
        ValueError: The value is neither.
    """
    names = ("auto", *DIVERGENCES)
    if not isinstance(wanted, Divergence) and wanted not in names:
        raise ValueError(f"Expected divergence to be one of {', '.join(names)}; got {wanted!r}")


def with_count(divergence: Divergence, count: int) -> Divergence:
    """Return a divergence with another number of probes, where it has any."""
    return replace(divergence, count=count) if isinstance(divergence, Hutchinson) else divergence


def describe(divergence: Divergence, vector_field: VectorField) -> str:
    """Return the description of a divergence in words.

    Example:
        >>> from cnf.fields import ConcatSquash
        >>> describe(FieldTrace(), ConcatSquash(2, hidden=(8, 8)))
        'exact by closed form'
    """
    return f"exact by {vector_field.trace}" if divergence == FieldTrace() else repr(divergence)


def trace_of(
    module: nn.Module,
    x: Tensor,
    divergence: Divergence,
    t: float = 0.0,
    context: Tensor | None = None,
) -> Traced:
    """Return a field's velocity and divergence at time t, x (rows, dim) and the context of rows.

    Example:
        >>> import torch
        >>> from cnf.fields import ConcatSquash
        >>> trace_of(ConcatSquash(2), torch.zeros(5, 2), FieldTrace()).trace.shape
        torch.Size([5])
    """
    vector_field = as_field(module)
    stage = vector_field.at(x.new_tensor(t), context, trace=True)
    probes = divergence.probes(vector_field, stage, x)
    return divergence(vector_field, stage, x, probes)


def random_vectors(noise: Noise, generator: Source | None, x: Tensor, count: int) -> Tensor:
    """Return random vectors (rows, count, dim), drawn on the generator's device."""
    shape = (len(x), count, x.shape[1])
    if isinstance(generator, RowNoise):
        return (generator.normal if noise == "gaussian" else generator.rademacher)(shape).to(x)
    device = x.device if generator is None else generator.device
    options: dict[str, Any] = {"dtype": x.dtype, "device": device, "generator": generator}
    if noise == "gaussian":
        return torch.randn(shape, **options).to(x.device)
    return (torch.randint(0, 2, shape, **options) * 2 - 1).to(x.device)
