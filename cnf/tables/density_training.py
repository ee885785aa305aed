"""The models of the density estimator: a flow, a mixture of flows, or a model of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnf.datasets import Table
from cnf.flow import Flow, FlowMixture
from cnf.tables.code_training import QUESTIONS, CodeRecipe
from cnf.tables.coding import has_codes
from cnf.tables.inputs import ContextColumns, not_numeric
from cnf.tables.row_model import RowModel
from cnf.tables.row_training import fit_rows, new_row_model
from cnf.tables.schema import Schema
from cnf.training.history import History
from cnf.training.mixture import fit_flows
from cnf.training.recipes import CODES, Recipe, choose_recipe
from cnf.utils.random import seeded

Array = NDArray[np.float64]
AnyRecipe = str | Recipe | CodeRecipe | None


def is_coded(
    recipe: AnyRecipe,
    objective: str | None,
    schema: Schema | None,
    rows: Array,
    context: Table,
    gaps: bool = False,
) -> bool:
    """Return whether a model of rows is to be fitted, rather than a flow.

    Args:
        recipe: The estimator's.
        objective: The estimator's: a flow's.
        schema: The columns' kinds; None where all are real numbers because nothing says otherwise.
        rows: The training rows' numbers, shape (rows, columns).
        context: The table of their context.
        gaps: Whether gaps are modelled, by no flow.

    Raises:
        ValueError: The recipe is one of codes, and there is an objective; or gaps are modelled, and
            there is an objective or the recipe of a flow.
    """
    if recipe == CODES or isinstance(recipe, CodeRecipe):
        if objective is not None:
            raise ValueError(
                f"Expected no objective, which is a flow's, with a recipe of codes; got "
                f"{objective!r}: leave one of them out"
            )
        return True
    if gaps and (recipe is not None or objective is not None):
        got = f"recipe {recipe!r}" if objective is None else f"objective {objective!r}"
        raise ValueError(
            f'Expected no recipe or objective of a flow with missing="model", since a flow answers '
            f"no questions; got {got}: leave one of them out"
        )
    if gaps:
        return True
    if recipe is not None or objective is not None or schema is None:
        return False
    return has_codes(schema, rows) or bool(not_numeric(context))


def train_row_model(
    schema: Schema,
    rows: Array,
    columns: ContextColumns,
    contexts: Array,
    *,
    gaps: bool = False,
    recipe: AnyRecipe,
    seed: int,
    device: torch.device,
    **options: Any,
) -> tuple[RowModel, History]:
    """Return a model of rows that is fitted to them, on the CPU, and its history.

    Where gaps are modelled, columns with a density have no bins, unless the recipe is one of codes.
    Codes stay in single precision, whose rounding is 1e-6 nats: double takes 2.5 times as long.
    """
    weight = options["weight"]
    if weight is not None:  # the codes are those of the rows that count
        kept = weight > 0
        rows, contexts, options["weight"] = rows[kept], contexts[kept], weight[kept]
    given = None if columns.varying is None else (columns.varying, contexts)
    values = gaps and recipe is None
    model = new_row_model(schema, rows, seed, context=given, values=values).to(device)
    history = fit_rows(
        model,
        rows,
        context=None if given is None else contexts,
        recipe=recipe if isinstance(recipe, CodeRecipe) else QUESTIONS if gaps else None,
        seed=seed,
        **options,
    )
    return model.cpu(), history.codes


def train_flow(
    schema: Schema,
    rows: Array,
    contexts: Array,
    weight: Array | None,
    *,
    recipe: AnyRecipe,
    objective: str | None,
    seed: int,
    device: torch.device,
    **options: Any,
) -> tuple[Flow | FlowMixture, History]:
    """Return a flow that is fitted to rows, given contexts where these have columns.

    It is a mixture of flows where the recipe says so, and in double precision on the CPU.
    """
    if not isinstance(recipe, Recipe):
        assert recipe is None or isinstance(recipe, str)  # by `is_coded`
        known = (len(rows), schema.width, bool(contexts.size), objective)
        _, recipe = choose_recipe(recipe, *known, schema.continuous(rows))
    with seeded(seed):
        model = recipe.model(schema.width, contexts.shape[1], schema.layers(rows)).to(device)
    history = fit_flows(
        model,
        torch.tensor(rows),
        context=torch.tensor(contexts) if contexts.size else None,
        weight=None if weight is None else torch.tensor(weight),
        objective=objective,
        recipe=recipe,
        seed=seed,
        **options,
    )
    return model.cpu().double(), history
