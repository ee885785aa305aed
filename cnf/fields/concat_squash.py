"""FFJORD's family of fields, which differ in how time and context enter the hidden layers."""

from __future__ import annotations

from typing import ClassVar

from cnf.fields.gated_perceptron import GatedPerceptron


class ConcatSquash(GatedPerceptron):
    """FFJORD's concat-squash network: time and context gate the hidden layers and shift them.

    Arguments, equations and errors are those of `GatedPerceptron`.

    Example:
        >>> import torch
        >>> field = ConcatSquash(2, hidden=(16, 16))
        >>> field.trace
        'closed form'
        >>> velocity, trace = field.with_divergence(torch.tensor(0.5), torch.randn(5, 2))
        >>> velocity.shape, trace.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    name: ClassVar[str] = "concat_squash"


class Concat(GatedPerceptron):
    """FFJORD's concat network: time and context shift the layers, and gate none.

    Arguments, equations and errors are those of `GatedPerceptron`.

    Example:
        >>> Concat(2, hidden=(16, 16)).gated
        False
    """

    name: ClassVar[str] = "concat"
    gated: ClassVar[bool] = False


class Squash(GatedPerceptron):
    """FFJORD's squash network: time and context gate the hidden layers, and shift none.

    Arguments, equations and errors are those of `GatedPerceptron`.

    Example:
        >>> Squash(2, hidden=(16, 16)).shifted
        False
    """

    name: ClassVar[str] = "squash"
    shifted: ClassVar[bool] = False


class Ignore(GatedPerceptron):
    """FFJORD's ignore network, which time does not enter; a context shifts the layers.

    Arguments, equations and errors are those of `GatedPerceptron`; features of time have no use.

    Example:
        >>> import torch
        >>> field, x = Ignore(2), torch.randn(5, 2)
        >>> torch.equal(field(torch.tensor(0.0), x), field(torch.tensor(1.0), x))
        True
    """

    name: ClassVar[str] = "ignore"
    gated: ClassVar[bool] = False
    timed: ClassVar[bool] = False
