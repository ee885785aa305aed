"""Tables of a known law, whose log p of any cells given any others is in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_t

from cnf.scripts.benchmarks.question_tables import Array, Mask, QuestionSplit, real_schema
from cnf.tables import Column, Schema

KNOWN_ROWS = 10_000  # to train on
DEGREES = 5
CORRELATION = 0.6
CLASSES, LABELS, NUMBERS = 3, 4, 3


@dataclass(frozen=True)
class KnownLaw:
    """A class c, a label given the class, and numbers of a multivariate t given the class.

        p(c, l, x) = p(c) p(l | c) t(x; μ_c, Σ_c),

    where a single class and label are no columns of the table.

    Attributes:
        class_shares: p(c), (classes,).
        label_shares: p(l | c), (classes, labels).
        centers: μ, (classes, numbers).
        shapes: Σ, (classes, numbers, numbers).
    """

    class_shares: Array
    label_shares: Array
    centers: Array
    shapes: Array

    @cached_property
    def discrete(self) -> int:
        """The number of columns that are categories: the class and the label, or none."""
        return 0 if self.label_shares.size == 1 else 2

    @property
    def schema(self) -> Schema:
        """The schema of the columns, the categories first."""
        numbers = real_schema(self.centers.shape[1]).columns
        if not self.discrete:
            return Schema(numbers)
        counts = zip(("class", "label"), self.label_shares.shape, strict=True)
        names = {name: tuple(f"{name}{i}" for i in range(count)) for name, count in counts}
        first = (Column(name, "categorical", categories=each) for name, each in names.items())
        return Schema((*first, *numbers))

    def draw(self, rows: int, seed: int) -> Array:
        """Return draws of rows."""
        rng = np.random.default_rng(seed)
        classes = rng.choice(len(self.class_shares), rows, p=self.class_shares)
        ends = self.label_shares.cumsum(1)[classes]
        labels = (rng.random((rows, 1)) > ends[:, :-1]).sum(1)
        normal = rng.normal(size=(rows, self.centers.shape[1]))
        scaled = normal / np.sqrt(rng.chisquare(DEGREES, (rows, 1)) / DEGREES)
        factors = np.linalg.cholesky(self.shapes)[classes]
        numbers = self.centers[classes] + np.einsum("nij,nj->ni", factors, scaled)
        return np.column_stack([classes, labels, numbers])[:, 2 - self.discrete :]

    def split(self, seed: int) -> KnownSplit:
        """Return draws for training, a tenth as many for validation, and as many to ask about."""
        rows, held_out = KNOWN_ROWS, KNOWN_ROWS // 10
        x = self.draw(rows + 2 * held_out, seed)
        train, validation, test = np.split(x, [rows, rows + held_out])
        return KnownSplit(self.schema, train, validation, test, self)

    def log_prob(self, x: Array, given: Mask, asked: Mask) -> Array:
        """Return log p(asked | given) of rows (rows, columns) and masks (columns,): (rows,)."""
        return self._marginal(x, given | asked) - self._marginal(x, given)

    def _marginal(self, x: Array, seen: Mask) -> Array:
        parts = [self._joint(each, x, seen) for each in range(len(self.class_shares))]
        return np.asarray(logsumexp(parts, axis=0))

    def _joint(self, one: int, x: Array, seen: Mask) -> Array:
        """Return log p of a class and of what is seen of rows, −∞ where another class is seen."""
        found = np.full(len(x), np.log(self.class_shares[one]))
        if self.discrete:
            if seen[0]:
                found = np.where(x[:, 0] == one, found, -np.inf)
            if seen[1]:
                found = found + np.log(self.label_shares[one, x[:, 1].astype(int)])
        places = np.flatnonzero(seen[self.discrete :])
        if len(places):
            shape = self.shapes[one][np.ix_(places, places)]
            numbers = x[:, places + self.discrete]
            law = multivariate_t(self.centers[one, places], shape, df=DEGREES)
            found = found + law.logpdf(numbers)
        return found


@dataclass(frozen=True)
class KnownSplit(QuestionSplit):
    """Draws of a known law."""

    law: KnownLaw


def _t_law() -> KnownLaw:
    """Return a multivariate t of five columns."""
    places = np.arange(5)
    shape = CORRELATION ** np.abs(places[:, None] - places)
    return KnownLaw(np.ones(1), np.ones((1, 1)), np.zeros((1, 5)), shape[None])


def _mixed_law() -> KnownLaw:
    """Return classes that differ in their labels, centers and correlations."""
    rng = np.random.default_rng(0)
    labels = rng.dirichlet(np.ones(LABELS), CLASSES)
    centers = rng.normal(scale=1.5, size=(CLASSES, NUMBERS))
    factors = rng.normal(size=(CLASSES, NUMBERS, NUMBERS)) / np.sqrt(NUMBERS)
    shapes = factors @ factors.transpose(0, 2, 1) + 0.3 * np.eye(NUMBERS)
    return KnownLaw(np.array([0.5, 0.3, 0.2]), labels, centers, shapes)


KNOWN_LAWS = {"multivariate t": _t_law, "mixed": _mixed_law}
"""Functions that return a law."""
