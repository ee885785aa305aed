"""Times and durations as counts of a unit, and dates in text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.column_types import LARGEST_EXACT
from cnf.datasets.table import Array

Times = NDArray[Any]  # NumPy's dates, or durations, whose stubs know no units

UNITS = {  # nanoseconds, from the coarsest to the finest
    "D": 86_400 * 10**9,
    "h": 3600 * 10**9,
    "min": 60 * 10**9,
    "s": 10**9,
    "ms": 10**6,
    "us": 10**3,
    "ns": 1,
}
MONTH = "month"  # the unit of dates that all begin a month; no other is of varying length
NUMPY_UNITS = {"min": "m", MONTH: "M"}  # where NumPy has another word
LARGEST = 9 * 10**18  # about the largest in 64 bits
DAY_LIMITS = {  # of dates and durations, in days since 1970, with the second one left out
    "M8": (-719_162, 2_932_897),  # the years 1 to 9999
    "m8": (-2_932_897, 2_932_897),
    "ns": (-106_750, 106_750),  # what 64 bits hold, and a day for time zones
}
DATE = re.compile(
    r"(?P<a>\d{4}|\d{1,2})(?P<sep>[-./])(?P<b>\d{1,2})(?P=sep)(?P<c>\d{4}|\d{1,2})"
    r"(?:(?P<gap>T|,? )(?P<H>\d{1,2}):(?P<M>\d{2})(?::(?P<S>\d{2})(?:\.(?P<f>\d{1,9}))?)?"
    r"(?P<half> ?(?:[AP]M|[ap]m))?(?P<zone>Z|[+-]\d{2}:?\d{2})?)?",
    re.ASCII,
)
YEAR_MONTH = re.compile(r"\d{4}-\d{2}", re.ASCII)
YEAR_MONTH_FORMAT = "%Y-%m"
MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
NAMED = re.compile(rf"(?<=\d)([-/ ])({'|'.join(MONTH_NAMES)})\1(?=\d)")
ORDERS = {"Ymd": ("Y", "m", "d"), "dmY": ("d", "m", "Y"), "mdY": ("m", "d", "Y")}
ZONE = re.compile(r"(Z|[+-]\d{2}:?\d{2})$")
DIRECTIVE = re.compile(r"%(-?[YymdHIMS]|[bpP]|[1-9?]f)")
DATE_ADVICE = "write them as 2024-12-31"
CENTURY = 69  # two-digit years from here on belong to 19xx, as in POSIX


def encode_times(times: Times, unit: str = "", origin: str = "") -> tuple[Array, str, str]:
    """Count dates from an origin, or durations from zero.

    Args:
        times: NumPy's dates or durations, in any unit from days on.
        unit: The unit to count in; the coarsest that holds all when empty, months included, but
            none so fine that counts exceed 2^53.
        origin: The date to count from; the first one when empty. Durations have none.

    Returns:
        The counts, with NaN for NaT; the unit; the origin.

    Example:
        >>> encode_times(np.array(["2024-03-02", "2024-03-01T12"], dtype="M8[s]"))
        (array([12.,  0.]), 'h', '2024-03-01T12:00:00')
    """
    resolution = _unit(times)
    present = ~np.isnat(times)
    ticks = times[present].astype(np.int64)
    is_date = times.dtype.kind == "M"
    if unit == MONTH or (not unit and is_date and _begin_months(times[present])):
        return _encode_months(times, origin)
    first = int(ticks.min()) if is_date and len(ticks) else 0
    unit = unit or _coarsest(ticks, resolution, first)
    if is_date and not origin:
        date = np.array(first).view(f"M8[{_word(resolution)}]")[()]
        origin = _iso(date.astype(f"M8[{_word(unit)}]"))
    start = _ticks(origin, unit)
    values = np.full(len(times), np.nan)
    if UNITS[unit] >= UNITS[resolution]:
        step = UNITS[unit] // UNITS[resolution]
        counts, rest = np.divmod(ticks, step)
        values[present] = (counts - start) + rest / step
    else:  # in whole ticks first, where float64 is exact
        finer = UNITS[resolution] // UNITS[unit]
        whole, part = divmod(start, finer)
        values[present] = (ticks - whole) * float(finer) - part
    return values, unit, origin


def decode_times(values: Array, unit: str, origin: str, resolution: str) -> Times:
    """Return the dates, or without an origin the durations, that counts stand for.

    Counts are rounded to the unit, or to the resolution where that is coarser; dates outside the
    years 1 to 9999, or outside 64 bits of nanoseconds, are moved inside.

    Example:
        >>> decode_times(np.array([11.8, np.nan]), "h", "2024-03-01T12:00:00", "s").tolist()
        [datetime.datetime(2024, 3, 2, 0, 0), None]
    """
    if unit == MONTH:
        return _decode_months(values, origin, resolution)
    coarse = max(unit, resolution, key=UNITS.__getitem__)
    kind = "M8" if origin else "m8"
    start = _ticks(origin, coarse)
    limits = DAY_LIMITS["ns" if resolution == "ns" else kind]
    low, high = (days * (UNITS["D"] // UNITS[coarse]) for days in limits)
    present = ~np.isnan(values)
    counts = np.rint(values[present] * (UNITS[unit] / UNITS[coarse]))
    near = max(low - start, -LARGEST), min(high - start, LARGEST)
    counts = np.clip(counts, float(near[0]), float(near[1]))  # roughly, so that 64 bits hold them
    ticks = np.clip(counts.astype(np.int64) + start, low, high - 1)
    times = np.full(len(values), "NaT", dtype=f"{kind}[{_word(resolution)}]")
    times[present] = ticks.view(f"{kind}[{_word(coarse)}]").astype(times.dtype)
    return times


def _begin_months(dates: Times) -> bool:
    """Return whether dates are first days of several months."""
    months = dates.astype("M8[M]")
    return bool(len(dates) and (months == dates).all() and (months != months[0]).any())


def _encode_months(dates: Times, origin: str) -> tuple[Array, str, str]:
    """Count dates in months from an origin, with the elapsed share of their month."""
    months = dates.astype("M8[M]")
    start = np.datetime64(origin, "M") if origin else np.nanmin(months)
    first, following = (each.astype("M8[us]") for each in (months, months + 1))
    share = (dates - first) / (following - first)
    counts = np.where(np.isnat(months), np.nan, (months - start).astype(np.float64))
    return counts + share, MONTH, str(start)


def _decode_months(values: Array, origin: str, resolution: str) -> Times:
    """Return the first days of months that were counted from an origin."""
    start = np.datetime64(origin, "M")
    years = ("1678", "2261") if resolution == "ns" else ("0001", "9999")
    low, high = ((np.datetime64(f"{year}-01", "M") - start).astype(int) for year in years)
    present = ~np.isnan(values)
    months = np.full(len(values), "NaT", dtype="M8[M]")
    months[present] = start + np.rint(np.clip(values[present], low, high)).astype(np.int64)
    return months.astype(f"M8[{_word(resolution)}]")


def parse_dates(texts: Sequence[str], format: str = "") -> tuple[Times, str] | None:
    """Parse dates in text, all in one format.

    Formats: year first, as in ISO, day first or month first, with -, / or . between; then perhaps a
    time, with seconds, fractions, AM or PM, and an offset from UTC. A column whose offsets differ
    is converted to UTC. Months may have English names, as in 31-Dec-2024; those without a day, such
    as 2024-12, stand for their first days.

    Args:
        texts: Distinct texts.
        format: A format whose order of day and month is taken, without a proof.

    Returns:
        Times in the texts' wall time, and their format; None where the texts are no dates.

    Raises:
        ValueError: Days and months cannot be told apart, or their order differs among the texts.

    Example:
        >>> parse_dates(["31.12.2024", "1.2.2024"])
        (array(['2024-12-31T00:00:00.000000', '2024-02-01T00:00:00.000000'],
              dtype='datetime64[us]'), '%-d.%-m.%Y')
        >>> parse_dates(["tomorrow"])
    """
    if texts and all(map(YEAR_MONTH.fullmatch, texts)):
        return _parse_months(texts, format or YEAR_MONTH_FORMAT)
    if texts and all(map(NAMED.search, texts)):
        return _parse_named(texts, format)
    return _parse_numbers(texts, format)


def _parse_months(texts: Sequence[str], format: str) -> tuple[Times, str] | None:
    """Parse months as their first days; return None where one is impossible."""
    first = _parse_numbers([f"{text}-01" for text in texts])
    return None if first is None else (first[0], format)


def _parse_named(texts: Sequence[str], format: str) -> tuple[Times, str] | None:
    """Parse dates with names of months between day and year; return None unless all are."""
    found = [NAMED.split(text) for text in texts]
    sep = found[0][1]
    if any(len(parts) != 4 or parts[1] != sep or len(parts[0]) > 2 for parts in found):
        return None
    numbered = [f"{a:0>2}.{MONTH_NAMES.index(name) + 1:02d}.{c}" for a, _, name, c in found]
    dates = _parse_numbers(numbered, format.replace(f"{sep}%b{sep}", ".%m."))
    if dates is None:
        return None
    day = "%-d" if any(len(parts[0]) == 1 for parts in found) else "%d"
    return dates[0], format or dates[1].replace("%d.%m.", f"{day}{sep}%b{sep}")


def _parse_numbers(texts: Sequence[str], format: str = "") -> tuple[Times, str] | None:
    """Parse dates whose months are numbers."""
    matches = [*map(DATE.fullmatch, texts)]
    found = [match.groupdict(default="") for match in matches if match]
    if not found or len(found) < len(texts):
        return None
    fields = {key: [each[key] for each in found] for key in found[0]}
    shapes = {(each["sep"], each["gap"], bool(each["S"]), bool(each["half"])) for each in found}
    if len(shapes) > 1 and not format:
        return None
    times = _clock(fields)
    dates = None if times is None else _ordered(texts, fields, format)
    if dates is None:
        return None
    days, order = dates
    resolution = "ns" if max(map(len, fields["f"])) > 6 else "us"
    written = format or _format(fields, order)
    if written is None or (resolution == "ns" and not _in_nanoseconds(days)):
        return None
    zone = ZONE.search(written)
    offsets = _offsets(fields["zone"]) - _offsets([zone[0] if zone else ""])
    if set(fields["zone"]) == {""}:
        offsets = _offsets([""])
    clock = (times - offsets).astype(f"m8[{resolution}]")
    return days.astype(f"M8[{resolution}]") + clock, written


def odd_date(texts: Sequence[str]) -> tuple[str, str] | None:
    """Find a text that is no date, or one in another format, where most texts are dates.

    Returns:
        The first such text, and one of the dates; None where most are no dates.

    Example:
        >>> odd_date(["2024-01-01", "2024-01-02", "soon"])
        ('soon', '2024-01-02')
    """
    dates = [text for text in texts if DATE.fullmatch(text)]
    if 2 * len(dates) <= len(texts):
        return None
    usual = dates[len(dates) // 2]
    if not _in_one_format(usual, usual):
        return None
    return next(((text, usual) for text in texts if not _in_one_format(usual, text)), None)


def _in_one_format(date: str, text: str) -> bool:
    try:
        return parse_dates([date, text]) is not None
    except ValueError:  # either order is possible
        return True


def format_dates(dates: Times, format: str) -> list[str]:
    """Write dates by strftime's directives; NaT must be left out.

    Besides %Y %y %m %b %d %H %I %M %S %p there are %P (am, pm), %-d and the like without leading
    zeros, %3f for a fraction of three digits, and %?f for one of six that is left out, with its
    point, where it is zero.

    Example:
        >>> format_dates(np.array(["2024-03-01T14:05"], dtype="M8[us]"), "%-d/%-m/%y %I:%M %p")
        ['1/3/24 02:05 PM']
    """
    days, months = dates.astype("M8[D]"), dates.astype("M8[M]")
    seconds = (dates.astype("M8[s]") - days).astype(np.int64)
    year = months.astype("M8[Y]").astype(np.int64) + 1970
    hour = seconds // 3600
    numbers = {
        "Y": year,
        "y": year % 100,
        "m": months.astype(np.int64) % 12 + 1,
        "d": (days - months.astype("M8[D]")).astype(np.int64) + 1,
        "H": hour,
        "I": (hour + 11) % 12 + 1,
        "M": seconds // 60 % 60,
        "S": seconds % 60,
        "f": (dates - dates.astype("M8[s]")).astype("m8[ns]").astype(np.int64),
    }
    pieces: list[Iterable[str]] = []
    for i, part in enumerate(DIRECTIVE.split(format)):  # literals and directives take turns
        pieces.append(_written(part, numbers) if i % 2 else repeat(part, len(dates)))
    return ["".join(cells) for cells in zip(*pieces, strict=True)]


def _written(directive: str, numbers: dict[str, NDArray[np.int64]]) -> list[str]:
    """Return the text of a directive for each date."""
    name = directive[-1]
    if name in "pP":
        halves = ("AM", "PM") if name == "p" else ("am", "pm")
        return [halves[hour >= 12] for hour in numbers["H"].tolist()]
    values = numbers["m" if name == "b" else name].tolist()
    if name == "b":
        return [MONTH_NAMES[value - 1] for value in values]
    if directive == "?f":
        return [f".{value // 1000:06d}" if value else "" for value in values]
    if name == "f":
        digits = int(directive[0])
        return [f"{value // 10 ** (9 - digits):0{digits}d}" for value in values]
    width = 1 if directive[0] == "-" else 4 if name == "Y" else 2
    return [f"{value:0{width}d}" for value in values]


def _format(fields: dict[str, list[str]], order: str) -> str | None:
    """Return the one format of all texts; None where they have several."""
    date = fields["sep"][0].join(
        _directive(name, fields[key]) for name, key in zip(ORDERS[order], "abc", strict=True)
    )
    if not fields["gap"][0]:
        return date
    half = fields["half"][0]
    hour = _directive("I" if half else "H", fields["H"])
    time = f"{fields['gap'][0]}{hour}:%M" + (":%S" if fields["S"][0] else "")
    digits = sorted({len(text) for text in fields["f"]})
    if digits == [0, 6]:  # as Python and pandas write them
        time += "%?f"
    elif len(digits) > 1:
        return None
    elif digits[0]:
        time += f".%{digits[0]}f"
    time += half[:-2] + ("%p" if half[-2:].isupper() else "%P") if half else ""
    zones = sorted(set(fields["zone"]))
    if "" in zones and len(zones) > 1:
        return None
    return date + time + (zones[0] if len(zones) == 1 else "+00:00")


def _directive(name: str, texts: Sequence[str]) -> str:
    if name == "Y":
        return "%Y" if len(texts[0]) == 4 else "%y"
    return f"%-{name}" if any(len(text) == 1 for text in texts) else f"%{name}"


def _clock(fields: dict[str, list[str]]) -> Times | None:
    """Return the time of day of each text; None where one is impossible."""
    hour, minute, second = (_numbers(fields[key]) for key in "HMS")
    if any(fields["half"]):
        if not ((hour >= 1) & (hour <= 12)).all():
            return None
        after = np.array([half.strip().lower() == "pm" for half in fields["half"]])
        hour = hour % 12 + 12 * after
    if (hour > 23).any() or (minute > 59).any() or (second > 59).any():
        return None
    fraction = _numbers([text.ljust(9, "0") for text in fields["f"]])
    seconds = (hour * 60 + minute) * 60 + second
    return np.asarray((seconds * 10**9 + fraction).astype("m8[ns]"))


def _ordered(
    texts: Sequence[str], fields: dict[str, list[str]], format: str
) -> tuple[Times, str] | None:
    """Return the days and their order: year, day or month first; None where there is no such."""
    first, last = ({len(text) for text in fields[key]} for key in "ac")
    if first == {4}:
        possible = ["Ymd"] if 4 not in last else []
    elif 4 in first or not (last == {4} or (last == {2} and _are_short_dates(fields))):
        possible = []
    elif format and not format.startswith("%Y"):
        possible = ["dmY" if "d" in format.split("m")[0] else "mdY"]
    else:
        return _proven(texts, fields)
    days = [(_days(fields, order), order) for order in possible]
    return next((each for each in days if not np.isnat(each[0]).any()), None)


def _are_short_dates(fields: dict[str, list[str]]) -> bool:
    """Return whether numbers with a year of two digits are no version, such as 1.10.24."""
    padded = all(len(text) == 2 for key in "ab" for text in fields[key])
    separators = set(fields["sep"])
    return separators == {"/"} or (padded and separators == {"."})


def _proven(texts: Sequence[str], fields: dict[str, list[str]]) -> tuple[Times, str] | None:
    """Return the days in the one order that all texts allow; None where a text allows neither."""
    days = {order: _days(fields, order) for order in ("dmY", "mdY")}
    wrong = {order: np.isnat(each) for order, each in days.items()}
    if (wrong["dmY"] & wrong["mdY"]).any():
        return None
    if wrong["mdY"].any() and wrong["dmY"].any():
        both = " and ".join(repr(texts[int(each.argmax())]) for each in wrong.values())
        raise ValueError(f"Expected one order of day and month; got {both}: {DATE_ADVICE}")
    if wrong["dmY"].any():
        return days["mdY"], "mdY"
    is_proven = wrong["mdY"].any() or set(fields["sep"]) == {"."} or fields["a"] == fields["b"]
    if not is_proven:  # with points, the day is first
        raise ValueError(
            "Expected dates that show whether the day or the month is first; got none like "
            f"31/12/2024, but {texts[0]!r}: {DATE_ADVICE}"
        )
    return days["dmY"], "dmY"


def _days(fields: dict[str, list[str]], order: str) -> Times:
    """Return the days, NaT where there is no such day."""
    numbers = {name: _numbers(fields[key]) for name, key in zip(ORDERS[order], "abc", strict=True)}
    year, month, day = (numbers[name] for name in "Ymd")
    if len(fields["abc"[ORDERS[order].index("Y")]][0]) == 2:
        year = year + np.where(year < CENTURY, 2000, 1900)
    months = ((year - 1970) * 12 + month - 1).astype("M8[M]")
    days = months.astype("M8[D]") + (day - 1)
    impossible = (year < 1) | (month < 1) | (month > 12) | (day < 1)
    days[impossible | (days.astype("M8[M]") != months)] = np.datetime64("NaT")
    return np.asarray(days)


def _offsets(zones: Sequence[str]) -> Times:
    minutes = [
        0 if zone in ("", "Z") else int(f"{zone[0]}1") * (int(zone[1:3]) * 60 + int(zone[-2:]))
        for zone in zones
    ]
    return np.array(minutes, dtype="m8[m]")


def _in_nanoseconds(days: Times) -> bool:
    low, high = DAY_LIMITS["ns"]
    numbers = days.astype(np.int64)
    return bool(((numbers > low) & (numbers < high)).all())


def _numbers(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.array([int(text or 0) for text in texts], dtype=np.int64)


def _coarsest(ticks: NDArray[np.int64], resolution: str, start: int) -> str:
    """Return the coarsest unit that holds all ticks, counted exactly from the start by float64."""
    if not len(ticks):
        return "D"
    units = [unit for unit in UNITS if UNITS[unit] >= UNITS[resolution]]
    steps = [UNITS[unit] // UNITS[resolution] for unit in units]
    at = next(i for i, step in enumerate(steps) if not (ticks % step).any())
    span = max(int(ticks.max()) - start, start - int(ticks.min()))
    while span // steps[at] > LARGEST_EXACT:
        at -= 1
    return units[at]


def _unit(times: Times) -> str:
    word = np.datetime_data(times.dtype)[0]
    return next((unit for unit in NUMPY_UNITS if NUMPY_UNITS[unit] == word), word)


def _word(unit: str) -> str:
    return NUMPY_UNITS.get(unit, unit)


def _ticks(origin: str, unit: str) -> int:
    """Return the units from 1970 to an origin, 0 without an origin."""
    if not origin:
        return 0
    return int(np.datetime64(origin).astype(f"M8[{_word(unit)}]").astype(np.int64))


def _iso(date: Any) -> str:
    """Write a date in ISO form: days alone, or seconds at least."""
    word = np.datetime_data(date.dtype)[0]
    return str(date.astype("M8[s]") if word in ("h", "m") else date)
