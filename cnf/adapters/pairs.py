"""Checks of pairs of what is modelled, the targets, and what it is given, the conditions."""

from torch import Tensor

from cnf.layers.scalings.scaling import constant_columns
from cnf.utils.shapes import check_tensors

MIN_PAIRS = 3  # two to train on, and one for validation


def check_pairs(
    target: Tensor, condition: Tensor, names: tuple[str, str] = ("targets", "conditions")
) -> None:
    """Check that a density of targets given conditions can be fitted to pairs.

    Args:
        target: Rows that are modelled, (pairs, dim): parameters, where it is of a posterior.
        condition: What they are given, (pairs, *shape).
        names: What errors call the two.

    Raises:
        ValueError: There are too few pairs, not as many of both, a column of targets is constant,
            or a value is NaN or infinite.
        TypeError: One of them is no tensor.

    Example:
        >>> import torch
        >>> check_pairs(torch.randn(5, 2), torch.full((5, 3), torch.nan))
        Traceback (most recent call last):
        ValueError: Expected finite conditions; got nan in 5 of 5 rows: drop these rows
    """
    check_tensors(target=target, condition=condition)
    targets, conditions = names
    if target.ndim != 2 or condition.ndim < 2 or len(target) != len(condition):
        raise ValueError(
            f"Expected {targets} of shape (pairs, dim) and {conditions} of shape (pairs, …), as "
            f"many of both; got {tuple(target.shape)} and {tuple(condition.shape)}: single numbers "
            "take unsqueeze(1)"
        )
    if len(target) < MIN_PAIRS:
        raise ValueError(f"Expected at least {MIN_PAIRS} pairs; got {len(target)}: simulate more")
    check_finite(targets, target)
    check_finite(conditions, condition)
    if constant := constant_columns(target):
        raise ValueError(
            f"Expected {targets} that vary; got constant: {', '.join(map(str, constant))} "
            "(columns, counted from 0): leave them out"
        )


def check_finite(name: str, values: Tensor) -> None:
    """Raise a ValueError that counts the rows of values (rows, …) with NaN or infinity, if any."""
    finite = values.isfinite()
    if finite.all():  # a single synchronization
        return
    rows = (~finite.flatten(1)).any(1).sum().item()
    raise ValueError(
        f"Expected finite {name}; got {values[~finite][0].item()} in {rows} of {len(values)} rows: "
        "drop these rows"
    )
