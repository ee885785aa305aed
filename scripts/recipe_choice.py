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
from cnf.fields.regularizers import REGULARIZERS
from cnf.scripts.data import Data
from cnf.scripts.options import given_numbers, option_of
from cnf.tables.code_training import QUESTIONS, CodeRecipe
from cnf.tables.masked_training import ValuesRecipe
from cnf.training.numbers import numbers_of
from cnf.training.recipes import (
    BY_SIZE,
    CODES,
    OF_SOLVES,
    RECIPES,
    Recipe,
    choose_recipe,
    recipe_of,
    unused,
)
from cnf.utils.serialization import read_file

RowRecipe = CodeRecipe | ValuesRecipe
AnyRecipe = Recipe | RowRecipe

KIND_TEXTS: dict[type[AnyRecipe], str] = {
    Recipe: "a flow",
    CodeRecipe: "a model of codes",
    ValuesRecipe: "a model of answers",
}
ANSWERS = "answers"  # the recipe's name of a flow of any columns given others
GAPS_OPTION = "--missing model"  # which asks for a model of codes or of answers on numbers


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
    file: AnyRecipe | None = None


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
    asked: dict[str, type[AnyRecipe]] = {}  # the kind of recipe, by what asks
    if resumed is not None:
        asked["the run in --out"] = kind_of(resumed)
    if name is not None:
        by_name = CodeRecipe if name == CODES else Recipe
        asked[f"--recipe {name}"] = by_name if file is None else type(file)
    numbers = [name for name in Recipe.numbers() if name not in numbers_of(CodeRecipe)]
    for option in (*numbers, "discretize"):
        if getattr(arguments, option) is not None:
            asked[option_of(option)] = Recipe
    if arguments.missing == "model":
        asked[GAPS_OPTION] = ValuesRecipe
    _check_agreement(asked)
    chosen = {kind: reason for reason, kind in reversed(asked.items()) if kind is not ValuesRecipe}
    kind, reason = next(iter(chosen.items()), (None, ""))
    return WantedModel(None if kind is None else kind is CodeRecipe, reason, file)


def _check_agreement(asked: dict[str, type[AnyRecipe]]) -> None:
    """Raise a ValueError where a flow is asked for, and a model that answers questions."""
    reasons = {kind is Recipe: reason for reason, kind in reversed(asked.items())}
    if len(reasons) == 2:
        if reasons[True] == "the run in --out":
            raise ValueError(
                f"Expected the run of a model that answers questions in --out with "
                f"{reasons[False]}; got that of a flow: train in another folder"
            )
        raise ValueError(
            f"Expected no {reasons[True]} with {reasons[False]}, whose model answers questions "
            "about parts of rows, as a flow does not: leave one of them out, or train in another "
            "folder"
        )


def kind_of(entries: Mapping[str, Any]) -> type[AnyRecipe]:
    """Return the kind of recipe that entries, which may be among a run's others, are of."""
    codes, values = (
        {*numbers_of(kind)} - {*Recipe.numbers()} for kind in (CodeRecipe, ValuesRecipe)
    )
    if not (values - codes).isdisjoint(entries):
        return ValuesRecipe
    return Recipe if codes.isdisjoint(entries) else CodeRecipe


def chosen_recipe(
    arguments: argparse.Namespace,
    data: Data,
    wanted: WantedModel,
    resumed: Mapping[str, Any] | None,
) -> tuple[str, AnyRecipe]:
    """Return the name of the recipe, and the recipe with the changes of the command line.

    Raises:
        ValueError: A file's recipe, or that of the run to resume, is of another kind of model.
    """
    file, name = wanted.file, arguments.recipe
    kind: type[AnyRecipe] = Recipe
    if data.coded:
        kind = ValuesRecipe if data.values else CodeRecipe
    if resumed is not None and kind_of(resumed) is not kind:
        raise _other_kind(kind, kind_of(resumed), "the run in --out")
    if file is not None and not isinstance(file, kind):
        raise _other_kind(kind, type(file), f"--recipe {name}")
    if name is None and resumed is not None:
        name = "of the run in --out"
        file = _recipe_of(resumed, kind)
    if issubclass(kind, Recipe):
        return _flow_recipe(arguments, data, name, file if isinstance(file, Recipe) else None)
    return name or (ANSWERS if data.values else CODES), _row_recipe(arguments, kind, file)


def _other_kind(wanted: type[AnyRecipe], got: type[AnyRecipe], where: str) -> ValueError:
    return ValueError(
        f"Expected a recipe of {KIND_TEXTS[wanted]}, which --missing and the table ask for; got "
        f"that of {KIND_TEXTS[got]} in {where}: change --missing, or leave it out"
    )


