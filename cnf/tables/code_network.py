"""An any-order autoregressive network: the distribution of a row of codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import pi, sqrt
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cnf.tables.code_prior import CodePrior

FREE_WEIGHT = 0.5  # of a bin's free part next to its smooth part
PASS_ROWS = 1000  # rows that pass through the network at once where nothing is trained
PRIOR_COUNT = 0.1  # rows of each code that marginals are given beforehand
CALIBRATION_PRIOR = 10.0  # rows of each code that change nothing
BIN_PRIOR_COUNT = 0.5  # of each bin: all rows may be outside of it

GAP = -1  # the code of a gap

Features = Sequence[Sequence[float]]
Rows = slice | Tensor


class CodeNetwork(nn.Module):
    """A distribution of rows of K codes: a network of one conditional for any visible subset.

        log p(d | c) = Σ_k log p(d_k | c, d_1 … d_{k−1}),    p(d_k | visible codes) = softmax(ℓ_k),

    where c are the first `given` coordinates, always visible. A residual network sees the sum of
    one vector for each code, or for each hidden coordinate. The vectors of ordered codes, and the
    logits ℓ_k of neighbouring bins, have a smooth part: linear in features of the code, and in
    cosines of the bin's rank. The density sums to one by construction in any order; `log_prob` and
    `sample` use the order of the coordinates. Dropout acts where it is asked for alone.

    A code of −1 is a gap, which is hidden and marginalised; the `given` coordinates have none.

    Args:
        sizes: The number of codes of each coordinate.
        first_bin: The first code of each coordinate that is one of ordered bins; its size where
            none is.
        features: Features (size, 2) of the codes of each coordinate, about −1 to 1, the rank
            first; None where the codes are not ordered.
        hidden: Width of the network.
        blocks: Number of residual blocks.
        dropout: Probability in training, a number that `cnf.tables.code_training` uses.
        harmonics: Number of frequencies of the rank in the inputs.
        cosines: Number of cosines of the rank in the logits of bins.
        given: Number of coordinates, the first ones, that are a context.
        inputs: Coordinates that are visible or hidden, and never asked for: sums and draws leave
            them out. Each is a pair with the coordinate of the same column, without which it is not
            visible; that may be itself.

    Raises:
        ValueError: The arguments do not describe the same coordinates.

    Source: Uria, Murray and Larochelle (2014), A deep and tractable density estimator; Hoogeboom et
    al. (2022), Autoregressive diffusion models.

    Example:
        >>> network = CodeNetwork([2, 3], [2, 3], [None, None], hidden=8)
        >>> codes = torch.cartesian_prod(torch.arange(2), torch.arange(3))
        >>> round(network.log_prob(codes).exp().sum().item(), 4), network.sample(5).shape
        (1.0, torch.Size([5, 2]))
    """

    def __init__(
        self,
        sizes: Sequence[int],
        first_bin: Sequence[int],
        features: Sequence[Features | None],
        hidden: int = 288,
        blocks: int = 3,
        dropout: float = 0.2,
        harmonics: int = 4,
        cosines: int = 20,
        given: int = 0,
        inputs: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        _check_coordinates(sizes, first_bin, features, given)
        self.inputs = [(coordinate, owner) for coordinate, owner in inputs]
        self.sizes, self.first_bin = [*sizes], [*first_bin]
        self.given, self.dropout = given, dropout
        self._config = {
            "sizes": [*sizes],
            "first_bin": [*first_bin],
            "features": [None if f is None else [[*row] for row in f] for f in features],
            "hidden": hidden,
            "blocks": blocks,
            "dropout": dropout,
            "harmonics": harmonics,
            "cosines": cosines,
            "given": given,
        }
        if inputs:
            self._config["inputs"] = [[*pair] for pair in inputs]
        # Each coordinate has one more vector than codes: the last one, where it is hidden.
        starts = torch.tensor([0, *sizes]).cumsum(0)[:-1] + torch.arange(len(sizes))
        self.starts: Tensor
        self.hidden_codes: Tensor
        self.register_buffer("starts", starts, persistent=False)
        self.register_buffer("hidden_codes", torch.tensor(self.sizes), persistent=False)
        vectors = torch.randn(sum(sizes) + len(sizes), hidden) / sqrt(len(sizes))
        ordered = {
            start: _harmonics(torch.tensor(f), harmonics)
            for start, f in zip(starts.tolist(), features, strict=True)
            if f is not None
        }
        for start, matrix in ordered.items():
            vectors[start : start + len(matrix)] = 0.0
        self.vectors = nn.Parameter(vectors)
        self.smooth_vectors = _SmoothRows(ordered, hidden)
        functions = max(1, len(ordered)) * (2 + 2 * harmonics)
        nn.init.normal_(self.smooth_vectors.weight, std=1 / sqrt(3 * functions))
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden)
        self._begin_head(first_bin, hidden, cosines)

    def _begin_head(self, first_bin: Sequence[int], hidden: int, cosines: int) -> None:
        """Create the logits' weights, zero at first, and biases of the coordinates asked for."""
        asked = self.sizes[self.given :]
        ends = torch.tensor([0, *asked]).cumsum(0).tolist()
        self.slices = [slice(*pair) for pair in pairwise(ends)]
        scale, bins = torch.ones(ends[-1], 1), {}
        for part, first, size in zip(self.slices, first_bin[self.given :], asked, strict=True):
            if first < size:
                scale[part.start + first : part.stop] = FREE_WEIGHT
                bins[part.start + first] = _cosines(size - first, cosines)
        self.scale: Tensor
        self.register_buffer("scale", scale, persistent=False)
        self.free = nn.Parameter(torch.zeros(ends[-1], hidden))
        self.smooth = _SmoothRows(bins, hidden)
        self.bias = nn.Parameter(torch.zeros(ends[-1]))

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, ready for JSON."""
        return dict(self._config)

    @torch.no_grad()
    def start(self, codes: Tensor, weight: Tensor | None = None) -> None:
        """Set the biases to the log-marginals of rows of codes (rows, K), with weights (rows,).

        Gaps do not count.
        """
        for part, (counts, prior) in zip(self.slices, self._counts(codes, weight), strict=True):
            self.bias[part] = ((counts + prior) / (counts + prior).sum()).log()

    def unseen(self, codes: Tensor, weight: Tensor | None = None) -> list[Tensor | None]:
        """Return the shares of codes that no row has, as the log-marginals begin with them.

        Training keeps them up, since a network that never sees a code learns that it is impossible.
        The shares are of the rows without a gap there.

        Shapes: rows (rows, K) and weights (rows,) → for each coordinate that is not given (size,),
        None where each code occurs.
        """
        shares = (
            torch.where(counts == 0, prior / max(1, int((column >= 0).sum())), 0.0)
            for column, (counts, prior) in zip(
                codes.T[self.given :], self._counts(codes, weight), strict=True
            )
        )
        return [each if each.any() else None for each in shares]

    def _counts(self, codes: Tensor, weight: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows of each code of a coordinate, and those that it is given beforehand."""
        self.check(codes, gaps=True)
        asked = (self.sizes[self.given :], self.first_bin[self.given :], codes.T[self.given :])
        for size, first_bin, column in zip(*asked, strict=True):
            seen = column >= 0
            weights = None if weight is None else weight[seen]
            counts = torch.bincount(column[seen], weights, size).to(self.bias)
            if weight is not None:
                counts *= len(weight) / weight.sum()
            prior = torch.full_like(counts, PRIOR_COUNT)
            prior[first_bin:] = BIN_PRIOR_COUNT
            yield counts, prior

    def forward(
        self,
        codes: Tensor,
        visible: Tensor,
        dropout: float = 0.0,
        unseen: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Return −log p(d_k | visible codes) for each coordinate k that is not given.

        With `unseen`, shares of codes, −Σ share log p of these is added. Gaps are never visible,
        and have the cost 0.

        Shapes: (rows, K) codes and booleans → (rows, K − given).
        """
        seen = codes >= 0
        state = self._trunk(self._embed(self._table(), codes, visible & seen), dropout)
        parts = self._read(state, self._head()).split(self.sizes[self.given :], 1)
        codes = codes.clamp(min=0)
        costs = [
            F.cross_entropy(part, codes[:, k], reduction="none")
            for k, part in enumerate(parts, self.given)
        ]
        for k, share in enumerate(unseen or ()):
            if share is not None:
                costs[k] = costs[k] + parts[k].logsumexp(1) * share.sum() - parts[k] @ share
        return torch.stack(costs, 1).where(seen[:, self.given :], 0.0)

    def logits(self, codes: Tensor, visible: Tensor, coordinate: int) -> Tensor:
        """Return the logits of a coordinate's codes given the visible codes, in any order.

        Shapes: codes (rows, K) and booleans (rows, K) or (K,) → (rows, size of the coordinate).
        Codes that are not visible may be any; gaps are not.

        Raises:
            ValueError: A code is out of range, or the coordinate is given.
        """
        visible = (visible & (codes >= 0)) | self._is_given()
        codes = torch.where(visible, codes, 0)
        self.check(codes)
        if not self.given <= coordinate < len(self.sizes):
            raise ValueError(
                f"Expected a coordinate from {self.given} to {len(self.sizes) - 1} to ask for; "
                f"got {coordinate}"
            )
        state = self._trunk(self._embed(self._table(), codes, visible))
        return self._read(state, self._head(), coordinate)

    @torch.no_grad()
    def log_prob(
        self, codes: Tensor, visible: Tensor | None = None, prior: CodePrior | None = None
    ) -> Tensor:
        """Return log p(the other codes | the visible codes) of rows, of which the first are c.

            Σ_k log p(d_k | c, the visible codes, the asked codes before d_k),

        over the codes d_k that are asked for: neither visible nor a gap.

        Shapes: codes and booleans (rows, K), none visible when None → (rows,). The network is
        evaluated once for each coordinate that is asked for, and a row's number depends on no other
        row.

        With a prior, of these rows, its conditionals are averaged with the network's.

        Raises:
            ValueError: The codes are of another shape, or one is out of range.
        """
        self.check(codes, gaps=True)
        table, head = self._table(), self._head()
        visible = torch.zeros_like(codes, dtype=torch.bool) if visible is None else visible
        rows = PASS_ROWS if prior is None else max(1, len(codes))
        parts = zip(codes.split(rows), visible.split(rows), strict=True)
        return torch.cat([self._log_prob(*part, table, head, prior) for part in parts])

    def _log_prob(
        self,
        codes: Tensor,
        visible: Tensor,
        table: Tensor,
        head: tuple[Tensor, Tensor],
        prior: CodePrior | None,
    ) -> Tensor:
        dtype = table.dtype if prior is None else torch.float64
        found = table.new_zeros(len(codes), dtype=dtype)
        for k, rows, logits in self._conditionals(codes, visible, table, head, prior):
            found[rows] = found[rows] - F.cross_entropy(logits, codes[rows, k], reduction="none")
        return found

    def _conditionals(
        self,
        codes: Tensor,
        visible: Tensor,
        table: Tensor,
        head: tuple[Tensor, Tensor],
        prior: CodePrior | None = None,
    ) -> Iterator[tuple[int, Rows, Tensor]]:
        """Yield each coordinate that is asked for, in which rows, and its logits (rows, size).

        They are given the visible codes and those asked for before.
        """
        visible = visible | self._is_given()
        asked = torch.where(visible | ~self.is_asked(), GAP, codes)
        state = self._begin(table, torch.where(visible, codes, GAP), prior)
        for k in range(self.given, len(self.sizes)):
            here = asked[:, k] >= 0
            if here.any():
                rows = slice(None) if here.all() else here.nonzero()[:, 0]
                logits = self._read(self._trunk(state[rows]), head, k)
                yield k, rows, logits if prior is None else prior.average(k, rows, logits)
                state = self._reveal(state, table, asked[:, k], k, prior)

    @torch.no_grad()
    def calibrate(self, codes: Tensor, weight: Tensor | None = None) -> None:
        """Change the biases so that the mean conditionals over rows are the shares of the codes.

            b_k ← b_k + ln ((n_k + a) / (Σ p(d_k | d_1 … d_{k−1}) + a)),

        where n_k is the number of rows with the code, the sum is over rows without a gap there, and
        a stands for rows that keep codes of few as they are. Where both are equal the likelihood of
        the biases is stationary. Draws then have the columns' distributions, which dropout and
        early stopping leave blurred.

        Args:
            codes: Rows of codes (n, K).
            weight: Weights of the rows, shape (n,); equal when None.
        """
        counted = [counts for counts, _ in self._counts(codes, weight)]
        weight = torch.ones(len(codes), device=codes.device) if weight is None else weight
        weight = (weight * (len(codes) / weight.sum())).to(self.bias)
        table, head = self._table(), self._head()
        expected = torch.zeros_like(self.bias)
        for some, each in zip(codes.split(PASS_ROWS), weight.split(PASS_ROWS), strict=True):
            nothing = torch.zeros_like(some, dtype=torch.bool)
            for k, rows, logits in self._conditionals(some, nothing, table, head):
                expected[self.slices[k - self.given]] += each[rows] @ logits.softmax(1)
        for part, counts in zip(self.slices, counted, strict=True):
            ratio = (counts + CALIBRATION_PRIOR) / (expected[part] + CALIBRATION_PRIOR)
            self.bias[part] += ratio.log()

    @torch.no_grad()
    def sample(self, given: int | Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw rows of codes (n, K).

        Args:
            given: The number n of rows; with a context, its codes (n, given), one row for each.
            generator: Source of random numbers; PyTorch's default when None.

        Raises:
            ValueError: The context is missing, of another shape, or out of range.
        """
        context = self._context(given)
        gaps = context.new_full((len(context), len(self.sizes) - self.given), GAP)
        return self.complete(torch.cat([context, gaps], 1), generator)

    @torch.no_grad()
    def complete(
        self,
        codes: Tensor,
        generator: torch.Generator | None = None,
        prior: CodePrior | None = None,
    ) -> Tensor:
        """Return rows of codes (n, K) with each gap, −1, drawn given the row's other codes.

        Gaps are drawn in the order of the coordinates, each given those drawn before.

        Args:
            codes: Shape (n, K).
            generator: Source of random numbers; PyTorch's default when None.
            prior: As in `log_prob`.

        Raises:
            ValueError: The codes are of another shape, or one is out of range.
        """
        self.check(codes, gaps=True)
        device = self.bias.device if generator is None else generator.device
        shape = (len(codes), len(self.sizes) - self.given)
        levels = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
        table, head = self._table(), self._head()
        rows = PASS_ROWS if prior is None else max(1, len(codes))
        parts = zip(codes.split(rows), levels.to(table.device).split(rows), strict=True)
        return torch.cat([self._complete(*part, table, head, prior) for part in parts])

    def _complete(
        self,
        codes: Tensor,
        levels: Tensor,
        table: Tensor,
        head: tuple[Tensor, Tensor],
        prior: CodePrior | None,
    ) -> Tensor:
        """Draw gaps at levels of their distribution functions, (rows, K − given) in [0, 1)."""
        codes, gaps = codes.clone(), (codes < 0) & self.is_asked()
        state = self._begin(table, codes, prior)
        for k, level in enumerate(levels.T, self.given):
            if not gaps[:, k].any():
                continue
            rows = slice(None) if gaps[:, k].all() else gaps[:, k].nonzero()[:, 0]
            logits = self._read(self._trunk(state[rows]), head, k)
            logits = logits if prior is None else prior.average(k, rows, logits)
            ends = logits.double().softmax(1).cumsum(1)
            places = (level[rows] * ends[:, -1])[:, None]
            found = torch.searchsorted(ends, places, right=True)[:, 0]
            codes[rows, k] = found.clamp(max=self.sizes[k] - 1)
            drawn = torch.where(gaps[:, k], codes[:, k], GAP)
            state = self._reveal(state, table, drawn, k, prior)
        return codes

    def _context(self, given: int | Tensor) -> Tensor:
        if isinstance(given, Tensor):
            self.check(given, self.given)
            return given
        if self.given:
            raise ValueError(
                f"Expected codes (n, {self.given}) of the context to sample given them; got {given}"
            )
        return self.hidden_codes.new_zeros(given, 0)

    def check(self, codes: Tensor, columns: int | None = None, gaps: bool = False) -> None:
        """Check codes (rows, K), or of the first coordinates (rows, columns).

        With `gaps`, coordinates that are not given may have −1.

        Raises:
            ValueError: They are of another shape, or one is out of range.
        """
        columns = len(self.sizes) if columns is None else columns
        if codes.ndim != 2 or codes.shape[1] != columns or codes.dtype != torch.int64:
            raise ValueError(
                f"Expected codes of shape (rows, {columns}) and type int64; "
                f"got {tuple(codes.shape)} and {codes.dtype}"
            )
        wrong = (codes < 0) | (codes >= self.hidden_codes[:columns])
        if gaps:
            wrong[:, self.given :] &= codes[:, self.given :] != GAP
        if wrong.any():
            row, k = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"Expected codes of coordinate {k} from 0 to {self.sizes[k] - 1}; "
                f"got {codes[row, k].item()} in row {row}: encode rows by the same coding"
            )

    def is_asked(self) -> Tensor:
        """Return which coordinates may be asked for, booleans of shape (K,)."""
        found = ~self._is_given()
        found[[coordinate for coordinate, _ in self.inputs]] = False
        return found

    def _is_given(self) -> Tensor:
        return torch.arange(len(self.sizes), device=self.starts.device) < self.given

    def _table(self) -> Tensor:
        """Return the vectors of all codes, and of hidden coordinates: (codes + K, hidden)."""
        table: Tensor = self.smooth_vectors(self.vectors)
        return table

    def _head(self) -> tuple[Tensor, Tensor]:
        """Return the weights and biases of all logits, (codes, hidden) and (codes,)."""
        return self.smooth(self.scale * self.free), self.bias

    def _embed(self, table: Tensor, codes: Tensor, visible: Tensor) -> Tensor:
        """Return the sum of a row's vectors, (rows, K) → (rows, hidden)."""
        places = torch.where(visible | self._is_given(), codes, self.hidden_codes) + self.starts
        return F.embedding_bag(places, table, mode="sum")

    def _begin(self, table: Tensor, codes: Tensor, prior: CodePrior | None = None) -> Tensor:
        """Return the sum of a row's vectors where all codes but gaps are visible."""
        state = table[self.starts + self.hidden_codes].sum(0).expand(len(codes), -1)
        for k, column in enumerate(codes.T):
            if (column >= 0).any():
                state = self._reveal(state, table, column, k, prior)
        return state

    def _reveal(
        self, state: Tensor, table: Tensor, codes: Tensor, k: int, prior: CodePrior | None
    ) -> Tensor:
        """Return the sum of a row's vectors where coordinate k, hidden before, is visible.

        It stays hidden where its code is a gap, whose number is that of the last vector.
        """
        if prior is not None:
            prior.reveal(k, codes)
        rows = table[self.starts[k] : self.starts[k] + self.sizes[k] + 1]
        return state + (rows - rows[-1])[codes]

    def _trunk(self, state: Tensor, dropout: float = 0.0) -> Tensor:
        for block in self.blocks:
            state = block(state, dropout)
        normed: Tensor = self.norm(state)
        return normed

    def _read(
        self, state: Tensor, head: tuple[Tensor, Tensor], coordinate: int | None = None
    ) -> Tensor:
        """Return the logits of a coordinate; of all when None."""
        part = slice(None) if coordinate is None else self.slices[coordinate - self.given]
        return F.linear(state, head[0][part], head[1][part])


