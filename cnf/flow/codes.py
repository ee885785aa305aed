"""The flow of a table's continuous coordinates, given a row's codes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from cnf.fields import make_field
from cnf.fields.masked import Masked
from cnf.flow.flow import Flow
from cnf.layers import CNF
from cnf.layers.context import CodeContext


def code_flow(
    sizes: Sequence[int],
    features: Sequence[Tensor | None] | None,
    continuous: int,
    hidden: Sequence[int] = (128, 128),
    embedding: int = 32,
    field: str = "concat",
    **solver: Any,
) -> Flow:
    """Return a flow over the coordinates z that are present in a row, given its codes and mask.

    Absent coordinates of z keep their value and have no part in the log-determinant; the base
    counts them as normal, so that z = 0 there adds −½ ln 2π to log p.

    Args:
        sizes: The number of codes of each of the K coordinates.
        features: Features of codes, as in `cnf.layers.context.CodeContext`.
        continuous: The number C of coordinates of z, and of entries of the mask.
        hidden: Widths of the field's hidden layers.
        embedding: Width of the embedding of codes.
        field: A name in `cnf.fields.FIELDS`, of the field under the mask.
        solver: Any of `cnf.layers.SolverSettings`' attributes.

    Raises:
        ValueError: A size is not positive, or a name unknown.

    Example:
        >>> flow = code_flow([3, 2], None, continuous=1, hidden=(8, 8))
        >>> flow.log_prob(torch.zeros(1, 1), torch.tensor([[2.0, 0.0, 1.0]])).shape
        torch.Size([1])
    """
    context = CodeContext(sizes, continuous, embedding, features)
    size = {"dim": continuous, "context_dim": embedding + continuous}
    inner = make_field(field, {"zero_last": True}, hidden=hidden, **size)
    base = Independent(Normal(torch.zeros(continuous), torch.ones(continuous)), 1)
    # The scores of a row model take no probes of an estimated trace.
    settings = {"divergence": "exact", **solver}
    return Flow(base, [CNF(Masked(inner), **settings)], context)