def _row_recipe(
    arguments: argparse.Namespace, kind: type[RowRecipe], file: AnyRecipe | None
) -> RowRecipe:
    """Return a recipe of a kind, with the changes of the command line.

    Raises:
        ValueError: An option is of none of its numbers.
    """
    numbers, shared = numbers_of(kind), Recipe.numbers()
    for name in shared:
        if getattr(arguments, name) is not None and name not in numbers:
            raise ValueError(
                f"Expected no {option_of(name)} with --missing model, which does not use it"
            )
    options = {name: each for name, each in numbers.items() if name in shared}
    answers = kind is CodeRecipe and arguments.missing == "model"
    default = QUESTIONS if answers else kind()
    return replace(file if isinstance(file, kind) else default, **given_numbers(arguments, options))


def _flow_recipe(
    arguments: argparse.Namespace, data: Data, name: str | None, recipe: Recipe | None
) -> tuple[str, Recipe]:
    """Return the name of a flow's recipe, and the recipe with the changes of the command line."""
    changes = given_numbers(arguments, Recipe.numbers())
    needed = _needs_solver(arguments, data, changes)
    if recipe is None or name is None:
        default = None
        if isinstance(data.toy, Picture):
            default = "picture"
        elif data.toy is not None and not needed and changes.get("explicit_steps") != 0:
            default = "toy"
        name, recipe = _chosen_by_data(arguments, data, name or default)
    lost: dict[str, Any] = {}
    if changes.get("field") in FIELDS:  # whose features may not be the recipe's
        taken = field_arguments(changes["field"])
        lost = {name: 0 for name in ("time_features", "x_features") if name not in taken}
    lost |= _lost_to_steps(changes, needed)
    recipe = replace(recipe, **{**lost, **changes})
    for useless, why in unused(recipe).items():
        if useless in changes:
            raise ValueError(f"Expected no {option_of(useless)} with {why}, which does not use it")
    return name, recipe


def _chosen_by_data(
    arguments: argparse.Namespace, data: Data, name: str | None
) -> tuple[str, Recipe]:
    """Return the recipe of a name, or for the data, with its name."""
    known = (len(data.train), data.schema.width, bool(data.context_columns))
    values = data.schema.continuous(data.train.x) if data.toy is None else None
    name, recipe = choose_recipe(name, *known, arguments.objective, values)
    if recipe.scaling != RECIPES[name].scaling:
        name = f"{name} (scaling {recipe.scaling}, as columns are far from normal)"
    return name, recipe


def _lost_to_steps(changes: Mapping[str, Any], needed: str) -> dict[str, Any]:
    """Return what a recipe loses to explicit steps that are asked for, or the steps themselves.

    Raises:
        ValueError: Something that they cannot have is asked for as well.
    """
    if not changes.get("explicit_steps"):
        return {"explicit_steps": 0} if needed else {}
    if needed:
        raise ValueError(
            f"Expected no --explicit-steps with {needed}, which a solver is for; got both: leave "
            "--explicit-steps out"
        )
    return {"regularizers": {}}


def _needs_solver(arguments: argparse.Namespace, data: Data, changes: Mapping[str, Any]) -> str:
    """Return what explicit steps cannot have, of the data or of the command line, if anything."""
    flow = Recipe().flow(data.schema.width, 0, data.schema.layers(data.train.x))
    if data.context_columns:
        return "a context"
    if flow.circular or flow.noisy:
        return "angles" if flow.circular else "whole numbers or categories"
    asked = [name for name in (*OF_SOLVES, *REGULARIZERS, "batch_norm") if changes.get(name)]
    if changes.get("objective") == "matching":
        return "--objective matching"
    if arguments.discretize:
        return "--discretize"
    return option_of(asked[0]) if asked else ""


def _recipe_of(entries: Mapping[str, Any], kind: type[AnyRecipe]) -> AnyRecipe:
    """Return the recipe in JSON, whose entries may be among others; absent ones are defaults.

    Raises:
        ValueError: A value is of another type, or out of range.
    """
    if issubclass(kind, Recipe):
        return recipe_of(entries)
    known = {name: each for name, each in numbers_of(kind).items() if name in entries}
    for name, each in known.items():
        each.check_type(f"the recipe's {name}", entries[name])
    return kind(**{name: entries[name] for name in known})


def recipe_entries(recipe: AnyRecipe) -> dict[str, Any]:
    """Return a recipe's numbers for JSON."""
    return recipe.entries() if isinstance(recipe, Recipe) else asdict(recipe)


def _read_recipe(path: Path) -> AnyRecipe:
    """Read the recipe from a file that --show-recipe or train wrote."""
    found = read_json(path, "a recipe")
    try:
        entries = found["metadata"]["recipe"] if "metadata" in found else found
        return _recipe_of(entries, kind_of(entries))
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
