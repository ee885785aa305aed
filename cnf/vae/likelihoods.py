"""What a decoder's outputs say of an image: likelihoods of grey values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


class Likelihood(Protocol):
    """p(x | z) of images x (..., pixels), given a decoder's outputs (..., channels, pixels).

    Attributes:
        channels: Of the outputs, numbers for each pixel.
    """

    channels: int

    def observe(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What is modelled of grey images from 0 to 1, shape (n, pixels)."""
        ...

    def check(self, x: Tensor) -> None:
        """Raise a ValueError where x is not what `observe` gives."""
        ...

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Log p(x | z), summed over the pixels: shape (...), in nats."""
        ...

    def mean(self, outputs: Tensor) -> Tensor:
        """The mean image, from 0 to 1, shape (..., pixels)."""
        ...


class Bernoulli:
    """Black or white pixels, white with probability σ(output), of grey ones binarised dynamically.

    A grey image is a probability of white for each pixel; each time that it is observed another
    black-and-white image is drawn.

    Source: Salakhutdinov & Murray (2008), On the quantitative analysis of deep belief networks.

    Example:
        >>> likelihood = Bernoulli(255)
        >>> likelihood.log_prob(torch.zeros(1, 784), torch.ones(784)) / 784
        tensor(-0.6931)
    """

    channels = 1

    def __init__(self, white: int) -> None:
        del white  # how many levels of grey there are makes no difference

    def observe(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images drawn, black 0 and white 1."""
        return torch.bernoulli(images, generator=generator)

    def check(self, x: Tensor) -> None:
        """Raise a ValueError where a pixel is neither 0 nor 1."""
        wrong = (x != 0) & (x != 1)
        if wrong.any():
            raise ValueError(
                f"Expected pixels of 0 and 1 for likelihood bernoulli; got {x[wrong][0].item()}: "
                "take what `observe` draws"
            )

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Σ x log σ(output) + (1 − x) log(1 − σ(output))."""
        logits, x = torch.broadcast_tensors(outputs.squeeze(-2), x)
        return -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """The probabilities."""
        return outputs.squeeze(-2).sigmoid()


class Levels:
    """All levels of grey, by a logistic distribution of each pixel rounded to the nearest level.

    With mean μ and scale s from the outputs, and δ half the distance of two levels,

        p(x) = σ((x + δ − μ) / s) − σ((x − δ − μ) / s),

    where the first is 1 for white and the second 0 for black, so that the levels' probabilities
    sum to 1.

    Args:
        white: The number of white: there are white + 1 levels from 0 to 1.

    Source: Kingma et al. (2016), Improved variational inference with inverse autoregressive flow,
    appendix; Salimans et al. (2017), PixelCNN++.

    Example:
        >>> likelihood = Levels(255)
        >>> x = torch.linspace(0, 1, 256).unsqueeze(1)  # images of one pixel
        >>> p = likelihood.log_prob(torch.tensor([[0.3], [-1.0]]), x).exp()
        >>> torch.allclose(p.sum(), torch.ones(()))
        True
    """

    channels = 2
    _MOST = 7.0  # narrower than e⁻⁷ of the whole range no pixel is known

    def __init__(self, white: int) -> None:
        self.white = white

    def observe(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The images themselves."""
        return images

    def check(self, x: Tensor) -> None:
        """Raise a ValueError where a pixel is below 0 or above 1."""
        wrong = ~((x >= 0) & (x <= 1))
        if wrong.any():
            raise ValueError(
                f"Expected pixels from 0 to 1; got {x[wrong][0].item()}: divide by the value of "
                "white"
            )

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """The sum of log σ(b) + log σ(−a) + log(1 − exp(a − b)), with σ(b) − σ(a) the above."""
        mean, log_scale = self._parameters(outputs)
        half, precision = 0.5 / self.white, torch.exp(-log_scale)
        above = logsigmoid((x - mean + half) * precision)  # of white the whole tail counts
        below = logsigmoid((mean - x + half) * precision)
        between = torch.log(-torch.expm1(-2 * half * precision))
        is_white, is_black = x > 1 - half, x < half
        above = torch.where(is_white, torch.zeros_like(above), above)
        below = torch.where(is_black, torch.zeros_like(below), below)
        between = torch.where(is_white | is_black, torch.zeros_like(between), between)
        return (above + below + between).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """The logistic distributions' means, cut to the range."""
        return self._parameters(outputs)[0].clamp(0, 1)

    def _parameters(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of scales; outputs of 0 are wide about the middle."""
        mean, log_scale = outputs.unbind(-2)
        return 0.5 + 0.25 * mean, (log_scale - 2).clamp(min=-self._MOST)


LIKELIHOODS: dict[str, Callable[[int], Likelihood]] = {"bernoulli": Bernoulli, "levels": Levels}
"""Likelihoods by name; each is made with the number of white."""


def grey(images: NDArray[np.uint8], white: int) -> Tensor:
    """Images (n, height, width) as grey values from 0 to 1, shape (n, pixels).

    Example:
        >>> grey(np.array([[[0, 255]]], np.uint8), 255)
        tensor([[0., 1.]])
    """
    return torch.from_numpy(images).flatten(1).float() / white
