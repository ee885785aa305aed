"""Paths of flow matching: their ends, their velocities, and what they ask of a field."""

import pytest
import torch
from helpers import DOUBLE, near, refused

import cnf
from cnf.training import PATHS, Recipe
from cnf.training.objectives import FlowMatching


@pytest.mark.parametrize("name", PATHS)
def test_a_path_leads_from_base_to_data_with_its_velocity(name):
    z, x = torch.randn(2, 5, 3, dtype=DOUBLE)
    t = torch.linspace(0, 1, 5, dtype=DOUBLE).unsqueeze(1)
    near(PATHS[name](z, x, 0 * t)[0], z, 1e-12)
    near(PATHS[name](z, x, 0 * t + 1)[0], x, 1e-12)
    point, velocity = PATHS[name](z, x, t)
    later, _ = PATHS[name](z, x, t + 1e-6)
    near((later - point) / 1e-6, velocity, 1e-5)


def test_normal_data_ask_nothing_of_a_field_along_trigonometric_paths():
    z, x = torch.randn(2, 20_000, 1, generator=torch.Generator().manual_seed(0))
    t = torch.full_like(z, 0.3)
    slopes = []
    for name in ("trigonometric", "straight"):
        point, velocity = PATHS[name](z, x, t)
        slopes.append(((point * velocity).mean() / point.square().mean()).abs())
    assert slopes[0] < 0.03
    assert slopes[1] > 0.5


def test_a_recipe_chooses_the_path_and_angles_refuse_others():
    data = 1 + torch.randn(200, 1)
    recipe = Recipe(objective="matching", path="trigonometric", hidden=(8,))
    history = cnf.fit(cnf.ffjord(1, hidden=(8,)), data, recipe=recipe, steps=4)
    assert history.steps == 4
    flow = cnf.ffjord(1, circular=[0])
    objective = FlowMatching(path="trigonometric")
    refused("Expected straight paths for angles", objective.check, flow, conditional=False)
