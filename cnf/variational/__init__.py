"""A flow as the posterior of a variational autoencoder, and the bounds that train one."""

from cnf.variational.amortization import AMORTIZATIONS
from cnf.variational.elbo import Bound, elbo, iwae
from cnf.variational.posterior import FlowPosterior, Posterior

__all__ = ["AMORTIZATIONS", "Bound", "FlowPosterior", "Posterior", "elbo", "iwae"]
