"""TabularARGN, by mostlyai-engine: a program for an environment that has mostlyai-engine 2.7.

It imports torchvision where there is one, which has to be of the same build as PyTorch, or absent.
Draws are of a model at its defaults; the log-mass is that of a second one, of the counts of the
grid's steps, whose digits are encoded, so that it is a mass on the grid and not one of bins.

Source: Tiwald et al. (2025), TabularARGN: a flexible and efficient auto-regressive framework for
generating high-fidelity synthetic data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def main() -> None:
    """Fit a model, draw from it, and score the test rows."""
    import torch
    from exchange import Exchange

    torch.set_num_threads(1)
    exchange = Exchange.open()
    train, test = exchange.read("train"), exchange.read("test")
    default = exchange.timed("training", lambda: _fitted(train, exchange, {}))
    draws = exchange.timed("sampling", lambda: default.sample(n_samples=len(train)))
    digits = {
        name: "TABULAR_CATEGORICAL" if step is None else "TABULAR_NUMERIC_DIGIT"
        for name, step in exchange.steps.items()
    }
    counts = exchange.counted(train)
    exact = exchange.timed("training by digits", lambda: _fitted(counts, exchange, digits))
    scored = exchange.timed("scoring", lambda: exact.log_prob(exchange.counted(test)))
    exchange.write(draws, np.asarray(scored, float))


def _fitted(train: pd.DataFrame, exchange: Any, encodings: dict[str, str]) -> Any:
    from mostlyai.engine import TabularARGN

    model = TabularARGN(
        max_training_time=exchange.budget / 60,
        tgt_encoding_types=encodings or None,
        value_protection=False,
        random_state=exchange.seed,
    )
    return model.fit(train)


if __name__ == "__main__":
    main()
