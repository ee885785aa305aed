"""`evaluate DIR`: the NLL of held-out rows, against a Gaussian's and the truth if known."""

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
from cnf.scripts.report import REPORT_OPTION, page_path, write_report
from cnf.scripts.rows import ContextRows
from cnf.scripts.trained import (
    DEFAULT_NOISE_DRAWS,
    NOISE_DRAWS_OPTION,
    TrainedModel,
    add_row_options,
)
from cnf.utils.distributed import process_group

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of a flow on held-out rows, in nats unless stated otherwise.

    Attributes:
        n: Number of rows.
        nll: Mean negative log-density of a row, in the data's own units.
        stderr: Standard error of `nll` over the rows; None for a single row. It includes the
            scatter of an estimated trace or of drawn noise, which is independent for each row.
        nll_standardized: The NLL of columns divided by the training rows' standard deviations.
        bits_per_dim: nll / (columns · ln 2).
        gaussian_nll: The NLL of a full-covariance Gaussian fitted on the training rows; with a
            context, of the joint Gaussian of rows and contexts conditioned on the context, which is
            linear regression.
        gain_stderr: Standard error of gaussian_nll − nll, from the differences row by row; None for
            a single row.
        nfe: Evaluations of the field for each solve.
        draws: Draws of noise for each row, where there are columns of whole numbers or categories:
            the NLL is then, on average, an upper bound with the log-mass of these columns.
        entropy: Minus the mean true log-density of the same rows, where it is known.
        kl: nll − entropy.
        kl_stderr: Standard error of `kl`, from the differences row by row.
        probe_stderr: The part of `stderr` that is due to probes or draws of noise, at least two;
            zero without any.
        solver_error: The excess of the NLL that is due to the solver's tolerance and rounding: the
            signed mean, over at most 1000 random rows, of the decrease of the NLL in a solve in
            double precision by dopri8 at a tenth of the tolerance. None where such a solve failed.
        uncertainty: The total uncertainty of the NLL at two standard errors:
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
        """Return one JSON object of the known values."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(known)

    def lines(self) -> list[str]:
        """Return the numbers as lines of text."""
        gain = self.gaussian_nll - self.nll
        ahead = f"{'better' if gain >= 0 else 'worse'} by {abs(gain):.4f}{_error(self.gain_stderr)}"
        lines = [
            f"  NLL           {self.nll:10.4f}{_error(self.stderr)} nats per row (rows: {self.n})",
            f"                {self.bits_per_dim:10.4f} bits per dimension",
            f"                {self.nll_standardized:10.4f} nats per row in standardised units",
            f"  Gaussian NLL  {self.gaussian_nll:10.4f} (the flow is {ahead})",
        ]
        if self.draws is not None:
            lines.insert(1, f"                a bound on the log-mass, {self.draws} draws a row")
        if self.uncertainty is not None:
            lines.append(
                f"  uncertainty   {self.uncertainty:10.4f} at two standard errors "
                f"(rows {self.stderr:.1e}, of which probes {self.probe_stderr:.1e}; "
                f"solver {self.solver_error:+.1e})"
            )
        if self.entropy is not None:
            lines += [
                f"  true entropy  {self.entropy:10.4f}",
                f"  KL            {self.kl:10.4f}{_error(self.kl_stderr)} from truth to flow",
            ]
        return [*lines, f"  evaluations   {self.nfe:10.1f} per solve"]


def evaluate(
    trained: TrainedModel, rows: ContextRows, toy: AnyToy | None, draws: int = DEFAULT_NOISE_DRAWS
) -> EvaluationResult:
    """Score `rows` with the flow, a Gaussian and, where there is one, the toy's true density.

    With a context every number refers to p(x | c), averaged over the rows' contexts.
    """
    return summarize(trained, rows, toy, *trained.score(rows, draws), draws)


def summarize(
    trained: TrainedModel,
    rows: ContextRows,
    toy: AnyToy | None,
    log_prob: Array,
    nfe: float,
    draws: int,
    with_errors: Scores | None = None,
) -> EvaluationResult:
    """Summarize the flow's log p of rows, as `evaluate` does after scoring.

    Args:
        trained: The trained model.
        rows: The scored rows.
        toy: The toy that they are drawn from, if any.
        log_prob: Log p of each row.
        nfe: Evaluations of the field for each solve.
        draws: Draws of noise for each row.
        with_errors: Scores with errors of some of the rows; without them the parts of the NLL's
            uncertainty are None.
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
    if with_errors is not None:
        known |= _errors(stderr, with_errors, len(rows))
    return EvaluationResult(
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


def _errors(stderr: float | None, with_errors: Scores, n: int) -> dict[str, float]:
    """Return the parts of an NLL's uncertainty over `n` rows and the total, where known."""
    probes = float(with_errors.stderr.double().square().mean().sqrt()) / np.sqrt(n)
    change = (with_errors.tighter - with_errors.log_prob).double()
    solver, spread = float(change.mean()), _stderr(change.cpu().numpy()) or 0.0
    found = {"probe_stderr": probes, "solver_error": solver}
    found = {name: value for name, value in found.items() if np.isfinite(value)}
    if stderr is not None and len(found) == 2:
        found["uncertainty"] = 2 * float(np.sqrt(stderr**2 + solver**2 + spread**2))
    return found


def _variances(trained: TrainedModel) -> Array:
    """Return the variances of the training rows' columns that have a scale."""
    variances = np.diag(trained.gaussian.covariance)[len(trained.context_columns) :]
    columns = [column for column in trained.schema.columns for _ in range(column.width)]
    return variances[[column.kind != "categorical" for column in columns]]


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("evaluate", description=__doc__)
    add_row_options(parser, doing="score")
    parser.add_argument("--draws", **NOISE_DRAWS_OPTION)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument("--report", **REPORT_OPTION)
    return parser


@program("evaluate")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    trained = TrainedModel.read(arguments.dir, arguments.divergence)
    rows, toy = trained.rows_or_held_out(arguments.data, arguments.context_data, arguments.missing)
    trained.schema.check(rows.x)
    with process_group():
        page = page_path(arguments.report, trained.folder)
        log_prob, nfe = trained.score(rows, arguments.draws)
        with_errors = trained.score_with_errors(trained.error_sample(rows), arguments.draws)
        evaluation = summarize(trained, rows, toy, log_prob, nfe, arguments.draws, with_errors)
        say(*([evaluation.json()] if arguments.json else evaluation.lines()))
        if page is not None:
            known = (_named(arguments), evaluation.lines(), arguments.draws)
            write_report(page, trained, rows, log_prob, *known)
            if not arguments.json:
                say(f"  {page}")
    return 0


def _named(arguments: argparse.Namespace) -> str:
    """Return the name of the rows; empty for the held-out ones."""
    return " with the contexts of ".join(filter(None, (arguments.data, arguments.context_data)))


def _stderr(values: Array) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _error(stderr: float | None) -> str:
    return "" if stderr is None else f" ± {stderr:.4f}"


if __name__ == "__main__":
    raise SystemExit(main())
