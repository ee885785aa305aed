"""Encoders and decoders of images, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Networks:
    """An encoder and a decoder."""

    encoder: nn.Module  # of images (n, pixels) to features (n, features)
    decoder: nn.Module  # of latents (n, latent_dim) to outputs (n, channels, pixels)
    features: int
    decoder_batch: int  # the most latents to decode at a time, in a few hundred MiB


class GatedConvolution(nn.Module):
    """A gated convolution, y ∘ σ(g), where y and g are convolutions of the same input.

    Args:
        convolution: Function that makes a convolution with a number of output channels.
        channels: Number of output channels.

    Source: van den Berg et al. (2018), Sylvester normalizing flows, appendix A.

    Example:
        >>> gated = GatedConvolution(lambda channels: nn.Conv2d(1, channels, 5, padding=2), 8)
        >>> gated(torch.zeros(3, 1, 28, 28)).shape
        torch.Size([3, 8, 28, 28])
    """

    def __init__(self, convolution: Callable[[int], nn.Module], channels: int) -> None:
        super().__init__()
        self.both = convolution(2 * channels)  # one product for both

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.both(x).chunk(2, 1)
        return torch.mul(y, torch.sigmoid(gate))


def perceptrons(
    size: tuple[int, int], channels: int, latent_dim: int, hidden: Sequence[int]
) -> Networks:
    """Make perceptrons with hidden layers of given widths, in reverse order in the decoder.

    Example:
        >>> perceptrons((8, 8), 1, 2, hidden=(32,)).decoder(torch.zeros(5, 2)).shape
        torch.Size([5, 1, 64])
    """
    pixels = size[0] * size[1]
    decoder = [*_layers([latent_dim, *reversed(hidden)]), nn.Linear(hidden[0], channels * pixels)]
    return Networks(
        nn.Sequential(*_layers([pixels, *hidden])),
        nn.Sequential(*decoder, nn.Unflatten(1, (channels, pixels))),
        hidden[-1],
        decoder_batch=8192,
    )


def gated_convolutions(
    size: tuple[int, int], channels: int, latent_dim: int, hidden: Sequence[int]
) -> Networks:
    """Make the networks of the Sylvester flows' paper, with its widths; `hidden` is ignored.

    Raises:
        ValueError: A side is not a multiple of 4, since the encoder halves it twice.

    Source: van den Berg et al. (2018), Sylvester normalizing flows, appendix A.

    Example:
        >>> networks = gated_convolutions((28, 28), 1, 64, hidden=())
        >>> networks.encoder(torch.zeros(1, 784)).shape
        torch.Size([1, 256])
    """
    del hidden
    if size[0] % 4 or size[1] % 4:
        raise ValueError(
            f"Expected images whose sides are multiples of 4 for network conv; got {size[0]} x "
            f"{size[1]}. Crop them, or use network mlp"
        )
    smallest = size[0] // 4, size[1] // 4
    encoder = (
        nn.Unflatten(1, (1, *size)),
        *(_down(*sizes) for sizes in ((1, 32), (32, 32, 2), (32, 64), (64, 64, 2), (64, 64))),
        GatedConvolution(lambda channels: nn.Conv2d(64, channels, smallest), 256),
        nn.Flatten(),
    )
    decoder = (
        nn.Unflatten(1, (latent_dim, 1, 1)),
        GatedConvolution(lambda channels: nn.ConvTranspose2d(latent_dim, channels, smallest), 64),
        *(_up(*sizes) for sizes in ((64, 64), (64, 32, 2), (32, 32), (32, 32, 2), (32, 32))),
        nn.Conv2d(32, channels, 1),
        nn.Flatten(2),
    )
    return Networks(nn.Sequential(*encoder), nn.Sequential(*decoder), 256, decoder_batch=512)


def _layers(widths: Sequence[int]) -> list[nn.Module]:
    return [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.SiLU())]


def _down(before: int, after: int, stride: int = 1) -> GatedConvolution:
    return GatedConvolution(lambda channels: nn.Conv2d(before, channels, 5, stride, 2), after)


def _up(before: int, after: int, stride: int = 1) -> GatedConvolution:
    return GatedConvolution(
        lambda channels: nn.ConvTranspose2d(before, channels, 5, stride, 2, stride - 1), after
    )
