"""Amortizations of a posterior: vector fields that depend on the features of an encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from cnf.fields import ConcatSquash, GivenWeights, LowRank, TracedField

# A field, and the module that maps an encoder's features to the field's context.
AmortizedField = tuple[TracedField, nn.Module | None]


def _unconditional(latent_dim: int, context_dim: int, rank: int, **options: Any) -> AmortizedField:
    """Build one field for all x."""
    return ConcatSquash(latent_dim, zero_last=True, **options), None


def _conditional_biases(
    latent_dim: int, context_dim: int, rank: int, **options: Any
) -> AmortizedField:
    """Build a field whose gates and biases depend on x; its weights are shared by all x."""
    field = ConcatSquash(latent_dim, context_dim=context_dim, zero_last=True, **options)
    return field, nn.Identity()


def _low_rank_weights(
    latent_dim: int, context_dim: int, rank: int, **options: Any
) -> AmortizedField:
    """Build a field with shared weights plus matrices of low rank and biases that depend on x."""
    field = LowRank(latent_dim, rank=rank, **options)
    return field, field.generator(context_dim)


def _hypernetwork(latent_dim: int, context_dim: int, rank: int, **options: Any) -> AmortizedField:
    """Build a field all of whose weights depend on x."""
    field = GivenWeights(latent_dim, **options)
    return field, field.generator(context_dim)


AMORTIZATIONS: dict[str, Callable[..., AmortizedField]] = {
    "none": _unconditional,
    "bias": _conditional_biases,
    "rank": _low_rank_weights,
    "hyper": _hypernetwork,
}
"""The dependence of the field on x, by name."""
