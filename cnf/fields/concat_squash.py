"""FFJORD's family of fields, which differ in how time and context enter the hidden layers."""

from collections.abc import Sequence
from typing import ClassVar

from cnf.fields.gated_perceptron import GatedPerceptron


class ConcatSquash(GatedPerceptron):
    """FFJORD's concat-squash network: time and context gate the hidden layers and shift them.

    Arguments, equations and errors are those of `GatedPerceptron`.

    Example:
        >>> import torch
        >>> field = ConcatSquash(2, hidden=(16, 16))
        >>> velocity, trace = field.with_divergence(torch.tensor(0.5), torch.randn(5, 2))
        >>> velocity.shape, trace.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """


class Concat(GatedPerceptron):
    """FFJORD's concat network: time and context shift the layers, and gate none.

    Arguments, equations and errors are those of `GatedPerceptron`.

    Example:
        >>> Concat(2, hidden=(16, 16)).gated
        False
    """

    gated: ClassVar[bool] = False


class Squash(GatedPerceptron):
    """FFJORD's squash network: time and context gate the hidden layers, and shift none.

    Arguments, equations and errors are those of `GatedPerceptron`.

    Example:
        >>> Squash(2, hidden=(16, 16)).shifted
        False
    """

    shifted: ClassVar[bool] = False


class Ignore(GatedPerceptron):
    """FFJORD's ignore network, which time does not enter; a context shifts the layers.

    Arguments, equations and errors are those of `GatedPerceptron`, without features of time.

    Example:
        >>> import torch
        >>> field, x = Ignore(2), torch.randn(5, 2)
        >>> torch.equal(field(torch.tensor(0.0), x), field(torch.tensor(1.0), x))
        True
    """

    gated: ClassVar[bool] = False
    timed: ClassVar[bool] = False

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "tanh",
        zero_last: bool = False,
        x_features: int = 0,
        x_scale: float = 1.0,
        circular: Sequence[int] = (),
        harmonics: int = 3,
    ) -> None:
        features = (0, x_features, x_scale, circular, harmonics)
        super().__init__(dim, hidden, context_dim, activation, zero_last, *features)
