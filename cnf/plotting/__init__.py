"""Figures and animations of densities, samples, trajectories and learning curves.

Each `draw_…` function takes matplotlib axes and returns them; each `…_figure` function lays out a
whole figure, and each `…_film` function an animation. No function changes pyplot's global state.

Example:
    >>> import cnf, numpy as np
    >>> figure = strip_figure(cnf.ffjord(2, hidden=(8,)), np.random.randn(100, 2), frames=3)
    >>> png(darken(figure))[1:4]
    b'PNG'
"""

from cnf.plotting.conditional import conditional_figure, spread_rows
from cnf.plotting.density import (
    density_figure,
    draw_density_strip,
    draw_samples_strip,
    strip_figure,
)
from cnf.plotting.evolution import base_rows, log_prob_at, log_prob_of, path_of, quick, velocity_at
from cnf.plotting.film import FILMS, Film, check_film, write_film
from cnf.plotting.flow_films import density_film, samples_film
from cnf.plotting.learning_curve import (
    draw_evaluations,
    draw_learning_curve,
    learning_curve_figure,
)
from cnf.plotting.motion import (
    base_grid,
    draw_field,
    draw_grid,
    draw_trajectories,
    field_figure,
    grid_figure,
    grid_path,
    trajectories_figure,
)
from cnf.plotting.panels import (
    DENSITY_PIXELS,
    SCATTER_POINTS,
    Bounds,
    data_bounds,
    draw_density,
    draw_samples,
    short_name,
)
from cnf.plotting.scatter import (
    draw_contours,
    draw_projection,
    pairs_figure,
    projections_figure,
)
from cnf.plotting.series import draw_series, latents_figure, series_figure
from cnf.plotting.shares import mixed_pairs_figure
from cnf.plotting.style import DATA_COLOR, DENSITY_MAP, MODEL_COLOR, TIME_MAP, darken, png

__all__ = [
    "DATA_COLOR",
    "DENSITY_MAP",
    "DENSITY_PIXELS",
    "FILMS",
    "MODEL_COLOR",
    "SCATTER_POINTS",
    "TIME_MAP",
    "Bounds",
    "Film",
    "base_grid",
    "base_rows",
    "check_film",
    "conditional_figure",
    "darken",
    "data_bounds",
    "density_figure",
    "density_film",
    "draw_contours",
    "draw_density",
    "draw_density_strip",
    "draw_evaluations",
    "draw_field",
    "draw_grid",
    "draw_learning_curve",
    "draw_projection",
    "draw_samples",
    "draw_samples_strip",
    "draw_series",
    "draw_trajectories",
    "field_figure",
    "grid_figure",
    "grid_path",
    "latents_figure",
    "learning_curve_figure",
    "log_prob_at",
    "log_prob_of",
    "mixed_pairs_figure",
    "pairs_figure",
    "path_of",
    "png",
    "projections_figure",
    "quick",
    "samples_film",
    "series_figure",
    "short_name",
    "spread_rows",
    "strip_figure",
    "trajectories_figure",
    "velocity_at",
    "write_film",
]
