"""An encoder of observations as a set, pooled by attention."""

import torch
from torch import Tensor, nn

from cnf.series.batch import SeriesBatch
from cnf.series.encoders.encoder import Encoder, TimeFeatures, observed_times


class SetEncoder(Encoder):
    """A deep set of observation times, pooled by attention of several heads.

    With the values x_i, mask m_i and features φ of the time t_i of each observation,

        h_i = MLP(x_i, m_i, φ(t_i)),   p_k = Σ_i softmax_i(a_k · h_i) h_i,
        h = MLP(p_1 … p_K, ln(1 + n)).

    Order matters by the times alone, and all observations are taken at once.

    Args:
        columns: The number D of columns.
        hidden: The width of the layers, and the size of the vectors.
        static: The number of static columns.
        heads: The number K of heads.
        time_features: The number of features of time.

    Shapes and errors are those of `Encoder`.

    Source: Zaheer et al. (2017), Deep sets; Horn et al. (2020), Set functions for time series.

    Example:
        >>> import torch
        >>> from cnf.series.batch import SeriesBatch
        >>> times, values = torch.linspace(0, 1, 5).expand(3, 5), torch.randn(3, 5, 2)
        >>> lengths = torch.full((3,), 5)
        >>> batch = SeriesBatch(times, values, torch.ones(3, 5, 2), torch.zeros(3, 0), lengths)
        >>> SetEncoder(2, hidden=16)(batch).shape
        torch.Size([3, 16])
    """

    def __init__(
        self, columns: int, hidden: int, static: int = 0, heads: int = 8, time_features: int = 32
    ) -> None:
        super().__init__(columns, hidden, static)
        self.times = TimeFeatures(time_features)
        self.observation = nn.Sequential(
            nn.Linear(2 * columns + time_features, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
        )
        self.attention = nn.Linear(hidden, heads, bias=False)
        self.pooled = nn.Sequential(
            nn.Linear(heads * hidden + 1, 2 * hidden),
            nn.SiLU(),
            nn.Linear(2 * hidden, hidden),
            nn.SiLU(),
        )

    def encode(self, batch: SeriesBatch) -> Tensor:
        observed = observed_times(batch)
        times, values, mask = (each[observed] for each in (batch.times, batch.values, batch.mask))
        tokens = self.observation(torch.cat([values, mask, self.times(times)], -1))
        hidden = tokens.new_zeros(*observed.shape, tokens.shape[1])
        hidden[observed] = tokens  # the network takes no time that has no observation
        scores = self.attention(hidden).masked_fill(~observed.unsqueeze(-1), -1e9)
        pooled = (scores.softmax(1).mT @ hidden).flatten(1)
        count = observed.sum(1, keepdim=True).log1p()
        encoded: Tensor = self.pooled(torch.cat([pooled, count], 1))
        return encoded
