"""Figures of a VAE: reconstructions, samples, traversals, posteriors, learning curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cnf.plotting import DATA_COLOR, DENSITY_MAP, MODEL_COLOR
from cnf.vae.model import VAE
from cnf.vae.training import EpochRecord

TRAVERSAL_RANGE = 2.0  # in standard deviations of the prior
POSTERIOR_PIXELS = 100  # along each side
POSTERIOR_DRAWS = 400
POSTERIOR_DRAWS_COLOR = "#8fd0ff"  # visible on dark and on light
POSTERIOR_IMAGES = 3


def draw_images(ax: Axes, images: Tensor) -> Axes:
    """Draw images (rows, columns, height, width), from 0, black, to 1, white."""
    rows, columns, height, width = images.shape
    framed = torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0)
    page = framed.transpose(1, 2).reshape(rows * (height + 2), columns * (width + 2))
    ax.imshow(page.cpu().numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.axis("off")
    return ax


@torch.no_grad()
def reconstructions_figure(vae: VAE, x: Tensor) -> Figure:
    """Draw observed images (n, pixels) and, below each, the mean image of a posterior draw."""
    q = vae.accurate().posterior_of(x)
    shown = torch.stack([x.unflatten(-1, vae.architecture.size), vae.means(q.rsample())])
    return _page(shown, "above: images, below: reconstructions")


@torch.no_grad()
def samples_figure(vae: VAE, rows: int = 8, columns: int = 16) -> Figure:
    """Draw the mean images of latents sampled from the prior."""
    shown = vae.means(vae.prior.sample(torch.Size([rows, columns])))
    return _page(shown, "from the prior")


@torch.no_grad()
def traversal_figure(vae: VAE, x: Tensor, columns: int = 11, most: int = 8) -> Figure:
    """Draw the mean image along the latents: over the plane of two, or along each of more.

    Args:
        vae: A trained VAE.
        x: Images (n, pixels). Single latents vary around the draw of the first image; those drawn
            differ most between the images' draws.
        columns: Number of values of a latent.
        most: Maximum number of latents, where there are more than two.
    """
    values = torch.linspace(-TRAVERSAL_RANGE, TRAVERSAL_RANGE, columns).to(x)
    drawn = vae.accurate().posterior_of(x).rsample()
    if vae.architecture.latent_dim == 2:
        z = torch.stack(torch.meshgrid(values, values.flip(0), indexing="xy"), -1)
        title = f"both latents within ±{TRAVERSAL_RANGE:g}"
    else:
        varying = drawn.std(0).argsort(descending=True)[:most]
        z = drawn[0].expand(len(varying), columns, -1).clone()
        for row, latent in zip(z, varying.tolist(), strict=True):
            row[:, latent] = values
        title = f"the latents that vary most, each within ±{TRAVERSAL_RANGE:g}"
    shown = vae.means(z)
    return _page(shown, title)


@torch.no_grad()
def posterior_figure(vae: VAE, x: Tensor) -> Figure:
    """Draw true posteriors, the encoder's Gaussians and the VAE's posteriors of three images.

    Raises:
        ValueError: The number of latents is not two.
    """
    if vae.architecture.latent_dim != 2:
        raise ValueError(
            f"Expected 2 latents to draw a posterior over; got {vae.architecture.latent_dim}: use "
            "latent_dim=2"
        )
    x = x[:POSTERIOR_IMAGES]
    h, loc, scale = vae.encode(x)
    gaussian = loc + scale * torch.randn(POSTERIOR_DRAWS, *loc.shape).to(loc)
    draws = vae.accurate().posterior(h, loc, scale).rsample((POSTERIOR_DRAWS,))
    figure = Figure(figsize=(9.2, 2.4 * len(x)), layout="constrained")
    axes = figure.subplots(len(x), 4, squeeze=False)
    for i, row in enumerate(axes):
        draw_images(row[0], x[i].view(1, 1, *vae.architecture.size))
        both = torch.cat([gaussian[:, i], draws[:, i]])
        low, high = both.amin(0), both.amax(0)
        middle, half = (low + high) / 2, 0.55 * (high - low).max()
        bounds = torch.stack([middle - half, middle + half])
        for ax in row[1:]:
            _draw_truth(ax, vae, x[i], bounds)
        for ax, z in ((row[2], gaussian), (row[3], draws)):
            ax.scatter(*z[:, i].T.cpu(), s=4, color=POSTERIOR_DRAWS_COLOR, linewidths=0)
    titles = ("image", "p(z | x), on a grid", "the encoder's Gaussian", "q(z | x)")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title)
    return figure


def draw_bounds(ax: Axes, records: Sequence[EpochRecord]) -> Axes:
    """Plot the training loss and minus the validation bound over the epochs, in nats per image."""
    epochs, loss = [record.epoch for record in records], [record.loss for record in records]
    bound = [-record.validation_elbo for record in records]
    ax.plot(epochs, loss, color=DATA_COLOR, label="training loss")
    ax.plot(epochs, bound, color=MODEL_COLOR, label="minus the validation bound")
    finite = np.asarray(bound)[np.isfinite(bound)]
    if finite.size:
        top = np.quantile(finite, 0.9) + 0.05 * np.ptp(finite)
        bottom = np.nanmin([finite.min(), *loss[len(loss) // 2 :]])
        margin = max(0.05 * (top - bottom), 1e-9)
        ax.set_ylim(bottom - margin, top + margin)
    ax.set(xlabel="epochs", ylabel="nats per image")
    ax.legend(frameon=False)
    return ax


def _draw_truth(ax: Axes, vae: VAE, x: Tensor, bounds: Tensor) -> None:
    """Shade p(z | x) ∝ p(x | z) p(z) within bounds (2, 2)."""
    (x0, y0), (x1, y1) = bounds.tolist()
    place = (torch.arange(POSTERIOR_PIXELS).to(bounds) + 0.5) / POSTERIOR_PIXELS
    plane = torch.stack(torch.meshgrid(place, place, indexing="xy"), -1)
    z = bounds[0] + plane * (bounds[1] - bounds[0])
    rows = z.flatten(0, 1)
    likelihood = torch.cat([vae.log_likelihood(x)(part) for part in rows.split(vae.decoder_batch)])
    log_p = likelihood + vae.prior.log_prob(rows)
    density = (log_p - log_p.max()).exp().view(POSTERIOR_PIXELS, POSTERIOR_PIXELS).cpu().numpy()
    ax.imshow(
        density, extent=(x0, x1, y0, y1), origin="lower", cmap=DENSITY_MAP, interpolation="bilinear"
    )
    ax.set(xticks=[], yticks=[], xlim=(x0, x1), ylim=(y0, y1))


def _page(images: Tensor, title: str) -> Figure:
    """Make a figure of images, of their proportions."""
    rows, columns, height, width = images.shape
    across = min(10.0, 0.6 * columns)
    down = across * rows * (height + 2) / (columns * (width + 2))
    figure = Figure(figsize=(across, down + 0.4), layout="constrained")
    draw_images(figure.subplots(), images).set_title(title, loc="left")
    return figure
