"""`evaluate DIR`: the NLL of held-out rows, beside a Gaussian's and the truth where it is known."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from cnf.flow.scores import Scores
from cnf.scripts.data import AnyToy, true_log_prob
from cnf.scripts.program import Parser, program, say
from cnf.scripts.report import REPORT, page_path, write_report
from cnf.scripts.rows import Rows
from cnf.scripts.trained import DRAWS, NOISE_DRAWS, Trained, add_row_options
from cnf.utils.distributed import process_group

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """How a flow does on rows that it has not seen; all in nats unless said otherwise.

    Attributes:
        n: Number of rows.
        nll: Mean negative log-density of a row, in the data's own units.
        stderr: Its standard error over the rows; not known for a single one. Where the trace is
            estimated, or noise is drawn, the scatter of that is in it, since each row has its own.
        nll_standardized: The same for columns divided by the training rows' standard deviations.
        bits_per_dim: nll / (columns · ln 2).
        gaussian_nll: That of a full-covariance Gaussian fitted on the training rows; with a
            context, of the Gaussian of rows and contexts conditioned on the context, which is
            linear regression.
        gain_stderr: The standard error of gaussian_nll − nll, from the differences row by row; not
            known for a single one.
        nfe: Evaluations of the field for each solve.
        draws: Of noise for each row, where there are columns of whole numbers or categories: the
            NLL is then an upper bound in the mean, of the log-mass in these columns.
        entropy: Minus the mean true log-density of the same rows, where it is known.
        kl: nll − entropy.
        kl_stderr: Its standard error, from the differences row by row.
        probe_stderr: The part of `stderr` that comes from probes or draws of noise, at least two:
            zero where there are none.
        solver_error: By how much the NLL is too high for the solver's tolerance and rounding: the
            mean, with its sign, over at most 1000 of the rows at random, of what the NLL loses by
            a solve in double precision by dopri8 at a tenth of the tolerance. Not known where one
            failed.
        uncertainty: How far the NLL may be off in all, at two standard errors:
            2 √(stderr² + solver_error² + the standard error of solver_error²).
    """

    n: int
    nll: float
    stderr: float | None
    nll_standardized: float
    bits_per_dim: float
    gaussian_nll: float
    gain_stderr: float | None
    nfe: float
    draws: int | None = None
    entropy: float | None = None
    kl: float | None = None
    kl_stderr: float | None = None
    probe_stderr: float | None = None
    solver_error: float | None = None
    uncertainty: float | None = None

    def json(self) -> str:
        """One JSON object, without what is not known."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(known)

    def lines(self) -> list[str]:
        """The numbers for people."""
        gain = self.gaussian_nll - self.nll
        ahead = f"{'better' if gain >= 0 else 'worse'} by {abs(gain):.4f}{_error(self.gain_stderr)}"
        lines = [
            f"  NLL           {self.nll:10.4f}{_error(self.stderr)} nats per row (rows: {self.n})",
            f"                {self.bits_per_dim:10.4f} bits per dimension",
            f"                {self.nll_standardized:10.4f} nats per row in standardised units",
            f"  Gaussian NLL  {self.gaussian_nll:10.4f} (the flow is {ahead})",
        ]
        if self.draws is not None:
            lines.insert(1, f"                a bound of the log-mass, {self.draws} draws a row")
        if self.uncertainty is not None:
            lines.append(
                f"  uncertainty   {self.uncertainty:10.4f} at two standard errors "
                f"(rows {self.stderr:.1e}, of it probes {self.probe_stderr:.1e}; "
                f"solver {self.solver_error:+.1e})"
            )
        if self.entropy is not None:
            lines += [
                f"  true entropy  {self.entropy:10.4f}",
                f"  KL            {self.kl:10.4f}{_error(self.kl_stderr)} from truth to flow",
            ]
        return [*lines, f"  evaluations   {self.nfe:10.1f} per solve"]


def evaluate(trained: Trained, rows: Rows, toy: AnyToy | None, draws: int = DRAWS) -> Evaluation:
    """Score `rows` with the flow, a Gaussian and, where there is one, the toy's true density.

    With a context every number is of p(x | c), averaged over the rows' contexts.
    """
    return summarize(trained, rows, toy, *trained.score(rows, draws), draws)


