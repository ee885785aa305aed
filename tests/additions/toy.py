"""A Gaussian away from the origin."""

import numpy as np
from scipy.stats import multivariate_normal

from cnf.datasets import TOYS
from cnf.datasets.toy import Toy


class Blob(Toy):
    def _sample(self, n, rng):
        return rng.normal([1.0, 2.0], 0.5, (n, 2))

    def _log_prob(self, x):
        return np.atleast_1d(multivariate_normal([1.0, 2.0], 0.25 * np.eye(2)).logpdf(x))


TOYS["blob"] = Blob(name="blob")
