"""`train-series FILE --id COL --time COL`: fit a model of irregular time series, and score it.

FILE has a row for each time of a series, with empty cells where nothing was measured, or with
--variable and --value a row for each measurement. Series are split 80/10/10 by seed. DIR receives
the model, metrics.jsonl and figures/; scores of held-out series are printed beside trivial ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cnf.datasets.files import ENDINGS
from cnf.datasets.series import SERIES_DATASETS
from cnf.scripts.options import READ_OPTIONS, add_options, option_of, text_of
from cnf.scripts.program import (
    Parser,
    positive_integer,
    positive_number,
    program,
    share,
)
from cnf.series import EVENTS, SERIES_MODELS
from cnf.series.encoders import ENCODERS
from cnf.series.recipe import SeriesRecipe
from cnf.training.numbers import numbers_of

TASKS = ("interp", "extrap", "filter")
OWN_LABELS = ""  # the value of --labels that asks for those of a data set by its name


@program("train-series")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    everything = "--help-all" in (sys.argv[1:] if argv is None else argv)
    arguments = parser(everything).parse_args(argv)
    from cnf.scripts.series.training import train_series

    train_series(arguments)
    return 0


def parser(everything: bool = True) -> Parser:
    """Return the parser of the command line, with all options shown, or the usual ones."""
    usage = "cnf train-series FILE --id COL --time COL [option ...]"
    parser = Parser("train-series", __doc__, usage=usage)
    _add_data(parser.add_argument_group("data"))
    _add_task(parser.add_argument_group("the task"))
    _add_model(parser.add_argument_group("the model"))
    _add_run(parser.add_argument_group("the run"))
    parser.add_argument("--help-all", action="help", help="show the options of the recipe as well")
    recipe = parser.add_argument_group("the recipe (in brackets: the default)")
    for name, number in numbers_of(SeriesRecipe).items():
        models = f"{', '.join(number.used_by)}: " if number.used_by else ""
        text = f"{models}{number.describe()} ({text_of(number.default)})"
        shown = text if everything else argparse.SUPPRESS
        recipe.add_argument(option_of(name), metavar="X", help=shown)
    return parser


def _add_data(data: argparse._ArgumentGroup) -> None:
    data.add_argument(
        "data",
        metavar="DATA",
        help=f"a file: {ENDINGS}; or a data set, whose columns are known: "
        f"{', '.join(SERIES_DATASETS)}",
    )
    columns = {
        "--id": "the column with the series of each row",
        "--time": "the column of times: numbers, dates or durations",
        "--variable": "the column with the names of what was measured, in a long table",
        "--value": "the column with the measured numbers, in a long table",
    }
    for name, text in columns.items():
        data.add_argument(name, metavar="COL", help=text)
    data.add_argument(
        "--columns", metavar="COL,COL", help="columns, or variables, to model (default: all others)"
    )
    data.add_argument("--drop", metavar="COL,COL", help="columns to leave out")
    add_options(data, "--static")
    data.add_argument(
        "--labels",
        metavar="FILE",
        nargs="?",
        const=OWN_LABELS,
        help="a table with a row for each series, id and label, to classify the series as well; "
        "without FILE the labels of a data set by its name",
    )
    add_options(data, *READ_OPTIONS, "--data-dir")


def _add_task(task: argparse._ArgumentGroup) -> None:
    task.add_argument(
        "--task",
        choices=TASKS,
        default="interp",
        help="predict what lies between the observations (interp, default), what follows --cut "
        "(extrap), or each observation from those before it (filter)",
    )
    task.add_argument("--cut", metavar="T", help="the time, or date, that extrap predicts from")
    task.add_argument(
        "--hide",
        metavar="SHARE",
        type=share,
        help="share of the observations that the encoder does not see, anew in each step "
        "(default 0.1 for interp with a latent_ode, else 0)",
    )


def _add_model(model: argparse._ArgumentGroup) -> None:
    model.add_argument(
        "--model", choices=tuple(SERIES_MODELS), default="latent_ode", help="default latent_ode"
    )
    model.add_argument("--encoder", choices=tuple(ENCODERS), help="of a latent_ode (default set)")
    model.add_argument(
        "--posterior", choices=("gaussian", "flow"), help="of a latent_ode (default gaussian)"
    )
    model.add_argument(
        "--baseline",
        metavar="NAME",
        help="curve that a latent_ode corrects, made of what is seen: mean (default), last, local, "
        "or none, with which log p of whole series has a bound",
    )
    model.add_argument(
        "--likelihood", metavar="NAME", help="noise of a latent_ode: normal (default) or student"
    )
    model.add_argument(
        "--events", choices=tuple(EVENTS), help="likelihood of the times of a latent_ode as well"
    )
    model.add_argument(
        "--latent-dim", metavar="N", type=positive_integer, help="of a latent_ode (default 16)"
    )
    model.add_argument(
        "--hidden", metavar="N", type=positive_integer, help="width of a latent_ode's networks"
    )
    model.add_argument(
        "--together",
        action="store_true",
        help="transform the columns of a flow_process together: they are observed together",
    )


def _add_run(run: argparse._ArgumentGroup) -> None:
    run.add_argument("--out", metavar="DIR", help="a new or empty folder (default: in runs/)")
    run.add_argument(
        "--budget", metavar="SECONDS", type=positive_number, help="training time (default 60)"
    )
    run.add_argument(
        "--steps",
        metavar="N",
        type=positive_integer,
        help="number of steps; with --budget as well, the limit reached first ends the run",
    )
    add_options(run, "--seed", "--threads")
    run.add_argument(
        "--resume", action="store_true", help="resume the run in --out, if there is one"
    )


if __name__ == "__main__":
    raise SystemExit(main())
