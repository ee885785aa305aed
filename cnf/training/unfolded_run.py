"""The run of a flow of explicit steps, whose validations refuse weights that fold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from torch import Tensor

from cnf.flow import Flow
from cnf.flow.folds import FoldMass, fold_mass
from cnf.flow.proposals import DRAWS, MORE, Proposal, adaptive, propose
from cnf.ode import SolveError
from cnf.training.flow_run import FlowRun, mean_nll
from cnf.training.objectives import FlowMatching
from cnf.training.run import TrainingError
from cnf.utils.distributed import mean
from cnf.utils.serialization import add_prefix, strip_prefix

PROPOSAL = "proposal"  # the prefix of its tensors in a state
# Of a distillation's time: its first weights are so far from the teacher's that weighing their
# folds takes fifteen times as long as later, and a single validation after it may find a fold.
DISTILLED_SHARE = 0.2


class UnfoldedRun(FlowRun):
    """A run of a flow of explicit steps, whose validations refuse weights that fold.

    Flow matching knows of no steps, and is validated by an adaptive solve of the same field.

    Args:
        teacher: The flow that the steps are distilled from, by whose draws folds are weighed where
            these are worth enough; else, and where None, by those of `propose` for the steps.
        options: Those of `FlowRun`.
    """

    def __init__(self, *options: Any, teacher: Flow | None = None) -> None:
        super().__init__(*options)
        self.teacher = teacher
        if teacher is not None:
            self.validation_share = DISTILLED_SHARE
        self.proposal: Proposal | None = None  # of the steps, from when they were last too few
        self._of_teacher: dict[int, Proposal] = {}
        self.folds: FoldMass | None = None  # of the last weights that were weighed

    @property
    def matches(self) -> bool:
        """Whether the stage is one of flow matching."""
        return isinstance(self.stage.objective, FlowMatching)

    def validate(self) -> float:
        """Return the NLL of held-out rows; infinite where it is the best, but of weights that fold.

        Draws serve for all validations, until too few of them count.
        """
        if self.matches:
            self.learner.copy_statistics()
            return mean_nll(adaptive(self.learner.validated).eval(), self.held_out)
        return self._nll_of_steps()

    def begin_stage(self) -> None:
        """Begin a stage, whose explicit steps are not compared with the adaptive solves before."""
        self.progress.best_nll = inf
        super().begin_stage()

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
            parts = {name: tensor.to(self.like.device) for name, tensor in parts.items()}
            self.proposal = Proposal(parts["x"], parts.get("context"), parts["log_q"])

    def finish(self) -> Mapping[str, Tensor]:
        """Return the best weights.

        Raises:
            TrainingError: All weights that were validated fold.
        """
        progress = self.progress
        if self.matches and progress.records:  # the best weights by an adaptive solve
            self.learner.ema.load_state_dict(self.best)
        if self.matches or (progress.best_nll == inf and progress.reason == "interrupted"):
            progress.best_nll = inf
            progress.best_nll = self._nll_of_steps()
            self.remember()
        if progress.best_nll == inf and not progress.failures:
            got = "a fold, or a failed solve," if self.folds is None else str(self.folds)
            raise TrainingError(
                f"Expected weights without folds after {progress.step} steps; got {got} in "
                "every validation: take more steps or a method of more stages, train for longer, "
                "or by a solver (explicit_steps 0)"
            )
        return super().finish()

    def _nll_of_steps(self) -> float:
        """Return the NLL by explicit steps; infinite where it is the best, but of a map that folds.

        All processes take the verdict of the strictest.
        """
        nll = super().validate()
        if not nll < self.progress.best_nll:
            return nll
        (accepted,) = mean([float(self._is_unfolded())], self.like)
        return nll if accepted == 1.0 else inf

    def _is_unfolded(self) -> bool:
        """Return whether the validated weights have a known fold mass that is small enough."""
        flow = self.learner.validated
        try:
            for proposal in self._proposals(flow):
                self.folds = fold_mass(flow, proposal=proposal)
                if self.folds.known and self.folds.covered:
                    break
        except SolveError:  # of weights that no solver can follow
            return False
        return self.folds is not None and self.folds.accepted

    def _proposals(self, flow: Flow) -> Iterator[Proposal]:
        """Yield draws to weigh folds by, each where those before are not worth enough."""
        given = self.held_out.context
        if self.teacher is not None:
            for draws in (DRAWS, MORE * DRAWS):
                if draws not in self._of_teacher:
                    self._of_teacher[draws] = propose(self.teacher, draws, given)
                yield self._of_teacher[draws]
        if self.proposal is not None:
            yield self.proposal
        for draws in (DRAWS, MORE * DRAWS):
            self.proposal = propose(flow, draws, given)
            yield self.proposal
