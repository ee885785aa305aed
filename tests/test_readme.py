"""README and the site's pages: examples run, and commands are the programs' own."""

import pkgutil
import re
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import cnf
from cnf.outliers import fit_detector
from cnf.scripts.__main__ import PROGRAMS, main
from cnf.series import fit_series
from cnf.tables.code_training import fit_codes
from cnf.tables.masked_training import fit_values

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "notebooks").rglob("*.md"))]
LISTED = "benchmarks.md"  # commands of hours, which test_site.py reads but does not run
QUICK = {
    "train": ("--steps", "2"),
    "train-series": ("--steps", "2"),
    "train-vae": ("--epochs", "1", "--samples", "2", "--hidden", "16"),
    "distil": ("--updates", "2"),
    "check": ("--points", "100", "--rows", "5"),
}


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The programs' command lines of a page, without `cnf`."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line[:4] == "cnf "]


def quick(arguments: list[str]) -> list[str]:
    """Return a command line for few steps, and a small network where it trains a flow."""
    found = [*arguments, *QUICK.get(arguments[0], ())]
    if arguments[0] == "train" and not {"mixed.csv", "--missing", "--recipe"} & {*arguments}:
        found += ["--hidden", "16"]
    return found


def shown(language: str) -> list[Path]:
    """The pages with such blocks, except the one of long commands."""
    return [page for page in PAGES if page.name != LISTED and blocks(page, language)]


def shorten_sbi(monkeypatch) -> None:
    """Training of an epoch, MCMC without tuning, and no classifiers in sbi's diagnostics."""
    sampler = "sbi.inference.posteriors.mcmc_posterior.SliceSamplerVectorized"
    slices, quick = pkgutil.resolve_name(sampler), {"tuning": 1, "init_width": 1.0}
    monkeypatch.setattr(sampler, lambda **named: slices(**named | quick))
    monkeypatch.setattr("sbi.diagnostics.sbc.c2st", lambda *given, **named: torch.tensor([0.5]))
    for trainer in ("base.NeuralInference", "vfpe.base_vf_inference.VectorFieldTrainer"):
        monkeypatch.setattr(
            f"sbi.inference.trainers.{trainer}._converged", lambda self, epoch, *given: epoch > 0
        )


@pytest.mark.usefixtures("undrawn")
@pytest.mark.filterwarnings(
    "ignore:Capping max_sampling_batch_size:UserWarning"
)  # sbi's, of its own
@pytest.mark.filterwarnings("ignore:The `nessai.gw` module will be deprecated:FutureWarning")
@pytest.mark.parametrize("page", shown("python"), ids=lambda page: page.stem)
def test_python_examples_run_one_after_the_other(page, tmp_path, monkeypatch):
    """With fits of two steps, whose mixtures take a second at most."""
    monkeypatch.chdir(tmp_path)
    if page.stem == "sbi":
        shorten_sbi(monkeypatch)
    fits = {"cnf.fit": cnf.fit, "cnf.training.mixture.fit": cnf.fit}
    fits["cnf.tables.row_training.fit_codes"] = fit_codes
    fits["cnf.tables.row_training.fit_values"] = fit_values
    fits["cnf.series.latent_ode.fit_series"] = fit_series
    fits["cnf.adapters.simulation_flow.fit"] = cnf.fit
    fits["cnf.outliers.estimator.fit_detector"] = fit_detector
    for place, fit in fits.items():
        monkeypatch.setattr(
            place, lambda *given, fit=fit, **named: fit(*given, **named | {"steps": 2, "budget": 1})
        )
    names: dict[str, object] = {}
    for example in blocks(page, "python"):
        exec(example, names)


@pytest.mark.usefixtures("undrawn", "coarse")
def test_commands_run_on_a_table(tmp_path, monkeypatch):
    """Each command line once, whichever pages show it."""
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(100, 3))
    for name in ("table.csv", "new.csv"):
        np.savetxt(name, rows, delimiter=",", header="a,b,c", comments="")
    pd.DataFrame(rows).assign(kind=rows[:, 0] > 0).to_csv("mixed.csv", index=False)
    table = pd.DataFrame(rows, columns=["a", "b", "c"])
    table[["a"]].head(2).to_csv("cells.csv", index=False)
    table.mask(rows > 1).to_csv("gaps.csv", index=False)
    numbers = np.arange(200)
    stays = pd.DataFrame({"stay": numbers // 5, "hour": numbers % 5 * 2 + 0.5})
    stays = stays.assign(pulse=np.sin(numbers), temp=np.where(numbers % 3, numbers % 7, np.nan))
    stays.to_csv("stays.csv", index=False)
    long = stays.melt(["stay", "hour"], var_name="what", value_name="value")
    long.dropna().sort_values(["stay", "hour"]).to_csv("long.csv", index=False)
    stays[["stay"]].drop_duplicates().assign(died=lambda each: each["stay"] % 2).to_csv(
        "labels.csv", index=False
    )
    pd.DataFrame({"hour": [1.0, 6.5]}).to_csv("times.csv", index=False)
    Path("schema.json").write_text('{"c": {"kind": "real", "gaps": "value"}}')
    monkeypatch.setattr("cnf.scripts.report.png", lambda *_: b"")  # whose drawing takes long
    for arguments in {tuple(each): each for page in shown("sh") for each in commands(page)}:
        assert main(quick(arguments)) == 0
        for option, written in pairwise(arguments):
            assert option != "--out" or Path(written).exists()


def test_every_program_is_shown():
    assert {arguments[0] for page in PAGES for arguments in commands(page)} == set(PROGRAMS)
    assert len(commands(PAGES[0])) >= 8
    assert len(blocks(PAGES[0], "python")) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http|#)([^)#]+)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    for link in links:
        assert (page.parent / link).exists(), link
