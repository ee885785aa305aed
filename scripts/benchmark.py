"""Tables of measurements, of one subject at a time."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from cnf.scripts.benchmarks.compared import peer
from cnf.scripts.benchmarks.options import (
    FFJORD_REPOSITORY,
    LATENT_ODE_REPOSITORY,
    BenchmarkOptions,
    check_repository,
)
from cnf.scripts.program import Parser, program, say


@dataclass(frozen=True)
class BenchmarkSection:
    """A table of a benchmark, with the libraries that it needs."""

    function: str  # in `benchmarks`: of `BenchmarkOptions`, yields the table's rows and sentences
    help: str
    peers: tuple[str, ...] = ()
    one_thread: bool = True  # otherwise PyTorch has its default


_section, _default_threads = BenchmarkSection, partial(BenchmarkSection, one_thread=False)
BENCHMARK_SUBJECTS: dict[str, dict[str, BenchmarkSection]] = {
    "solver": {
        "detest": _section("accuracy:lines", "errors on 25 problems", ("torchdiffeq",)),
        "overhead": _section("solves:overhead", "its own time", ("torchdiffeq", "torchode")),
        "rows": _section("solves:influence", "influence of rows on one another"),
        "memory": _section("memory:lines", "memory of a solve and its gradient"),
    },
    "flow": {
        "toy": _section("flow_cost:toy_lines", "training steps in 2-D", ("torchdiffeq", "zuko")),
        "table": _section("flow_cost:table_lines", "training steps in 43-D", ("torchdiffeq",)),
        "log_prob": _section("flow_cost:log_prob_lines", "exact log p", ("torchdiffeq",)),
        "scoring": _section("scoring:rate_lines", "rows a second of trained flows", ("zuko",)),
        "discretised": _section(
            "discretised:lines", "rows a second and errors of explicit steps", ("zuko",)
        ),
        "regularizers": _section(
            "toys:regularizer_lines", "gain and cost; takes a quarter of an hour"
        ),
    },
    "toys": {
        "fit": _default_threads(
            "toys:fit_lines", "KL to the truth after --budget seconds, and NSF's", ("zuko",)
        ),
        "objectives": _default_threads("toys:objective_lines", "hybrid, or one of its parts"),
        "seeds": _default_threads("toys:seed_lines", "variation over five seeds"),
        "busy": _default_threads("busy:lines", "KL of cnf train beside busy processes"),
        "ffjord": _default_threads(
            "race:lines", "FFJORD's own code trained to that KL", ("torchdiffeq",)
        ),
    },
    "tables": {
        "choice": _section("tables:choice_lines", "the packages' tables, by a rule"),
        "nll": _default_threads("tables:nll_lines", "estimators' scores on held-out rows"),
        "two-sample": _default_threads("tables:two_sample_lines", "their samples against rows"),
    },
    "mixed": {"rows": _section("mixed:lines", "row models' NLL and draws on tables of all types")},
    "questions": {
        "conditionals": _section("questions:conditional_lines", "NLL of cells given others"),
        "imputation": _section("questions:imputation_lines", "scores of draws in gaps"),
        "errors": _section("questions:error_lines", "planted errors that are named first"),
        "known": _section("questions:known_lines", "answers against known laws"),
        "cost": _section("questions:cost_lines", "seconds of scoring by masks"),
    },
    "vae": {
        "bounds": _default_threads("vae:bound_lines", "on test images; takes hours", ("pyro",)),
        "cost": _section("vae:cost_lines", "training steps", ("pyro",)),
    },
    "series": {
        "physionet": _section("series:stay_lines", "errors and intervals on stays"),
        "mortality": _section("series:mortality_lines", "AUROC on stays"),
        "periodic": _section("series:periodic_lines", "errors on sine waves"),
        "laws": _section("series:law_lines", "log p against exact evidence"),
        "ode": _section("series_costs:output_lines", "output times of each row", ("torchdiffeq",)),
        "memory": _section("series_costs:depth_lines", "memory of continuous depth"),
    },
    "evidence": {"nessai": _section("evidence:lines", "log Z and calls by nessai", ("nessai",))},
    "outliers": {
        "novelty": _section("outliers:novelty_lines", "AUROC, trained on normal rows"),
        "contaminated": _section("outliers:contaminated_lines", "AUROC, trained on all rows"),
        "scores": _section("outliers:score_lines", "AUROC of a flow's scores"),
        "vae": _section("outliers:vae_lines", "AUROC of PyOD's VAE, one seed", ("pyod",)),
        "explain": _section("outlier_errors:lines", "planted errors that explain names first"),
    },
    "inference": {
        "posteriors": _section("inference:lines", "two-sample tests of posteriors", ("sbi",)),
        "scoring": _section("inference_checks:scoring_lines", "log p beside FMPE's", ("sbi",)),
        "calibration": _section("inference_checks:calibration_lines", "ranks and coverage"),
    },
}
# By the names on the command line. The subject is a positional argument.
_OPTIONS = {f"--{each.name.replace('_', '-')}": each for each in fields(BenchmarkOptions)[1:]}


@program("benchmark")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    subject, section = arguments.subject, arguments.section
    sections = BENCHMARK_SUBJECTS[subject]
    if section not in (None, *sections):
        parser().error(
            f"expected a section of {subject} among {', '.join(sections)}; got {section!r}"
        )
    values = {option: getattr(arguments, each.name) for option, each in _OPTIONS.items()}
    given = {option: value for option, value in values.items() if value is not None}
    known = [option for option in _OPTIONS if subject in _OPTIONS[option].metadata["subjects"]]
    for option in given.keys() - known:
        parser().error(
            f"expected for {subject} only {', '.join(known)}; got {option}, which it does not read"
        )
    options = BenchmarkOptions(subject, **{_OPTIONS[each].name: given[each] for each in given})
    names = [section] if section else list(sections)
    for library in (each for name in names for each in sections[name].peers):
        peer(library)
    if options.ffjord is not None:
        check_repository(options.ffjord, "--ffjord", *FFJORD_REPOSITORY)
    if options.latent_ode is not None:
        check_repository(options.latent_ode, "--latent-ode", *LATENT_ODE_REPOSITORY)
    if options.out is not None:
        _make(options.out)
    for name in names:
        _run(options, name, given, arguments.page)
    return 0


def _run(options: BenchmarkOptions, name: str, given: dict[str, Any], page: Path | None) -> None:
    """Print a table as it is measured, and put it into the page with the command that makes it."""
    from cnf.scripts.benchmarks.measure import circumstances, one_thread, put_part, table_lines

    section, lines = BENCHMARK_SUBJECTS[options.subject][name], []
    with one_thread() if section.one_thread else nullcontext():
        setting = circumstances(section.peers)
        items = resolve_name(f"cnf.scripts.benchmarks.{section.function}")(options)
        for line in table_lines(items):
            say(line)
            lines.append(line)
    say("")
    if page is not None:  # after each table, so that an interruption loses one at most
        words = ["cnf", "benchmark", options.subject, "--section", name]
        for option, value in given.items():
            words += [option, ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"]
        put_part(page, f"{options.subject}: {name}", shlex.join(words), setting, lines)


def _make(folder: Path) -> None:
    """Make the folder of --out."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = "it is not a folder" if os.path.exists(folder) else getattr(error, "strerror", error)
        raise ValueError(
            f"Expected --out to be a folder to write to; got {folder}: {why}"
        ) from None


def parser() -> Parser:
    """Return the parser of the command line."""
    sections = (
        f"{name}: " + "; ".join(f"{key} ({section.help})" for key, section in subject.items())
        for name, subject in BENCHMARK_SUBJECTS.items()
    )
    parser = Parser("benchmark", description=f"{__doc__} Their sections: {'. '.join(sections)}.")
    parser.add_argument("subject", choices=BENCHMARK_SUBJECTS, help="what to measure")
    parser.add_argument("--section", help="one table of the subject; all when not given")
    page = "a Markdown page to write each table into, in place of its earlier version"
    parser.add_argument("--page", metavar="FILE", type=Path, help=page)
    for option, each in _OPTIONS.items():
        parser.add_argument(option, **each.metadata["argument"])
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
