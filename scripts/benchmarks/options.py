"""The options of the benchmarks, and the cache of their finished measurements."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from cnf.datasets import DATA_DIR, TOYS
from cnf.scripts.benchmarks import compared
from cnf.scripts.program import positive_integer, positive_number
from cnf.utils.serialization import write_atomic

FFJORD_REPOSITORY = ("https://github.com/rtqichen/ffjord", "train_misc.py", "lib/layers/cnf.py")
LATENT_ODE_REPOSITORY = (
    "https://github.com/YuliaRubanova/latent_ode",
    *("run_models.py", "lib/latent_ode.py"),
)
"""The address of a repository, and files by which a copy of it is recognised."""
Row = dict[str, Any]
"""A result by its columns' names, of which "note" has the reason of a failure, or is empty."""


def _option(subjects: str, default: Any, parse: Any, metavar: str, text: str) -> Any:
    usual = f" (default: {default:g})" if default else ""
    metadata = {"type": parse, "metavar": metavar, "help": f"{subjects}: {text}{usual}"}
    return field(default=default, metadata={"subjects": subjects, "argument": metadata})


def _names(
    subject: str,
    what: str,
    known: Collection[str],
    usual: str = "all",
    groups: Mapping[str, tuple[str, ...]] | None = None,
) -> Any:
    """Return a field for a comma-separated list of known names or groups, each kept once."""
    grouped, named = groups or {}, (*known, *(groups or {}))

    def parse(text: str) -> tuple[str, ...]:
        for name in (given := text.split(",")):
            if name not in named:
                raise argparse.ArgumentTypeError(
                    f"expected {what} among {', '.join(named)}; got {name!r}"
                )
        return tuple(dict.fromkeys(each for name in given for each in grouped.get(name, (name,))))

    text = f"some of {', '.join(named)} (default: {usual})"
    return _option(subject, (), parse, "NAME,NAME", text)


def _integers(text: str) -> tuple[int, ...]:
    """Return positive whole numbers that commas separate."""
    return tuple(map(positive_integer, text.split(",")))


def _rivals(text: str) -> tuple[str, ...]:
    """Return the parts of NAME=PYTHON,NAME=PYTHON, the names and interpreters of rivals."""
    found = tuple(text.split(","))
    for each in found:
        name, _, python = each.partition("=")
        if name not in compared.RIVALS or not Path(python).is_file():
            raise argparse.ArgumentTypeError(
                f"expected NAME=PYTHON, a name among {', '.join(compared.RIVALS)} and the "
                f"interpreter of an environment that has it; got {each!r}"
            )
    return found


def check_repository(folder: Path, option: str, url: str, *files: str) -> None:
    """Raise a ValueError where a folder is no copy of another project's repository."""
    for name in files:
        if not (folder / name).exists():
            raise ValueError(
                f"Expected {option} to be a copy of {url}; got {folder}, which has "
                f"no {name}: git clone {url} DIR, and give DIR"
            )


@dataclass(frozen=True)
class BenchmarkOptions:
    """The options of the command line; empty names stand for the default of a table."""

    subject: str
    repeats: int = _option(
        "solver, flow, questions, vae, series, inference",
        7,
        positive_integer,
        "N",
        "repeats of every timing",
    )
    out: Path | None = _option(  # noqa: RUF009
        "solver, flow, toys, tables, mixed, questions, vae, series, evidence, outliers, inference",
        None,
        Path,
        "DIR",
        "figures, and results to keep",
    )
    budget: float = _option(
        "flow, toys, tables, mixed, questions, series, outliers",
        60.0,
        positive_number,
        "SECONDS",
        "time of a method",
    )
    cap: float = _option(
        "toys", 1800.0, positive_number, "SECONDS", "longest training of FFJORD's own code"
    )
    steps: int = _option("flow", 2, positive_integer, "K", "steps of discretised flows")
    splits: int = _option(
        "tables, mixed, questions", 3, positive_integer, "N", "splits of each table"
    )
    ffjord: Path | None = _option(  # noqa: RUF009
        "flow, toys", None, Path, "DIR", "a copy of FFJORD's repository, to compare with"
    )
    data_dir: str | None = _option(
        "flow, tables, mixed, questions, vae, series, outliers",
        None,
        str,
        "DIR",
        f"folder of {compared.UCI_FILE}, {compared.MIXED_FOLDER}/*.csv, images, PhysioNet 2012, "
        f"{compared.OUTLIER_FOLDER}/*.npz or packages of tables, else {DATA_DIR}",
    )
    seeds: int = _option(
        "series, evidence, outliers", 3, positive_integer, "N", "seeds of each fit"
    )
    live: int = _option("evidence", 500, positive_integer, "N", "live points")
    latent_ode: Path | None = _option(  # noqa: RUF009
        "series", None, Path, "DIR", "a copy of latent_ode's repository, to compare with"
    )
    sbibm: Path | None = _option(  # noqa: RUF009
        "inference", None, Path, "DIR", "the unpacked wheel of sbibm 1.1.0"
    )
    observations: int = _option(
        "inference", 10, positive_integer, "N", "observations of each task, at most 10"
    )
    simulations: tuple[int, ...] = _option(
        "inference", (), _integers, "N,N", "numbers of simulations (default: 10000,1000)"
    )
    tasks: tuple[str, ...] = _names("inference", "tasks", compared.INFERENCE_TASK_NAMES)
    estimators: tuple[str, ...] = _names("inference", "estimators", compared.INFERENCE_METHODS)
    toys: tuple[str, ...] = _names("flow, toys", "toys", TOYS, "all; two in seeds and ffjord")
    tables: tuple[str, ...] = _names(
        "flow, tables, mixed, questions",
        "tables",
        (*compared.UCI_TABLES, *compared.MIXED_TABLES, *compared.PACKAGE_TABLES),
        f"of tables uci; of flow protein and bike, of mixed {', '.join(compared.MIXED_TABLES)}; "
        f"of questions {', '.join(compared.QUESTION_TABLES)}",
        compared.TABLE_GROUPS,
    )
    rivals: tuple[str, ...] = _option(
        "tables, mixed, questions",
        (),
        _rivals,
        "NAME=PYTHON,…",
        f"some of {', '.join(compared.RIVALS)}, by the interpreters of environments of their own",
    )
    methods: tuple[str, ...] = _names("tables", "methods", compared.METHODS)
    sets: tuple[str, ...] = _option(
        "outliers",
        (),
        lambda text: tuple(dict.fromkeys(text.split(","))),
        "NAME,NAME",
        f"some of the files in {compared.OUTLIER_FOLDER}, without .npz (default: all)",
    )
    images: tuple[str, ...] = _names("vae", "images", compared.VAE_SETTINGS)
    posteriors: tuple[str, ...] = _names("vae", "posteriors", compared.VAE_POSTERIORS)

    @cached_property
    def results(self) -> ResultCache:
        """The cached results, shared by all sections that receive these options."""
        return ResultCache(self.out, f"{self.subject}.jsonl")


