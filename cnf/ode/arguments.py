"""Arguments of dynamics: nested tuples, lists and dicts, some of whose tensors belong to rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node, tree_leaves, tree_map


@dataclass(frozen=True, eq=False)
class PerRow:
    """An argument with one entry for each row of the state: a context, a probe.

    The dynamics get the tensor itself, in per-sample steps the entries of the active rows.

    Attributes:
        tensor: Shape (rows, …).

    Example:
        >>> import torch
        >>> context = torch.arange(3.0).unsqueeze(1)
        >>> take_rows({"context": PerRow(context)}, torch.tensor([2, 0]))["context"].tolist()
        [[2.0], [0.0]]
    """

    tensor: Tensor


register_pytree_node(
    PerRow, lambda row: ([row.tensor], None), lambda children, _: PerRow(*children)
)


def check_rows(args: Any, rows: int) -> None:
    """Check that each `PerRow` tensor in `args` has the given number of rows.

    Raises:
        ValueError: One has another number.
    """
    for leaf in tree_leaves(args, is_leaf=lambda leaf: isinstance(leaf, PerRow)):
        if isinstance(leaf, PerRow) and leaf.tensor.shape[:1] != (rows,):
            raise ValueError(
                f"Expected PerRow tensors with {rows} rows like the state; "
                f"got shape {tuple(leaf.tensor.shape)}"
            )


def take_rows(args: Any, rows: Tensor | None) -> Any:
    """Return `args` as the dynamics get them: unwrapped, with the entries of `rows` (None: all)."""

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, PerRow):
            return leaf
        return leaf.tensor if rows is None else leaf.tensor[rows]

    return tree_map(take, args, is_leaf=lambda leaf: isinstance(leaf, PerRow))


def rowwise(values: Tensor, ndim: int) -> Tensor:
    """Return the values of rows, shaped to broadcast against states of `ndim` axes.

    Example:
        >>> import torch
        >>> rowwise(torch.zeros(4), 3).shape
        torch.Size([4, 1, 1])
    """
    return values.view(-1, *(1,) * (ndim - 1))


def module_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters by name, for `torch.func.functional_call` without tied weights.

    Each comes once for every module that holds it: `functional_call` would leave a module that
    appears under two names without its parameters.

    Example:
        >>> module = nn.Linear(2, 1)
        >>> module.twin = module.weight
        >>> [*module_parameters(module)]
        ['weight', 'bias']
    """
    return {
        f"{path}.{name}" if path else name: parameter
        for path, holder in module.named_modules()
        for name, parameter in holder.named_parameters(recurse=False)
    }
