"""`cnf NAME …`: the programs under one command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import cnf
from cnf.scripts.program import program, say

PROGRAMS = {
    "train": "fit a flow to a toy, a bundled table or a file",
    "distil": "tune a few explicit steps, with an exact log p, to a trained flow",
    "evaluate": "score held-out rows, against a Gaussian and the truth where it is known",
    "sample": "draw rows from a trained flow into a file",
    "log-prob": "score the rows of a file",
    "impute": "fill the gaps of a file with draws given what is there",
    "train-vae": "train a variational autoencoder of images, with a flow as its posterior",
    "train-series": "fit a model of irregular time series to a file or a toy",
    "predict": "predict series at any times, with quantiles, from what was seen of them",
    "check": "run numerical checks on a trained flow: pass, warn or fail, with the numbers",
    "plot": "draw a trained flow's figures",
    "benchmark": "measure the solver and the flow against other libraries",
}
OPTIONS = """
  --version                 print the version
  --print-completion SHELL  print a completion script for a shell"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that the first argument names."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        programs = (f"  {program:<14}{purpose}" for program, purpose in PROGRAMS.items())
        say("usage: cnf NAME ... (see cnf NAME --help)\n", *programs, OPTIONS)
        return 0
    if name == "--version":
        say(f"cnf-flows {cnf.__version__}")
        return 0
    if name == "--print-completion":
        return _print_completion(rest)
    if name not in PROGRAMS:
        hint = ", ".join(get_close_matches(name.lower(), PROGRAMS, cutoff=0.0))
        print(f"cnf: expected the name of a program, such as {hint}; got {name!r}", file=sys.stderr)
        return 2
    status: int = import_module(f"cnf.scripts.{name.replace('-', '_')}").main(rest)
    return status


@program("--print-completion")
def _print_completion(argv: Sequence[str] | None = None) -> int:
    """Print the completion script of a shell."""
    from cnf.scripts.completion import completion  # here, since it imports every program

    say(completion(" ".join(argv or ()), PROGRAMS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
