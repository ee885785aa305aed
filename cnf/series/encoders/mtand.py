"""An encoder by attention from reference times to observations, then a recurrent network."""

from math import sqrt

import torch
from torch import Tensor, nn

from cnf.series.batch import SeriesBatch
from cnf.series.encoders.encoder import Encoder, TimeFeatures, observed_times

SHARPNESS = 3.0  # of untrained attention, which then reaches about a tenth of the span
SMALLEST_WEIGHT = 1e-6  # in sums of weights, of which logarithms are taken


class MTANDEncoder(Encoder):
    """Multi-time attention: each column interpolated at reference times, read by a GRU backwards.

    The values of column d are averaged over its own observations i, with m_id = 1 where there is
    one, at each reference time r in [0, 1],

        u_rd = Σ_i w_ri m_id x_id / Σ_i w_ri m_id,   w_ri = exp(q(r) · k(t_i)),

    and the GRU reads u_r and the logarithms of its denominators, which say how far observations
    are, from r = 1 to 0.

    Args:
        columns: The number D of columns.
        hidden: The width of the GRU, and the size of the vectors.
        static: The number of static columns.
        references: The number of reference times.
        time_features: The number of features of time.

    Shapes and errors are those of `Encoder`.

    Source: Shukla & Marlin (2021), Multi-time attention networks for irregularly sampled time
    series.

    Example:
        >>> import torch
        >>> from cnf.series.batch import SeriesBatch
        >>> times, values = torch.linspace(0, 1, 5).expand(3, 5), torch.randn(3, 5, 2)
        >>> lengths = torch.full((3,), 5)
        >>> batch = SeriesBatch(times, values, torch.ones(3, 5, 2), torch.zeros(3, 0), lengths)
        >>> MTANDEncoder(2, hidden=16)(batch).shape
        torch.Size([3, 16])
    """

    references: Tensor

    def __init__(
        self,
        columns: int,
        hidden: int,
        static: int = 0,
        references: int = 32,
        time_features: int = 32,
    ) -> None:
        super().__init__(columns, hidden, static)
        self.times = TimeFeatures(time_features)
        self.query = nn.Linear(time_features, time_features)
        self.key = nn.Linear(time_features, time_features, bias=False)
        self.register_buffer("references", torch.linspace(1, 0, references), persistent=False)
        self.recurrent = nn.GRU(2 * columns, hidden, batch_first=True)

    def encode(self, batch: SeriesBatch) -> Tensor:
        queries, keys = self.query(self.times(self.references)), self.key(self.times(batch.times))
        scores = (queries @ keys.mT) * (SHARPNESS / sqrt(queries.shape[1]))  # (B, R, T)
        scores = scores.masked_fill(~observed_times(batch).unsqueeze(1), -1e9)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        totals = weights @ batch.mask + SMALLEST_WEIGHT
        averages = (weights @ (batch.values * batch.mask)) / totals
        states: Tensor = self.recurrent(torch.cat([averages, totals.log()], -1))[1]
        return states[0]
