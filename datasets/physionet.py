"""Intensive-care stays of the PhysioNet / Computing in Cardiology challenge of 2012."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.benchmarks import Folder, published_files
from cnf.datasets.series_toys import SERIES_KEYS
from cnf.datasets.table import Array

if TYPE_CHECKING:  # functions import it, since it takes long
    import pandas as pd

ARCHIVE = "physionet2012_ab.npz"
SOURCE = "https://physionet.org/content/challenge-2012/1.0.0, with its sets unpacked"
UNKNOWN = -1.0  # of a stay's descriptors
OUTCOMES = ("SAPS-I", "SOFA", "Length_of_stay", "Survival", "In-hospital_death")

Entries = tuple[NDArray[Any], NDArray[Any], NDArray[Any], Array]  # stay, minute, variable, value


def physionet2012(
    source: Folder = None,
    *,
    sets: Sequence[str] = ("a", "b"),
    unknown: Literal["keep", "gap"] = "keep",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the stays of PhysioNet 2012, and what became of them.

    Observations come at the minute in which they were made; several of one variable in one minute
    are averaged, as published models have it.

    Args:
        source: A folder with the published `set-a/132539.txt`, …, and `Outcomes-a.txt`, …, or with
            the arrays `physionet2012_ab.npz`, or the path of these; the value of the environment
            variable CNF_DATA when None.
        sets: The sets to read: 4000 stays each. Published models of series take both.
        unknown: Treatment of −1, which stands for an unknown height, weight or gender: `"keep"` it
            as a value, as published models do, or leave a `"gap"`.

    Returns:
        A frame with the columns `id`, `time` in hours since admission, and 41 variables, five of
        which (Age, Gender, Height, ICUType, Weight) describe the stay at time 0; and a frame with a
        row for each stay, with `id`, `set`, SAPS-I, SOFA, Length_of_stay, Survival and
        In-hospital_death.

    Raises:
        ValueError: No folder is given, or a file is missing or not as published; the message names
            its source.

    Source:
        Silva et al. (2012), Predicting in-hospital mortality of ICU patients, Computing in
        Cardiology 39; the treatment is that of Rubanova, Chen and Duvenaud (2019), without its
        rounding of times.

    Example:
        >>> physionet2012("/nowhere", sets=("a",))
        Traceback (most recent call last):
        ValueError: Expected physionet2012_ab.npz or Outcomes-a.txt in /nowhere; got no such file: \
it comes from https://physionet.org/content/challenge-2012/1.0.0, with its sets unpacked.
    """
    import pandas as pd

    if unknown not in ("keep", "gap"):
        raise ValueError(f"Expected unknown to be keep or gap; got {unknown!r}: choose one")
    if source is not None and Path(source).suffix == ".npz":
        paths = [Path(source)]
    else:
        groups = ((ARCHIVE,), tuple(f"Outcomes-{each}.txt" for each in sets))
        _, paths = published_files("PhysioNet 2012", source, groups, SOURCE)
    if paths[0].suffix == ".npz":
        variables, parts = _read_archive(paths[0], sets)
    else:
        variables, parts = _read_texts(paths, sets)
    outcomes = pd.concat([found for _, found in parts], ignore_index=True)
    counts = np.cumsum([0, *(len(found) for _, found in parts)])
    shifted = [
        (entries[0] + first, *entries[1:])
        for first, (entries, _) in zip(counts, parts, strict=False)
    ]
    stays, minutes, kinds, values = (np.concatenate(each) for each in zip(*shifted, strict=True))
    if unknown == "gap":
        kept = values != UNKNOWN
        stays, minutes, kinds, values = (each[kept] for each in (stays, minutes, kinds, values))
    return _averaged(outcomes["id"], variables, (stays, minutes, kinds, values)), outcomes


