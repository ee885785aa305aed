"""Order conditions of Runge-Kutta methods, one for each rooted tree.

Source: Butcher (1963), Coefficients for the study of Runge-Kutta integration processes; Hairer,
Nørsett & Wanner (1993), Solving ordinary differential equations I, section II.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import prod

# A rooted tree is the sorted tuple of its branches; the single node is ().
Tree = tuple["Tree", ...]


def order_residual(
    a: tuple[tuple[float, ...], ...], weights: tuple[float, ...], order: int, theta: float
) -> float:
    """Return the largest error of the order conditions Σ_i w_i Φ_i(τ) = θ^|τ| / γ(τ).

    Each tree τ of up to `order` nodes has one; θ is the fraction of the step at which the weights
    w of the stages approximate the solution.
    """
    residuals = (
        abs(dot(weights, elementary) - theta ** nodes(tree) / density(tree))
        for tree, elementary in elementary_weights(a, order)
    )
    return max(residuals, default=0.0)


def elementary_weights(
    a: tuple[tuple[float, ...], ...], order: int
) -> Iterator[tuple[Tree, tuple[float, ...]]]:
    """Yield each tree of up to `order` nodes with Φ_i(τ) = Π_branches Σ_j a_ij Φ_j(branch)."""
    sums: dict[Tree, tuple[float, ...]] = {}  # Σ_j a_ij Φ_j of the smaller trees
    for size in range(1, order + 1):
        for tree in trees(size):
            branches = [sums[branch] for branch in tree]
            weights = tuple(prod(branch[i] for branch in branches) for i in range(len(a)))
            if size < order:
                sums[tree] = tuple(dot(row, weights) for row in a)
            yield tree, weights


def dot(left: tuple[float, ...], right: tuple[float, ...]) -> float:
    """Return the sum of products, up to the end of the shorter."""
    return sum(x * y for x, y in zip(left, right, strict=False))


@cache
def trees(size: int) -> frozenset[Tree]:
    """Return all rooted trees of `size` nodes: the smaller ones with a leaf more at any node."""
    if size == 1:
        return frozenset([()])
    return frozenset(grown for tree in trees(size - 1) for grown in _with_a_leaf(tree))


def _with_a_leaf(tree: Tree) -> Iterator[Tree]:
    yield tuple(sorted((*tree, ())))
    for i, branch in enumerate(tree):
        for grown in _with_a_leaf(branch):
            yield tuple(sorted((*tree[:i], grown, *tree[i + 1 :])))


@cache
def nodes(tree: Tree) -> int:
    """Return the number |τ| of a tree's nodes."""
    return 1 + sum(nodes(branch) for branch in tree)


@cache
def density(tree: Tree) -> int:
    """Return a tree's density γ(τ): its nodes times the densities of its branches."""
    return nodes(tree) * prod(density(branch) for branch in tree)
