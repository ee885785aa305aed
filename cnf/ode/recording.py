"""What a solve keeps of itself: accepted steps, and their ways back while there is room."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cnf.ode.dynamics import Evaluation, StagedDynamics
from cnf.ode.pullback import Recorder, Trail
from cnf.ode.record import Kept, Scale, Step, storages
from cnf.ode.step import Taken

HEAP_BLOCK = 2**25 - 2**16  # bytes; a little less than the largest that glibc has in its heap


@cache
def hold_freed_memory() -> None:
    """Have freed memory held for the next solve, not given back and asked for again, page by page.

    What a solve keeps is freed as a whole. The C library gives the end of its heap back to the
    system when that is free and longer than twice the largest block freed so far, up to 64 MiB; it
    has to have seen one. The block takes no memory, since nothing is written to it. On a CPU up to
    a quarter of the forward time of a toy network's training step with 512 rows went into this.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc, which adjust themselves.
    """
    torch.empty(HEAP_BLOCK, dtype=torch.uint8, device="cpu")


class Recording:
    """The accepted steps of a solve, with their ways back while there is room for them.

    Args:
        dynamics: The dynamics.
        args: Their arguments, whose storages do not count.
        activation_bytes: Bytes for ways back.
        by_hand: Whether those are the adjoint of the step, made of its evaluations' own, and not
            graphs of the whole step.

    Attributes:
        steps: The accepted steps, in order.
    """

    def __init__(
        self, dynamics: StagedDynamics, args: Any, activation_bytes: int, *, by_hand: bool
    ) -> None:
        self.dynamics, self.by_hand, self.room = dynamics, by_hand, activation_bytes
        self.left_out = storages(args) if activation_bytes else frozenset()
        if activation_bytes:
            hold_freed_memory()
        self.steps: list[Step] = []
        self.scale = Scale(self.left_out)
        self.recorder: Recorder | None = None  # of the step being tried
        self.first: Evaluation | None = None  # that of the slope at hand

    @property
    def graphs(self) -> bool:
        """Whether the next step is to leave a graph."""
        return self.room > 0 and not self.by_hand

    @property
    def trails(self) -> bool:
        """Whether its evaluations are to leave their ways back."""
        return self.room > 0 and self.by_hand

    def weigh(self) -> Scale:
        """Weighs, while it is open, what the next step keeps."""
        self.scale = Scale(self.left_out)
        return self.scale

    def evaluations(self, times: Tensor, args: Any) -> Recorder:
        """The dynamics at times, evaluated so that each evaluation can be pulled back."""
        self.recorder = Recorder(self.dynamics.linearize(times, args))
        return self.recorder

    def begin(self) -> None:
        """Keep the evaluation just made as that of the first slope."""
        assert self.recorder is not None
        self.first = self.recorder.evaluations[0]
        self.room -= self.scale.bytes + self.recorder.linearization.bytes

    def add(self, step: Step, taken: Taken, rows: Tensor | None, values: list[Tensor]) -> None:
        """Keep an accepted step, of some of its rows (None: all), with the outputs it passes."""
        if self.trails:
            step = self._with_trail(step, taken)
        elif self.graphs:
            self.room -= self.scale.bytes
            if self.room >= 0:
                ends = [taken.y1 if rows is None else taken.y1[rows], *values]
                step = replace(step, kept=Kept(taken.y0, ends, rows))
        self.steps.append(step)

    def _with_trail(self, step: Step, taken: Taken) -> Step:
        """The step with the ways back of its evaluations, the last of which is the next first."""
        assert self.recorder is not None
        assert self.first is not None
        assert taken.stages.size is not None
        own, evaluations = self.recorder.linearization, self.recorder.evaluations
        self.room -= self.scale.bytes + own.bytes
        count = taken.stages.tableau.solution_stages - 1
        trail = Trail(self.first, tuple(evaluations[:count]), taken.stages.size, own)
        self.first = evaluations[-1] if evaluations else None
        return replace(step, trail=trail) if self.room >= 0 else step
