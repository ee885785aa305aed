"""Callbacks of training: functions of an `Event`."""

from __future__ import annotations

from math import isfinite, nan
from pathlib import Path
from typing import Any
from warnings import warn

from tqdm import tqdm

from cnf.training.history import Event, StepEvent


class ProgressBar:
    """A progress bar with loss, validation NLL and evaluations per solve, on terminals only.

    Example:
        >>> import torch, cnf
        >>> history = cnf.fit(
        ...     cnf.ffjord(2, hidden=(8,)), torch.randn(50, 2), steps=2, callbacks=[ProgressBar()]
        ... )
    """

    def __init__(self) -> None:
        bar_format = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
        self._bar: tqdm[Any] = tqdm(total=1.0, disable=None, bar_format=bar_format, leave=False)

    def __call__(self, event: Any) -> None:
        """Show a step."""
        self._bar.set_postfix_str(self.describe(event), refresh=False)
        self._bar.update(event.progress - self._bar.n)
        if event.progress == 1.0:
            self._bar.close()

    def describe(self, event: Any) -> str:
        """Return the text after the bar."""
        nll = event.records[-1].validation_nll if event.records else nan
        solved = f"  {event.nfe:.0f} evaluations" if event.nfe else ""
        return f"step {event.step}  loss {event.loss:.3f}  validation NLL {nll:.3f}{solved}"


class TensorBoard:
    """A writer of each step's loss and evaluations, and each validation's NLL, for TensorBoard.

    Args:
        folder: The argument of `tensorboard --logdir`.

    Raises:
        ValueError: TensorBoard is not installed.

    Example:
        >>> import tempfile, torch, cnf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     flow, callback = cnf.ffjord(2, hidden=(8,)), TensorBoard(folder)
        ...     history = cnf.fit(flow, torch.randn(50, 2), steps=2, callbacks=[callback])
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "Expected TensorBoard to be installed; got none. "
                "pip install 'cnf-flows[tensorboard]'"
            ) from None
        self._folder, self._open = str(folder), SummaryWriter
        self._writer: Any = None
        self._failed = False

    def __call__(self, event: StepEvent) -> None:
        """Write a step; stop writing, with a warning, where that fails."""
        if self._failed:
            return
        try:
            self._write(event)
        except OSError as error:
            self._failed = True
            warn(
                f"{self._folder} cannot be written to ({error.strerror}): training continues "
                "without curves for TensorBoard",
                stacklevel=2,
            )

    def _write(self, event: StepEvent) -> None:
        if self._writer is None:
            self._writer = self._open(self._folder)
        loss = f"loss/{event.stage.objective.name}" if isinstance(event, Event) else "loss"
        scalars = {loss: event.loss, "evaluations": event.nfe}
        if event.record is not None:
            scalars["validation NLL"] = event.record.validation_nll
        for tag, value in scalars.items():
            if isfinite(value):
                self._writer.add_scalar(tag, value, event.step)
        if event.record is not None:
            self._writer.flush()
        if event.progress == 1.0:
            self._writer.close()
