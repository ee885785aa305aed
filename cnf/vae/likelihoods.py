"""Likelihoods of grey values given a decoder's outputs."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


class Likelihood(Protocol):
    """p(x | z) of images x (..., pixels), given a decoder's outputs (..., channels, pixels)."""

    channels: int

    def observe(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the observed images x (n, pixels) of grey images from 0 to 1."""

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless x could be returned by `observe`."""

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Return log p(x | z), summed over the pixels, shape (...), in nats."""

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the mean image, from 0 to 1, shape (..., pixels)."""


class Bernoulli:
    """A Bernoulli likelihood, white with probability σ(output), of dynamically binarised images.

    The grey value of a pixel is its probability of white; a new black-and-white image is drawn at
    each observation.

    Source: Salakhutdinov & Murray (2008), On the quantitative analysis of deep belief networks.

    Example:
        >>> likelihood = Bernoulli(255)
        >>> likelihood.log_prob(torch.zeros(1, 784), torch.ones(784)) / 784
        tensor(-0.6931)
    """

    channels = 1

    def __init__(self, white: int) -> None:
        del white  # the number of grey levels makes no difference

    def observe(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw black (0) and white (1) pixels."""
        return torch.bernoulli(images, generator=generator)

    def check(self, x: Tensor) -> None:
        wrong = (x != 0) & (x != 1)
        if wrong.any():
            raise ValueError(
                f"Expected pixels of 0 and 1 for likelihood bernoulli; got {x[wrong][0].item()}: "
                "pass what `observe` returns"
            )

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Return Σ x log σ(output) + (1 − x) log(1 − σ(output))."""
        logits, x = torch.broadcast_tensors(outputs.squeeze(-2), x)
        return -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(-2).sigmoid()


class Levels:
    """A discretized logistic likelihood of all grey levels.

    With mean μ and scale s from the outputs, and δ half the distance between two levels,

        p(x) = σ((x + δ − μ) / s) − σ((x − δ − μ) / s),

    where the first is 1 for white and the second 0 for black, so that the levels' probabilities
    sum to 1.

    Args:
        white: Grey value of white: there are white + 1 levels from 0 to 1.

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
    _MAX_LOG_PRECISION = 7.0  # scales stay above e⁻⁷ of the whole range

    def __init__(self, white: int) -> None:
        self.white = white

    def observe(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return images

    def check(self, x: Tensor) -> None:
        wrong = ~((x >= 0) & (x <= 1))
        if wrong.any():
            raise ValueError(
                f"Expected pixels from 0 to 1; got {x[wrong][0].item()}: divide by the value of "
                "white"
            )

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Return Σ log σ(b) + log σ(−a) + log(1 − exp(a − b)), where p(x) = σ(b) − σ(a)."""
        mean, log_scale = self._parameters(outputs)
        half, precision = 0.5 / self.white, torch.exp(-log_scale)
        above = logsigmoid((x - mean + half) * precision)  # white includes the whole upper tail
        below = logsigmoid((mean - x + half) * precision)
        between = torch.log(-torch.expm1(-2 * half * precision))
        is_white, is_black = x > 1 - half, x < half
        above = torch.where(is_white, torch.zeros_like(above), above)
        below = torch.where(is_black, torch.zeros_like(below), below)
        between = torch.where(is_white | is_black, torch.zeros_like(between), between)
        return (above + below + between).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        return self._parameters(outputs)[0].clamp(0, 1)

    def _parameters(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log-scales; outputs of 0 give a wide distribution about the middle."""
        mean, log_scale = outputs.unbind(-2)
        return 0.5 + 0.25 * mean, (log_scale - 2).clamp(min=-self._MAX_LOG_PRECISION)


def grey(images: NDArray[np.uint8], white: int) -> Tensor:
    """Convert images (n, height, width) to grey values from 0 to 1, shape (n, pixels).

    Example:
        >>> grey(np.array([[[0, 255]]], np.uint8), 255)
        tensor([[0., 1.]])
    """
    return torch.from_numpy(images).flatten(1).float() / white
