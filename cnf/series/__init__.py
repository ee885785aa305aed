"""Series observed at irregular times: their data, and models of them."""

from typing import TYPE_CHECKING

from cnf.series.encoders import ENCODERS
from cnf.utils.lazy import lazy_package
from cnf.utils.registry import Registry

if TYPE_CHECKING:
    from cnf.series.baselines import (
        BASELINES,
        column_means,
        predict_last,
        predict_linear,
        predict_own_mean,
        predict_training_mean,
    )
    from cnf.series.batch import SeriesBatch
    from cnf.series.checks import check_training
    from cnf.series.events import PoissonEvents
    from cnf.series.flow_process import FlowProcess
    from cnf.series.latent_ode import LatentODE
    from cnf.series.metrics import column_scales, entry_error, series_errors
    from cnf.series.prediction import Prediction, SeriesScores
    from cnf.series.recipe import SeriesRecipe
    from cnf.series.series import Series
    from cnf.series.task import Task
    from cnf.series.training import fit_series
else:
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            "baselines": "BASELINES column_means predict_last predict_linear predict_own_mean "
            "predict_training_mean",
            "batch": "SeriesBatch",
            "latent_ode": "LatentODE",
            "prediction": "Prediction SeriesScores",
            "recipe": "SeriesRecipe",
            "checks": "check_training",
            "events": "PoissonEvents",
            "flow_process": "FlowProcess",
            "metrics": "column_scales entry_error series_errors",
            "series": "Series",
            "task": "Task",
            "training": "fit_series",
        },
    )

EVENTS: "Registry[type[PoissonEvents]]" = Registry({"poisson": "cnf.series.events:PoissonEvents"})
"""The likelihoods of the times at which columns are observed, given a latent path."""

SERIES_MODELS: "Registry[type[LatentODE] | type[FlowProcess]]" = Registry(
    {
        "latent_ode": "cnf.series.latent_ode:LatentODE",
        "flow_process": "cnf.series.flow_process:FlowProcess",
    }
)
"""The models of series."""

__all__ = [
    "BASELINES",
    "ENCODERS",
    "EVENTS",
    "SERIES_MODELS",
    "FlowProcess",
    "LatentODE",
    "PoissonEvents",
    "Prediction",
    "Series",
    "SeriesBatch",
    "SeriesRecipe",
    "SeriesScores",
    "Task",
    "check_training",
    "column_means",
    "column_scales",
    "entry_error",
    "fit_series",
    "predict_last",
    "predict_linear",
    "predict_own_mean",
    "predict_training_mean",
    "series_errors",
]
