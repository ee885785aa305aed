"""Vine copulas, by pyvinecopulib: a program for an environment that has pyvinecopulib 1.0, pandas.

Margins are its kernel densities. Pair copulas are kernels at first, and then of all families, the
default, which takes some thirty times as long: it counts where it ends within the budget and is
better on the validation rows.

Source: Nagler and Czado (2016), Evading the curse of dimensionality in nonparametric density
estimation with simplified vine copulas.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DEFAULT_FILE = "vine.json"


def main() -> None:
    """Fit vines, draw from the best on the validation rows, and score the test rows."""
    from exchange import Exchange

    exchange = Exchange.open()
    train, validation, test = (
        exchange.read_numbers(part) for part in ("train", "validation", "test")
    )
    path = exchange.folder / DEFAULT_FILE
    vine, chosen = exchange.timed(
        "training", lambda: _best(train, validation, exchange.budget, path)
    )
    draws = exchange.timed("sampling", lambda: vine.sample(len(train), seeds=[exchange.seed + 1]))
    scored = exchange.timed("scoring", lambda: vine.logpdf(test))
    exchange.write(exchange.frame(draws), scored, chosen)


def _best(train: Array, validation: Array, budget: float, path: Path) -> tuple[Any, str]:
    """Return the vine of kernels, or the default where it ends in time and is better."""
    from pyvinecopulib.core import FitControlsVinecop, Vinedist
    from pyvinecopulib.families import BicopFamily

    end = perf_counter() + budget
    kernels = Vinedist.from_data(train, controls=FitControlsVinecop(family_set=[BicopFamily.tll]))
    if not ended_within(end - perf_counter(), lambda: Vinedist.from_data(train).to_file(str(path))):
        return kernels, "kernel pair copulas"
    default = Vinedist.from_file(str(path))
    nlls = [-np.mean(each.logpdf(validation)) for each in (kernels, default)]
    if nlls[1] < nlls[0]:  # false where it is not finite
        return default, "all pair copulas"
    return kernels, "kernel pair copulas"


def ended_within(seconds: float, run: Callable[[], object]) -> bool:
    """Return whether a function ended without an error in a time, in a process that then ends."""
    process = get_context("fork").Process(target=run)
    process.start()
    process.join(max(seconds, 0))
    if process.is_alive():
        process.terminate()
        process.join()
    return process.exitcode == 0


if __name__ == "__main__":
    main()