def _averaged(ids: pd.Series[Any], variables: Sequence[str], entries: Entries) -> pd.DataFrame:
    """Return the frame of entries, with the mean of those of one stay, minute and variable."""
    import pandas as pd

    stays, minutes, kinds, values = entries
    width, span = len(variables), int(minutes.max()) + 1
    cells = stays * span + minutes
    present = np.zeros(len(ids) * span, np.bool_)
    present[cells] = True
    keys, rows = np.flatnonzero(present), np.cumsum(present) - 1
    places = rows[cells] * width + kinds
    counts = np.bincount(places, minlength=len(keys) * width)
    totals = np.bincount(places, values, len(keys) * width)
    means = np.full((len(keys), width), np.nan)
    means.ravel()[places] = totals[places] / counts[places]
    stay, minute = np.divmod(keys, span)
    columns = (ids.to_numpy()[stay], minute / 60.0)
    return pd.concat(
        [
            pd.DataFrame(dict(zip(SERIES_KEYS, columns, strict=True))),
            pd.DataFrame(means, columns=[*variables]),
        ],
        axis=1,
    )


def _outcomes(rows: Any, name: str) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(np.asarray(rows, np.int64), columns=["id", *OUTCOMES])
    frame.insert(1, "set", name)
    return frame


Parts = tuple[list[str], list[tuple[Entries, "pd.DataFrame"]]]


def _read_archive(path: Path, sets: Sequence[str]) -> Parts:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            parts = []
            for name in sets:
                part = {key: arrays[f"{name}_{key}"] for key in ("offset", "outcomes")}
                stays = np.repeat(np.arange(len(part["outcomes"])), np.diff(part["offset"]))
                minute, kind, value = (
                    arrays[f"{name}_{key}"] for key in ("minute", "param", "value")
                )
                entries = (
                    stays,
                    minute.astype(np.int64),
                    kind.astype(np.int64),
                    value.astype(float),
                )
                parts.append((entries, _outcomes(part["outcomes"], name)))
            return arrays["param_names"].tolist(), parts
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"Expected the arrays of PhysioNet 2012 in {path}; got {error}: restore it, or unpack "
            f"the files of {SOURCE}"
        ) from None


def _read_texts(outcomes: Sequence[Path], sets: Sequence[str]) -> Parts:
    import pandas as pd

    found, parts = [], []
    for path, name in zip(outcomes, sets, strict=True):
        try:
            table = pd.read_csv(path)[["RecordID", *OUTCOMES]]
            files = [path.parent / f"set-{name}" / f"{each}.txt" for each in table["RecordID"]]
            texts = [file.read_text().partition("\n")[2].rstrip("\n") + "\n" for file in files]
            cells = pd.read_csv(StringIO("".join(texts)), names=["time", "variable", "value"])
            minutes = _minutes(cells["time"])
            values = cells["value"].to_numpy(dtype=np.float64)
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(
                f"Expected the stays of {path.name} in {path.parent / f'set-{name}'} as published; "
                f"got {error}: restore them from {SOURCE}"
            ) from None
        stays = np.repeat(np.arange(len(texts)), [text.count("\n") for text in texts])
        named = cells["variable"].notna() & (cells["variable"] != "RecordID")
        kept = named.to_numpy() & ~np.isnan(values)
        found.append(cells["variable"][kept])
        parts.append(((stays[kept], minutes[kept], values[kept]), _outcomes(table, name)))
    codes, variables = pd.factorize(pd.concat(found), sort=True)
    kinds = np.split(codes, np.cumsum([len(each) for each in found])[:-1])
    joined = [
        ((stay, minute, kind, value), table)
        for kind, ((stay, minute, value), table) in zip(kinds, parts, strict=True)
    ]
    return [*map(str, variables)], joined


def _minutes(times: pd.Series[Any]) -> NDArray[np.int64]:
    """Return minutes of times such as 07:30, hours and minutes since admission."""
    import pandas as pd

    codes, texts = pd.factorize(times)
    if (codes < 0).any():
        raise ValueError("a row without a time")
    parts = [text.split(":") for text in texts]
    return np.array([int(hour) * 60 + int(minute) for hour, minute in parts])[codes]