class _Block(nn.Module):
    """A residual block h + B dropout(silu(A norm(h))), the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, state: Tensor, dropout: float) -> Tensor:
        inner = F.silu(self.inner(self.norm(state)))
        added: Tensor = self.outer(_drop(inner, dropout) if dropout else inner)
        return state + added


def _drop(values: Tensor, probability: float) -> Tensor:
    """Apply dropout by random bytes, which takes a tenth of the time of PyTorch's on a CPU.

    The probability is rounded to a multiple of 1/256.
    """
    words = torch.empty(-(-values.numel() // 8), dtype=torch.int64, device=values.device)
    drawn = words.random_(-(2**63), None).view(torch.uint8)[: values.numel()].view(values.shape)
    least = min(255, round(256 * probability))
    return values * (drawn >= least).to(values).mul_(256 / (256 - least))


class _SmoothRows(nn.Module):
    """Rows of a matrix that are linear in functions of their codes, learned with zeros at first.

    Args:
        functions: The functions' values (codes, functions) of each group of rows, by its first row.
        width: The number of columns.
    """

    def __init__(self, functions: dict[int, Tensor], width: int) -> None:
        super().__init__()
        longest = max((len(values) for values in functions.values()), default=0)
        count = max((values.shape[1] for values in functions.values()), default=0)
        padded = torch.zeros(len(functions), longest, count)
        places, kept = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
        for i, (start, values) in enumerate(functions.items()):
            padded[i, : len(values)] = values
            codes = torch.arange(len(values))
            places.append(start + codes)
            kept.append(i * longest + codes)
        self.functions: Tensor
        self.places: Tensor
        self.kept: Tensor
        self.register_buffer("functions", padded, persistent=False)
        self.register_buffer("places", torch.cat(places), persistent=False)
        self.register_buffer("kept", torch.cat(kept), persistent=False)
        self.weight = nn.Parameter(torch.zeros(len(functions), count, width))

    def forward(self, matrix: Tensor) -> Tensor:
        """Return a matrix with the smooth part added to its rows."""
        smooth = (self.functions @ self.weight).flatten(0, 1)
        return matrix.index_add(0, self.places, smooth[self.kept])


def _harmonics(features: Tensor, count: int) -> Tensor:
    """Return features (codes, 2), and sines and cosines of the first one."""
    angles = features[:, :1] * (pi / 2) * 2.0 ** torch.arange(count)
    return torch.cat([features, angles.sin(), angles.cos()], 1)


def _cosines(bins: int, count: int) -> Tensor:
    """Return cosines of the bins' ranks, whose weights fall with the frequency: (bins, count)."""
    ranks, frequencies = (torch.arange(bins) + 0.5) / bins, torch.arange(count)
    return (pi * ranks[:, None] * frequencies).cos() * sqrt(2) / (1 + frequencies / 4)


def _check_coordinates(
    sizes: Sequence[int],
    first_bin: Sequence[int],
    features: Sequence[Features | None],
    given: int,
) -> None:
    """Raise a ValueError unless the arguments describe the same coordinates."""
    if not len(sizes) == len(first_bin) == len(features) or not 0 <= given < len(sizes):
        raise ValueError(
            "Expected as many sizes, first bins and features, and more than are given; got "
            f"{len(sizes)}, {len(first_bin)} and {len(features)}, {given} given"
        )
    for k, (size, first, each) in enumerate(zip(sizes, first_bin, features, strict=True)):
        if not 0 <= first <= size or size < 1:
            raise ValueError(
                f"Expected at least one code of coordinate {k}, and its first bin from 0 to their "
                f"number; got {size} codes and the bin {first}"
            )
        if each is not None and (len(each) != size or any(len(row) != 2 for row in each)):
            raise ValueError(f"Expected features of shape ({size}, 2) of coordinate {k}")