class ResultCache:
    """A cache of results by their keys in a file of a folder, one JSON object a line; or in memory.

    Numbers that are not finite are written as Python's JSON does: NaN and Infinity. Arrays are in
    separate files, in a folder beside.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self.path = None if folder is None else folder / name
        self._lines: list[str] = []
        self._arrays: dict[str, bytes] = {}

    def recall(self, key: Mapping[str, Any], measure: Callable[[], Row]) -> Row:
        """Return the result with this key, which is measured unless it is cached."""
        entries = [self._entry(i, line) for i, line in enumerate(self._read(), 1)]
        found = [each for each in entries if each.get("key") == key]
        if found:
            row: Row = found[0]["result"] | self._read_arrays(found[0].get("arrays"))
            return row | {"note": ", ".join(filter(None, (row["note"], "cached")))}
        row = measure()
        arrays = {name: each for name, each in row.items() if isinstance(each, np.ndarray)}
        entry: Row = {
            "key": dict(key),
            "result": {name: each for name, each in row.items() if name not in arrays},
        }
        if arrays:
            entry["arrays"] = self._write_arrays(key, arrays)
        self._lines = [*self._read(), json.dumps(entry)]
        if self.path is not None:  # replaced atomically, so that it is always complete
            write_atomic({self.path: "".join(f"{each}\n" for each in self._lines).encode()})
        return row

    def _write_arrays(self, key: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
        """Keep arrays, and return their name: of a file in the folder, or in memory."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16] + ".npz"
        buffer = BytesIO()
        np.savez(buffer, **arrays)
        if self.path is None:
            self._arrays[name] = buffer.getvalue()
        else:
            folder = self.path.with_suffix("")
            folder.mkdir(exist_ok=True)
            write_atomic({folder / name: buffer.getvalue()})
        return name

    def _read_arrays(self, name: str | None) -> Row:
        """Return the arrays that were kept under a name."""
        if name is None:
            return {}
        kept = (
            BytesIO(self._arrays[name]) if self.path is None else self.path.with_suffix("") / name
        )
        with np.load(kept) as arrays:
            return dict(arrays)

    def model_folder(self, key: Mapping[str, Any]) -> Path | None:
        """Return the folder for the model of a key; None where there is no file."""
        name = "-".join(map(str, key.values()))
        return None if self.path is None else self.path.parent / "models" / name

    def _read(self) -> list[str]:
        """Read the current lines, some of which another process may have added."""
        if self.path is None or not self.path.exists():
            return self._lines
        return self.path.read_text(encoding="utf-8").splitlines()

    def _entry(self, number: int, line: str) -> Row:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError(
                f"Expected a JSON object in line {number} of {self.path}; got "
                f"{line[:40]!r}: remove the line, or give another --out"
            )
        return found


def key_of(names: Mapping[str, Any], *settings: Any) -> Row:
    """Return a result's key: names, threads, and a fingerprint of dataclasses, arrays and texts."""
    import torch  # here, since the command line reads this module

    def plain(value: Any) -> Any:
        digest = getattr(value, "tobytes", None)
        return asdict(value) if digest is None else hashlib.sha256(digest()).hexdigest()

    text = json.dumps(settings, sort_keys=True, default=plain)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
    return {**names, "threads": torch.get_num_threads(), "settings": fingerprint}
