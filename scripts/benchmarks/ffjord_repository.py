"""FFJORD's own code, imported unmodified from a copy of its repository.

Models are built and scored as by train_toy.py. The repository was written for older libraries: the
package six, of which it takes `iteritems`, is supplied where it is not installed, and warnings of
PyTorch about its tensors are not shown. Nothing else is changed.

Source: https://github.com/rtqichen/ffjord, train_toy.py and train_misc.py; Grathwohl et al. (2019).
"""

from __future__ import annotations

import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cnf.utils.random import seeded

if TYPE_CHECKING:
    from cnf.scripts.benchmarks.contenders import BenchmarkNetwork, Ours

OWN_NAME, COPIED_NAME = "FFJORD's own code", "FFJORD's own, copied"  # on its weights, on cnf's
TIME_LENGTH = 0.5  # the default of train_toy.py
TOP_LEVEL_NAMES = ("lib", "train_misc")  # modules of the repository that the import leaves
# The defaults of train_toy.py, except for tolerances, sizes and the activation.
SETTINGS: dict[str, Any] = {
    "layer_type": "concatsquash",
    "divergence_fn": "brute_force",
    "residual": False,
    "rademacher": False,
    "time_length": TIME_LENGTH,
    "train_T": True,
    "num_blocks": 1,
    "batch_norm": False,
    "solver": "dopri5",
    "step_size": None,
    "test_solver": None,
    "test_atol": None,
    "test_rtol": None,
}


class FFJORDRepository:
    """A flow of FFJORD's own `CNF`, with log p by the loss of train_toy.py.

    Args:
        folder: The copy of the repository.
        network: The sizes, the activation and the tolerances.
        ours: A flow of the same sizes whose weights are copied, from its time 1 to T = 0.5. FFJORD
            gates its last layer too: with weights of zero that gate is 1/2 at all times, and the
            layer twice as large. Time runs from the base to the data there, so that the solve's
            limits are interchanged (`reverse=True`); default weights when None.

    Raises:
        ValueError: The folder's modules cannot be imported.
    """

    def __init__(self, folder: Path, network: BenchmarkNetwork, ours: Ours | None = None) -> None:
        self.name = OWN_NAME if ours is None else COPIED_NAME
        self.rtol, self.atol, self.reverse = network.rtol, network.atol, ours is not None
        self._misc = import_repository(folder)
        sizes = {"dims": "-".join(map(str, network.hidden)), "nonlinearity": network.activation}
        settings = Namespace(**SETTINGS, **sizes, **network.tolerances)
        with seeded(0):
            self.module = self._misc.build_model_tabular(settings, network.dim)
        if ours is not None:
            self._copy_weights(ours)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p of rows, as in train_toy.py's `compute_loss`."""
        z, change = self.module(x, torch.zeros(x.shape[0], 1).to(x), reverse=self.reverse)
        log_prob: Tensor = self._misc.standard_normal_logprob(z).sum(1, keepdim=True) - change
        return log_prob.squeeze(1)

    @property
    def evaluations(self) -> int:
        return int(self._misc.count_nfe(self.module))

    @torch.no_grad()
    def _copy_weights(self, ours: Ours) -> None:
        """Copy the weights of v = f(t, x) to those of dx/ds = f(s / T, x) / T."""
        layers = self.module.chain[0].odefunc.diffeq.layers
        for theirs, own in zip(layers, [*ours.field.layers, ours.field.last], strict=True):
            assert own.shift is not None
            theirs._layer.load_state_dict(own.linear.state_dict())
            theirs._hyper_bias.weight.copy_(own.shift.weight / TIME_LENGTH)
            if own.gate:
                theirs._hyper_gate.weight.copy_(own.gate.weight / TIME_LENGTH)
                theirs._hyper_gate.bias.copy_(own.gate.bias)
        last = layers[-1]
        last._hyper_bias.weight.div_(TIME_LENGTH)
        for factor, part in ((0.0, last._hyper_gate), (2 / TIME_LENGTH, last._layer)):
            for parameter in part.parameters():
                parameter.mul_(factor)


def import_repository(folder: Path) -> ModuleType:
    """Import train_misc.py of a copy of the repository, and leave no other module changed.

    Raises:
        ValueError: An import fails.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module=r"lib\.layers")
    with _isolated(folder):
        try:
            return import_module("train_misc")
        except ImportError as error:
            raise ValueError(
                f"Expected --ffjord to hold FFJORD's repository; got {folder}, where train_misc.py "
                f"cannot be imported: {error}"
            ) from None


@contextmanager
def _isolated(folder: Path) -> Iterator[None]:
    """Find the repository's modules first within the context, and six; forget them after it."""
    kept, path = dict(sys.modules), sys.path[:]
    for name in _names_of_repository():
        del sys.modules[name]
    if find_spec("six") is None:
        six = sys.modules["six"] = ModuleType("six")
        vars(six)["iteritems"] = lambda mapping: iter(mapping.items())
    sys.path.insert(0, str(folder.absolute()))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in (*_names_of_repository(), "six"):
            sys.modules.pop(name, None)
        sys.modules.update({name: kept[name] for name in kept.keys() - sys.modules.keys()})


def _names_of_repository() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in TOP_LEVEL_NAMES]
