"""The run of a flow of explicit steps, whose validations refuse weights that fold."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from torch import Tensor

from cnf.flow.folds import FoldMass, fold_mass
from cnf.flow.proposals import DRAWS, MORE, Proposal, adaptive, propose
from cnf.ode import SolveError
from cnf.training.flow_run import FlowRun, mean_nll
from cnf.training.objectives import FlowMatching
from cnf.training.run import TrainingError
from cnf.utils.serialization import add_prefix, strip_prefix

PROPOSAL = "proposal"  # the prefix of its tensors in a state


class UnfoldedRun(FlowRun):
    """A run of a flow of explicit steps, whose validations refuse weights that fold.

    Flow matching knows of no steps, and is validated by an adaptive solve of the same field.

    Args:
        proposal: Draws by which folds are weighed; when None, of the flow's own field once the
            explicit steps are trained.
        options: Those of `FlowRun`.
    """

    def __init__(self, *options: Any, proposal: Proposal | None = None) -> None:
        super().__init__(*options)
        self.proposal = proposal
        self.folds: FoldMass | None = None  # of the last weights that were weighed

    def validate(self) -> float:
        """Return the NLL of held-out rows; infinite where it is the best, but of weights that fold.

        Draws serve for all validations, until too few of them count.
        """
        if isinstance(self.stage.objective, FlowMatching):
            self.learner.copy_statistics()
            return mean_nll(adaptive(self.learner.validated).eval(), self.held_out)
        nll = super().validate()
        return nll if not nll < self.progress.best_nll or self._is_unfolded() else inf

    def begin_stage(self) -> None:
        """Begin a stage, whose explicit steps are not compared with the adaptive solves before."""
        super().begin_stage()
        self.progress.best_nll = inf

    def tensors(self) -> dict[str, Tensor]:
        found = super().tensors()
        if self.proposal is None:
            return found
        parts = {"x": self.proposal.x, "log_q": self.proposal.log_q}
        if self.proposal.context is not None:
            parts["context"] = self.proposal.context
        return found | add_prefix(PROPOSAL, parts)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        super().restore(tensors)
        if parts := strip_prefix(PROPOSAL, tensors):
            self.proposal = Proposal(parts["x"], parts.get("context"), parts["log_q"])

    def finish(self) -> Mapping[str, Tensor]:
        """Return the best weights.

        Raises:
            TrainingError: All weights that were validated fold.
        """
        progress = self.progress
        if progress.best_nll == inf and progress.reason == "interrupted":
            self._validate()  # nothing of this stage was
        if progress.best_nll == inf and not progress.failures:
            got = "held-out rows where a step folds" if self.folds is None else str(self.folds)
            raise TrainingError(
                f"Expected weights without folds after {progress.step} steps; got {got} in "
                "every validation: take more steps or a method of more stages, or train for longer"
            )
        return super().finish()

    def _is_unfolded(self) -> bool:
        """Return whether the validated weights have a known fold mass that is small enough."""
        flow, given = self.learner.validated, self.held_out.context
        for draws in (0, DRAWS, MORE * DRAWS):
            if draws:
                try:
                    self.proposal = propose(flow, draws, given)
                except SolveError:  # of weights that no solver can follow
                    return False
            if self.proposal is not None:
                self.folds = fold_mass(flow, proposal=self.proposal)
                if self.folds.known:
                    break
        return self.folds is not None and self.folds.accepted
