"""The choice of the model to train, and of its recipe, as the command line says."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cnf.datasets import Picture
from cnf.fields import FIELDS, field_arguments
from cnf.scripts.data import Data
from cnf.scripts.options import given_numbers, option_of
from cnf.tables.code_training import CodeRecipe
from cnf.training.numbers import Number, numbers_of
from cnf.training.recipes import BY_SIZE, CODES, RECIPES, Recipe, choose_recipe, recipe_of, unused
from cnf.utils.serialization import read_file


@dataclass(frozen=True)
class WantedModel:
    """The kind of model that a command line asks for.

    Attributes:
        coded: Whether it is one of codes; None where the table decides.
        reason: What asks for it; empty where nothing does.
        file: The recipe of a file that --recipe names.
    """

    coded: bool | None = None
    reason: str = ""
    file: Recipe | CodeRecipe | None = None


def wanted_model(arguments: argparse.Namespace, resumed: Mapping[str, Any] | None) -> WantedModel:
    """Return the kind of model that the recipe, a flow's options or a run to resume ask for.

    Raises:
        ValueError: Two of them ask for different ones.
    """
    name, file = arguments.recipe, None
    known = (CODES, BY_SIZE, *RECIPES)
    if name is not None and name not in known:
        if not os.path.exists(name):
            raise ValueError(
                f"Expected --recipe to be a file or among {', '.join(known)}; got {name!r}"
            )
        file = _read_recipe(Path(name))
    asked: dict[str, bool] = {}  # for a model of codes, by what asks
    if resumed is not None:
        asked["the run in --out"] = _is_of_codes(resumed)
    if name is not None:
        asked[f"--recipe {name}"] = name == CODES or isinstance(file, CodeRecipe)
    numbers = [name for name in Recipe.numbers() if name not in numbers_of(CodeRecipe)]
    for option in (*numbers, "discretize"):
        if getattr(arguments, option) is not None:
            asked[option_of(option)] = False
    reasons = {coded: reason for reason, coded in reversed(asked.items())}
    if len(reasons) == 2:
        raise ValueError(
            f"Expected no {reasons[False]} with {reasons[True]}, whose model is one of codes: "
            "leave one of them out, or train in another folder"
        )
    coded, reason = next(iter(reasons.items()), (None, ""))
    return WantedModel(coded, reason, file)


def _is_of_codes(entries: Mapping[str, Any]) -> bool:
    """Return whether entries are of a recipe, or a run, of codes."""
    return not ({*numbers_of(CodeRecipe)} - {*Recipe.numbers()}).isdisjoint(entries)


def chosen_recipe(
    arguments: argparse.Namespace,
    data: Data,
    wanted: WantedModel,
    resumed: Mapping[str, Any] | None,
) -> tuple[str, Recipe | CodeRecipe]:
    """Return the name of the recipe, and the recipe with the changes of the command line."""
    file, name = wanted.file, arguments.recipe
    if file is None and name is None and resumed is not None:
        name = "of the run in --out"
        file = code_recipe_of(resumed) if data.coded else recipe_of(resumed)
    if data.coded:
        recipe = file if isinstance(file, CodeRecipe) else CodeRecipe()
        return name or CODES, replace(recipe, **given_numbers(arguments, shared_numbers()))
    return _flow_recipe(arguments, data, name, file if isinstance(file, Recipe) else None)


def _flow_recipe(
    arguments: argparse.Namespace, data: Data, name: str | None, recipe: Recipe | None
) -> tuple[str, Recipe]:
    """Return the name of a flow's recipe, and the recipe with the changes of the command line."""
    if recipe is None or name is None:
        conditional = bool(data.context_columns)
        known = (len(data.train), data.schema.width, conditional, arguments.objective)
        default = "picture" if isinstance(data.toy, Picture) else None
        values = data.schema.continuous(data.train.x) if data.toy is None else None
        name, recipe = choose_recipe(name or default, *known, values)
        if recipe.scaling != RECIPES[name].scaling:
            name = f"{name} (scaling {recipe.scaling}, as columns are far from normal)"
    changes = given_numbers(arguments, Recipe.numbers())
    lost = {}
    if changes.get("field") in FIELDS:  # whose features may not be the recipe's
        taken = field_arguments(changes["field"])
        lost = {name: 0 for name in ("time_features", "x_features") if name not in taken}
    recipe = replace(recipe, **{**lost, **changes})
    for useless, why in unused(recipe).items():
        if useless in changes:
            raise ValueError(f"Expected no {option_of(useless)} with {why}, which does not use it")
    return name, recipe


def shared_numbers() -> dict[str, Number]:
    """Return the numbers of training codes that a flow's recipe has too, and so an option."""
    options = Recipe.numbers()
    return {name: each for name, each in numbers_of(CodeRecipe).items() if name in options}


def code_recipe_of(entries: Mapping[str, Any]) -> CodeRecipe:
    """Return the recipe of codes in JSON, whose entries may be among others; others are defaults.

    Raises:
        ValueError: A value is of another type, or out of range.
    """
    known = {name: each for name, each in numbers_of(CodeRecipe).items() if name in entries}
    for name, each in known.items():
        each.check_type(f"the recipe's {name}", entries[name])
    return CodeRecipe(**{name: entries[name] for name in known})


def recipe_entries(recipe: Recipe | CodeRecipe) -> dict[str, Any]:
    """Return a recipe's numbers for JSON."""
    return asdict(recipe) if isinstance(recipe, CodeRecipe) else recipe.entries()


def _read_recipe(path: Path) -> Recipe | CodeRecipe:
    """Read the recipe from a file that --show-recipe or train wrote."""
    found = read_json(path, "a recipe")
    try:
        entries = found["metadata"]["recipe"] if "metadata" in found else found
        return code_recipe_of(entries) if _is_of_codes(entries) else recipe_of(entries)
    except (KeyError, TypeError):
        raise ValueError(
            f"Expected {path} to hold a recipe, as --show-recipe prints or train's config.json "
            "has it; got something else"
        ) from None


def read_json(path: Path, what: str) -> Any:
    """Return what a file holds, in JSON, or raise a ValueError that says what it should hold."""
    try:
        return json.loads(read_file(path).decode())
    except OSError as error:
        raise ValueError(f"Expected {what} in {path}; got: {error.strerror}") from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"Expected {path} to hold {what} in JSON; got: {error}") from None
