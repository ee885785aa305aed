"""Callbacks for training."""

from __future__ import annotations

from math import nan
from typing import Any

from tqdm import tqdm

from cnf.history import Event


class ProgressBar:
    """Shows loss, validation NLL and evaluations per solve; quiet where there is no terminal.

    Example:
        >>> import torch, cnf
        >>> history = cnf.fit(
        ...     cnf.ffjord(2, hidden=(8,)), torch.randn(50, 2), steps=2, callbacks=[ProgressBar()]
        ... )
    """

    def __init__(self) -> None:
        bar_format = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
        self._bar: tqdm[Any] = tqdm(total=1.0, disable=None, bar_format=bar_format, leave=False)
        self._nll = nan

    def __call__(self, event: Event) -> None:
        """Show one step."""
        if event.record is not None:
            self._nll = event.record.validation_nll
        self._bar.set_postfix_str(
            f"step {event.step}  loss {event.loss:.3f}  validation NLL {self._nll:.3f}  "
            f"{event.nfe:.0f} evaluations",
            refresh=False,
        )
        self._bar.update(event.progress - self._bar.n)
        if event.progress == 1.0:
            self._bar.close()
