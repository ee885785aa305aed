"""The squared distance from the origin along the path."""

from cnf.fields.regularizers import REGULARIZERS, Regularizer

REGULARIZERS["distance"] = Regularizer(
    lambda point: point.x.square().sum(1), "weight of the paths' squared distance from the origin"
)
