"""`train DATA`: fit a flow, score it on held-out rows and draw its figures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence

from cnf.datasets import BENCHMARKS, CONDITIONAL_TOYS, MISSING, TABLES, TOYS
from cnf.datasets.files import ENDINGS
from cnf.scripts.options import READ_OPTIONS, SHARED_OPTIONS, add_options, option_of, text_of
from cnf.scripts.program import Parser, positive_integer, positive_number, program, seed
from cnf.tables.kinds import KINDS
from cnf.training.recipes import BY_SIZE, CODES, RECIPES, Recipe

# Names of --recipe beside those of flows: a model of codes, and a flow's by the table's size.
# With figures and film the program then takes less than three minutes on two cores.
PICTURE_BUDGET_SECONDS = 120.0


@program("train")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    everything = "--help-all" in (sys.argv[1:] if argv is None else argv)
    arguments = parser(everything).parse_args(argv)
    from cnf.scripts.training import train

    train(arguments)
    return 0


def parser(everything: bool = True) -> Parser:
    """Return the parser of the command line, with all options shown, or the usual ones."""
    parser = Parser("train", __doc__, usage="cnf train DATA [option ...]")
    _add_data(parser.add_argument_group("data"), everything)
    _add_run(parser.add_argument_group("the run"))
    parser.add_argument(
        "--help-all", action="help", help="show the options of reading and of the recipe as well"
    )
    groups = {}
    for name, number in Recipe.numbers().items():
        if number.group not in groups:
            groups[number.group] = parser.add_argument_group(
                f"{number.group} (in brackets: the default, then other recipes' values)"
            )
        text = f"{number.describe()} ({_defaults(name)})" if everything else argparse.SUPPRESS
        groups[number.group].add_argument(option_of(name), metavar="X", help=text)
    return parser


def _add_data(data: argparse._ArgumentGroup, everything: bool) -> None:
    data.add_argument(
        "data",
        metavar="DATA",
        help=f"a toy ({', '.join(TOYS)}), a conditional toy ({', '.join(CONDITIONAL_TOYS)}), a "
        f"bundled table ({', '.join(TABLES)}), a benchmark ({', '.join(BENCHMARKS)}), or a file: "
        f"{ENDINGS}; or a picture (.png, .jpg, …), "
        "or word:TEXT for a word's, as a density that is filmed: dark is dense",
    )
    data.add_argument(
        "--context",
        metavar="COL,COL",
        help="columns of DATA to condition on: the density is of the others given these",
    )
    data.add_argument("--drop", metavar="COL,COL", help="columns of DATA to leave out")
    for name in READ_OPTIONS:
        hidden = {} if everything else {"help": argparse.SUPPRESS}
        data.add_argument(name, **{**SHARED_OPTIONS[name], **hidden})
    data.add_argument(
        "--schema",
        metavar="FILE",
        help="a JSON file with the kinds of columns that are not inferred, such as "
        '{"age": {"kind": "integer", "low": 0}}; kinds: ' + ", ".join(KINDS),
    )
    data.add_argument(
        "--missing",
        choices=MISSING,
        default="refuse",
        help="refuse gaps (default), drop their rows, or model what is there of each row",
    )
    add_options(data, "--data-dir")


def _add_run(run: argparse._ArgumentGroup) -> None:
    run.add_argument(
        "--out", metavar="DIR", help="a new or empty folder (default: runs/ and DATA's name)"
    )
    run.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"{CODES}, or for a flow {BY_SIZE} (by size), {', '.join(_named(RECIPES))}; or a file "
        f"that --show-recipe or train wrote (default: answers with --missing model, {CODES} for "
        "other tables of mixed types, else by size)",
    )
    run.add_argument("--show-recipe", action="store_true", help="print the recipe as JSON and exit")
    run.add_argument(
        "--budget",
        metavar="SECONDS",
        type=positive_number,
        help=f"training time (default 60, for a picture {PICTURE_BUDGET_SECONDS:g})",
    )
    run.add_argument(
        "--steps",
        metavar="N",
        type=positive_integer,
        help="number of steps; with --budget as well, the limit reached first ends the run",
    )
    run.add_argument(
        "--discretize",
        metavar="K",
        type=positive_integer,
        help="then tune K explicit steps to the flow, as cnf distil does, in half of the "
        "budget; the flow itself is kept in the folder adaptive",
    )
    run.add_argument("--seed", type=seed, help="seed of data and weights (default 0)")
    add_options(run, "--threads")
    run.add_argument(
        "--resume",
        action="store_true",
        help="resume the run in --out, if there is one, with its recipe and options",
    )
    run.add_argument(
        "--state-seconds",
        metavar="S",
        type=positive_number,
        default=30.0,
        help="time between two checkpoints, from which --resume continues (default 30)",
    )
    run.add_argument(
        "--tensorboard", action="store_true", help="also write the curves for TensorBoard, into DIR"
    )


def _defaults(name: str) -> str:
    """Return an option's default, and each other value with the recipes that have it."""
    default = text_of(Recipe.numbers()[name].default)
    others: dict[str, list[str]] = {}
    for recipe, made in RECIPES.items():
        if (value := text_of(getattr(made, name))) != default:
            others.setdefault(value, []).append(recipe)
    texts = (f"{value}: {', '.join(_named(names))}" for value, names in others.items())
    return "; ".join([default, *texts])


def _named(recipes: Collection[str]) -> list[str]:
    """Return names of recipes, with one name for all recipes of the paper's benchmarks."""
    paper = [name for name in RECIPES if name.startswith("ffjord-paper-")]
    if not set(paper) <= set(recipes):
        return list(recipes)
    return [*(name for name in recipes if name not in paper), "ffjord-paper-BENCHMARK"]


if __name__ == "__main__":
    raise SystemExit(main())
