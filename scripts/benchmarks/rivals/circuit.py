"""Probabilistic circuits, by cirkit: a program for an environment that has libcirkit 0.3, pandas.

The structure is a Chow-Liu tree of the training rows and the inputs are Gaussians, both of the
template for tables; sizes, optimizer and batches are those of the authors' first notebook, and the
weights those that validate best within the budget.

Source: Loconte et al. (2025), What is the relationship between tensor factorizations and circuits
(and how can we exploit it)?
"""

from __future__ import annotations

from copy import deepcopy
from math import inf
from time import perf_counter
from typing import Any

import numpy as np

UNITS, LEARNING_RATE, BATCH_ROWS = 64, 1e-2, 256
VALIDATION_STEPS = 20  # the fewest between two validations; an epoch where that is longer
CIRCUIT_ROWS = 2000


def main() -> None:
    """Train a circuit, draw from it, and score the test rows."""
    import torch
    from exchange import Exchange

    exchange = Exchange.open()
    torch.set_num_threads(1)
    torch.manual_seed(exchange.seed)
    train, validation, test = (
        torch.from_numpy(exchange.read_numbers(part)).float()
        for part in ("train", "validation", "test")
    )
    circuit, chosen = exchange.timed(
        "training", lambda: _trained(train, validation, exchange.budget)
    )
    draws = exchange.timed("sampling", lambda: _drawn(circuit, len(train)))
    scored = exchange.timed("scoring", lambda: _scored(circuit, test))
    exchange.write(exchange.frame(draws), scored, chosen)


def _trained(train: Any, validation: Any, budget: float) -> tuple[Any, str]:
    """Maximize the likelihood up to the budget, and keep the weights that validate best."""
    import torch
    from cirkit.pipeline import compile
    from cirkit.templates import data_modalities

    end = perf_counter() + budget
    circuit = compile(
        data_modalities.tabular_data(
            "chow-liu-tree",
            data=train,
            input_layers={"name": "gaussian", "args": {}},
            num_input_units=UNITS,
            sum_product_layer="cp",
            num_sum_units=UNITS,
        )
    )
    optimizer = torch.optim.Adam(circuit.parameters(), lr=LEARNING_RATE)
    every = max(VALIDATION_STEPS, -(-len(train) // BATCH_ROWS))
    best, best_nll, best_step, step = circuit.state_dict(), inf, 0, 0
    while step == 0 or perf_counter() < end:
        rows = train[torch.randint(len(train), (BATCH_ROWS,))]
        optimizer.zero_grad()
        (-circuit(rows).mean()).backward()
        optimizer.step()
        step += 1
        if step % every and perf_counter() < end:
            continue
        nll = -float(_scored(circuit, validation).mean())
        if nll < best_nll:
            best, best_nll, best_step = deepcopy(circuit.state_dict()), nll, step
    circuit.load_state_dict(best)
    return circuit, f"step {best_step} of {step}"


def _scored(circuit: Any, rows: Any) -> Any:
    import torch

    with torch.no_grad():
        return np.concatenate(
            [circuit(part).double().numpy().reshape(-1) for part in rows.split(CIRCUIT_ROWS)]
        )


def _drawn(circuit: Any, count: int) -> Any:
    import torch
    from cirkit.backend.torch.queries import SamplingQuery

    query, sizes = SamplingQuery(circuit), [CIRCUIT_ROWS] * (count // CIRCUIT_ROWS)
    sizes += [count % CIRCUIT_ROWS] if count % CIRCUIT_ROWS else []
    with torch.no_grad():  # a draw keeps all units of all layers
        return np.concatenate([query(size)[0].double().numpy() for size in sizes])


if __name__ == "__main__":
    main()
