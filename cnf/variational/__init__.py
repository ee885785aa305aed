"""A flow as the posterior of a variational autoencoder, and the bounds that train one."""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_package
from cnf.utils.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from cnf.variational.bounds import Bound, elbo, iwae
    from cnf.variational.posterior import AmortizedField, FlowPosterior, Posterior
else:  # imported on first use, so that the registry needs no PyTorch
    __getattr__, __dir__ = lazy_package(
        __name__, {"bounds": "Bound elbo iwae", "posterior": "FlowPosterior Posterior"}
    )

#: The dependence of the field on x, by name.
AMORTIZATIONS: "Registry[Callable[..., AmortizedField]]" = Registry(
    {
        "none": "cnf.variational.posterior:unconditional",
        "bias": "cnf.variational.posterior:given_biases",
        "rank": "cnf.variational.posterior:given_low_rank",
        "hyper": "cnf.variational.posterior:hypernetwork",
    }
)
__all__ = ["AMORTIZATIONS", "Bound", "FlowPosterior", "Posterior", "elbo", "iwae"]
