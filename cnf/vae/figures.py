"""Figures of what a VAE makes of images, and of its posterior."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cnf.plotting import DATA_COLOR, DENSITY_MAP, MODEL_COLOR
from cnf.vae.model import VAE
from cnf.vae.training import Record

SPREAD = 2.0  # standard deviations of the prior that traversals go to
GRID = 100  # pixels along each side of a posterior
DRAWS = 400  # from it
DRAWS_COLOR = "#8fd0ff"  # seen on dark and on light
DATA = 3  # images whose posteriors are drawn


def draw_images(ax: Axes, images: Tensor) -> Axes:
    """Lay images out in rows.

    Args:
        ax: Where to draw.
        images: Shape (rows, columns, height, width), from 0, black, to 1, white.
    """
    rows, columns, height, width = images.shape
    framed = torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0)
    page = framed.transpose(1, 2).reshape(rows * (height + 2), columns * (width + 2))
    ax.imshow(page.cpu().numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.axis("off")
    return ax


@torch.no_grad()
def reconstructions_figure(vae: VAE, x: Tensor) -> Figure:
    """Images (n, pixels) as they are observed, and below each the mean image of a draw of z."""
    q = vae.accurate().posterior_of(x)
    shown = torch.stack([x.unflatten(-1, vae.architecture.size), vae.means(q.rsample())])
    figure, ax = _page(shown.shape)
    draw_images(ax, shown).set_title("above: images, below: what comes back", loc="left")
    return figure


@torch.no_grad()
def samples_figure(vae: VAE, rows: int = 8, columns: int = 16) -> Figure:
    """The mean images of latents drawn from the prior."""
    shown = vae.means(vae.prior.sample(torch.Size([rows, columns])))
    figure, ax = _page(shown.shape)
    draw_images(ax, shown).set_title("from the prior", loc="left")
    return figure


@torch.no_grad()
def traversal_figure(vae: VAE, x: Tensor, columns: int = 11, most: int = 8) -> Figure:
    """How the mean image changes along the latents: of two the plane, of others each by itself.

    Args:
        vae: A trained one.
        x: Images (n, pixels); the first one's draw is what single latents are changed of, and the
            latents shown are those whose draws differ most between the images.
        columns: Values of a latent.
        most: Latents shown, where there are more than two.
    """
    values = torch.linspace(-SPREAD, SPREAD, columns).to(x)
    drawn = vae.accurate().posterior_of(x).rsample()
    if vae.architecture.latent_dim == 2:
        plane = torch.stack(torch.meshgrid(values, values.flip(0), indexing="xy"), -1)
        z, title = plane, f"both latents within ±{SPREAD:g}"
    else:
        telling = drawn.std(0).argsort(descending=True)[:most]
        z = drawn[0].expand(len(telling), columns, -1).clone()
        for row, latent in zip(z, telling.tolist(), strict=True):
            row[:, latent] = values
        title = f"the latents that tell most, each within ±{SPREAD:g}"
    shown = vae.means(z)
    figure, ax = _page(shown.shape)
    draw_images(ax, shown).set_title(title, loc="left")
    return figure


@torch.no_grad()
def posterior_figure(vae: VAE, x: Tensor) -> Figure:
    """True posteriors over two latents, the Gaussians that the VAE's start from, and the VAE's own.

    Args:
        vae: One with two latents.
        x: Images (n, pixels); the first three are shown.

    Raises:
        ValueError: There are more latents, or there is one.
    """
    if vae.architecture.latent_dim != 2:
        raise ValueError(
            f"Expected two latents, to draw a posterior over; got {vae.architecture.latent_dim}"
        )
    x = x[:DATA]
    h, loc, scale = vae.encode(x)
    gaussian = loc + scale * torch.randn(DRAWS, *loc.shape).to(loc)
    draws = vae.accurate().posterior(h, loc, scale).rsample((DRAWS,))
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
            ax.scatter(*z[:, i].T.cpu(), s=4, color=DRAWS_COLOR, linewidths=0)
    titles = ("image", "p(z | x), on a grid", "the encoder's Gaussian", "q(z | x)")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title)
    return figure


def draw_bounds(ax: Axes, records: Sequence[Record]) -> Axes:
    """The training loss and minus the validation bound over the epochs, in nats per image."""
    epochs = [record.epoch for record in records]
    ax.plot(epochs, [record.loss for record in records], color=DATA_COLOR, label="training loss")
    bound = [-record.validation_elbo for record in records]
    ax.plot(epochs, bound, color=MODEL_COLOR, label="minus the validation bound")
    found = np.asarray(bound)[np.isfinite(bound)]
    if found.size:
        top = np.quantile(found, 0.9) + 0.05 * np.ptp(found)
        late = [record.loss for record in records[len(records) // 2 :]]
        bottom = np.nanmin([found.min(), *late])
        margin = max(0.05 * (top - bottom), 1e-9)
        ax.set_ylim(bottom - margin, top + margin)
    ax.set(xlabel="epochs", ylabel="nats per image")
    ax.legend(frameon=False)
    return ax


def _draw_truth(ax: Axes, vae: VAE, x: Tensor, bounds: Tensor) -> None:
    """p(z | x) ∝ p(x | z) p(z) within bounds (2, 2)."""
    (x0, y0), (x1, y1) = bounds.tolist()
    place = (torch.arange(GRID).to(bounds) + 0.5) / GRID
    plane = torch.stack(torch.meshgrid(place, place, indexing="xy"), -1)
    z = bounds[0] + plane * (bounds[1] - bounds[0])
    rows = z.flatten(0, 1)
    likelihood = torch.cat([vae.log_likelihood(x)(part) for part in rows.split(vae.most)])
    log_p = likelihood + vae.prior.log_prob(rows)
    density = (log_p - log_p.max()).exp().view(GRID, GRID).cpu().numpy()
    ax.imshow(
        density, extent=(x0, x1, y0, y1), origin="lower", cmap=DENSITY_MAP, interpolation="bilinear"
    )
    ax.set(xticks=[], yticks=[], xlim=(x0, x1), ylim=(y0, y1))


def _page(shape: Sequence[int]) -> tuple[Figure, Axes]:
    """A figure as large as images (rows, columns, height, width) ask for."""
    rows, columns, height, width = shape
    across = min(10.0, 0.6 * columns)
    down = across * rows * (height + 2) / (columns * (width + 2))
    figure = Figure(figsize=(across, down + 0.4), layout="constrained")
    return figure, figure.subplots()
