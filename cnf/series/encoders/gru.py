"""A recurrent encoder, which reads the observations from the last to the first."""

import torch
from torch import Tensor, nn

from cnf.series.batch import SeriesBatch
from cnf.series.encoders.encoder import Encoder, Reversed


class GRUEncoder(Encoder):
    """A gated recurrent network over the observations backwards in time, with masks and gaps.

    Its input at each time t_i is (x_i, m_i, t_i, t_{i+1} − t_i), and the vector is its last state,
    that at the first observation. Times without an observation are skipped.

    Args:
        columns: The number D of columns.
        hidden: The width of the network, and the size of the vectors.
        static: The number of static columns.

    Shapes and errors are those of `Encoder`.

    Source: Cho et al. (2014), Learning phrase representations using RNN encoder-decoder; Che et
    al. (2018), Recurrent neural networks for multivariate time series with missing values.

    Example:
        >>> import torch
        >>> from cnf.series.batch import SeriesBatch
        >>> times, values = torch.linspace(0, 1, 5).expand(3, 5), torch.randn(3, 5, 2)
        >>> lengths = torch.full((3,), 5)
        >>> batch = SeriesBatch(times, values, torch.ones(3, 5, 2), torch.zeros(3, 0), lengths)
        >>> GRUEncoder(2, hidden=16)(batch).shape
        torch.Size([3, 16])
    """

    def __init__(self, columns: int, hidden: int, static: int = 0) -> None:
        super().__init__(columns, hidden, static)
        self.recurrent = nn.GRU(2 * columns + 2, hidden, batch_first=True)

    def encode(self, batch: SeriesBatch) -> Tensor:
        times, values, mask, counts = Reversed.of(batch)
        gaps = -times.diff(dim=1, prepend=times[:, :1])
        inputs = torch.cat([values, mask, times.unsqueeze(-1), gaps.unsqueeze(-1)], -1)
        # Running over the padding, and taking the state before it, is faster than packing.
        states: Tensor = self.recurrent(inputs)[0]
        return states[torch.arange(len(states), device=states.device), (counts - 1).clamp(min=0)]
