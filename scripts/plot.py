"""`plot DIR`: write figures of a trained model, and a film of a flow, to DIR/figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cnf.scripts.options import add_options
from cnf.scripts.program import Parser, program, say
from cnf.utils.registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cnf.scripts.data import Data
    from cnf.scripts.series.data import SeriesData
    from cnf.scripts.series.folder import TrainedSeries
    from cnf.scripts.trained import TrainedModel

FIGURES: Registry[Callable[[TrainedModel, Data], Figure]] = Registry(
    {
        "density": "cnf.scripts.figures:density",
        "strip": "cnf.scripts.figures:strip",
        "trajectories": "cnf.scripts.figures:trajectories",
        "field": "cnf.scripts.figures:field",
        "grid": "cnf.scripts.figures:grid",
        "pairs": "cnf.scripts.figures:pairs",
        "projection": "cnf.scripts.figures:projection",
        "learning_curve": "cnf.scripts.figures:learning_curve",
    }
)
"""The figures of a trained flow, by name."""

SERIES_FIGURES: Registry[Callable[[TrainedSeries, SeriesData], Figure]] = Registry(
    {
        "series": "cnf.scripts.series.figures:series",
        "latents": "cnf.scripts.series.figures:latents",
        "learning_curve": "cnf.scripts.series.figures:series_learning_curve",
    }
)
"""The figures of a trained model of series, by name."""


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("plot", description=__doc__)
    add_options(parser, "dir")
    parser.add_argument(
        "--figures",
        metavar="NAME,NAME",
        type=_names,
        help=f"some of {', '.join(FIGURES)} (default: density and strip, or pairs, and "
        f"learning_curve); of a model of series {', '.join(SERIES_FIGURES)} (default: all)",
    )
    parser.add_argument(
        "--film",
        choices=("gif", "mp4"),
        help="write a film of the flow from base to data as well; mp4 needs ffmpeg",
    )
    parser.add_argument("--dark", action="store_true", help="draw on a dark page, as NAME_dark.png")
    return parser


@program("plot")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    from cnf.scripts.series.kind import OF_SERIES, is_series, refuse_options

    if is_series(arguments.dir):
        refuse_options(parser(), arguments, OF_SERIES, "film")
        from cnf.scripts.series.figures import plot_series
        from cnf.scripts.series.folder import TrainedSeries

        series = TrainedSeries.read(arguments.dir)
        say(*plot_series(series, series.data(), arguments.figures, arguments.dark))
        return 0
    from cnf.scripts.figures import plot
    from cnf.scripts.trained import TrainedModel

    trained = TrainedModel.read(arguments.dir)
    say(*plot(trained, trained.data(), arguments.figures, arguments.film, arguments.dark))
    return 0


def _names(text: str) -> list[str]:
    for name in (names := text.split(",")):
        if name not in (*FIGURES, *SERIES_FIGURES):
            known = ", ".join({**FIGURES, **SERIES_FIGURES})
            raise argparse.ArgumentTypeError(f"expected figures among {known}; got {name!r}")
    return names


if __name__ == "__main__":
    raise SystemExit(main())