def summarize(
    trained: Trained,
    rows: Rows,
    toy: AnyToy | None,
    log_prob: Array,
    nfe: float,
    draws: int,
    assessed: Scores | None = None,
) -> Evaluation:
    """What `evaluate` makes of the flow's log p of `rows` and its evaluations for each solve.

    Args:
        trained: The flow, and what it was trained on.
        rows: What is scored.
        toy: What they are drawn from, if they are.
        log_prob: Of each row.
        nfe: Evaluations of the field for each solve.
        draws: Of noise for each row.
        assessed: The errors of some of the rows; the NLL's parts are not known when None.
    """
    nll = -float(log_prob.mean())
    known: dict[str, float | None] = {}
    if toy is not None:
        truth = true_log_prob(toy, rows)
        known = {
            "entropy": -float(truth.mean()),
            "kl": float((truth - log_prob).mean()),
            "kl_stderr": _stderr(truth - log_prob),
        }
    stderr = _stderr(log_prob)
    gaussian = trained.gaussian_log_prob(rows)
    if assessed is not None:
        known |= _errors(stderr, assessed, len(rows))
    return Evaluation(
        n=len(rows),
        nll=nll,
        stderr=stderr,
        nll_standardized=nll - 0.5 * float(np.log(_variances(trained)).sum()),
        bits_per_dim=nll / (len(trained.schema.columns) * float(np.log(2))),
        gaussian_nll=-float(gaussian.mean()),
        gain_stderr=_stderr(log_prob - gaussian),
        nfe=nfe,
        draws=draws if trained.flow.noisy else None,
        **known,
    )


def _errors(stderr: float | None, assessed: Scores, n: int) -> dict[str, float]:
    """The parts of an NLL's uncertainty over `n` rows, and all of it; but what is not known."""
    probes = float(assessed.stderr.double().square().mean().sqrt()) / np.sqrt(n)
    change = (assessed.tighter - assessed.log_prob).double()
    solver, spread = float(change.mean()), _stderr(change.cpu().numpy()) or 0.0
    found = {"probe_stderr": probes, "solver_error": solver}
    found = {name: value for name, value in found.items() if np.isfinite(value)}
    if stderr is not None and len(found) == 2:
        found["uncertainty"] = 2 * float(np.sqrt(stderr**2 + solver**2 + spread**2))
    return found


def _variances(trained: Trained) -> Array:
    """Of the training rows' columns, but for categories and constants, which have no scale."""
    own = np.diag(trained.gaussian.covariance)[len(trained.context_columns) :]
    columns = [column for column in trained.schema.columns for _ in range(column.width)]
    return own[[column.kind != "categorical" for column in columns]]


def parser() -> Parser:
    """What the program can be asked."""
    parser = Parser("evaluate", description=__doc__)
    add_row_options(parser, doing="score")
    parser.add_argument("--draws", **NOISE_DRAWS)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument("--report", **REPORT)
    return parser


@program("evaluate")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    trained = Trained.read(arguments.dir, arguments.divergence)
    rows, toy = trained.rows_or_held_out(arguments.data, arguments.context_data, arguments.missing)
    trained.schema.check(rows.x)
    with process_group():
        page = page_path(arguments.report, trained.folder)
        log_prob, nfe = trained.score(rows, arguments.draws)
        assessed = trained.assess(trained.some(rows), arguments.draws)
        evaluation = summarize(trained, rows, toy, log_prob, nfe, arguments.draws, assessed)
        say(*([evaluation.json()] if arguments.json else evaluation.lines()))
        if page is not None:
            known = (_named(arguments), evaluation.lines(), arguments.draws)
            write_report(page, trained, rows, log_prob, *known)
            if not arguments.json:
                say(f"  {page}")
    return 0


def _named(arguments: argparse.Namespace) -> str:
    """What the rows are called; empty where they are the held-out ones."""
    return " with the contexts of ".join(filter(None, (arguments.data, arguments.context_data)))


def _stderr(values: Array) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _error(stderr: float | None) -> str:
    return "" if stderr is None else f" ± {stderr:.4f}"


if __name__ == "__main__":
    raise SystemExit(main())
