"""The periodic toy by latent_ode's own code, imported unmodified from a copy of its repository.

Model, optimizer, learning rates and weights of the KL divergence are those of run_models.py with
`-n 1000 -s 50 -l 10 --dataset periodic --latent-ode --noise-weight 0.01`, the first in its README.
Seconds are of the process, so that others on the machine take none of the budget.

Source: https://github.com/YuliaRubanova/latent_ode; Rubanova, Chen and Duvenaud (2019).
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

LEARNING_RATE, DECAY = 1e-2, 0.999
BATCH, DRAWS, LATENTS = 50, 3, 10
KL_EPOCHS = 10  # before the KL divergence counts
SETTINGS: dict[str, Any] = {
    "latents": LATENTS,
    "z0_encoder": "odernn",
    "rec_dims": 20,
    "rec_layers": 1,
    "gen_layers": 1,
    "units": 100,
    "gru_units": 100,
    "poisson": False,
    "classif": False,
    "linear_classif": False,
    "dataset": "periodic",
}
OBSERVED_STD = 0.01


class Fit:
    """A model in training on series at common times.

    Args:
        folder: The copy of the repository.
        times: The times, shape (T,).
        train: Training series, shape (n, T).
        shown: The number of times at which a series is shown to the encoder.
    """

    def __init__(self, folder: Path, times: Tensor, train: Tensor, shown: int) -> None:
        sys.path.insert(0, str(folder.absolute()))
        create = import_module("lib.create_latent_ode_model").create_LatentODE_model
        prior = Normal(torch.tensor([0.0]), torch.tensor([1.0]))
        settings, device = argparse.Namespace(**SETTINGS), torch.device("cpu")
        noise = torch.tensor([OBSERVED_STD])
        self.model = create(settings, 1, prior, noise, device)
        self.times, self.train, self.shown = times, train, shown
        self.optimizer = torch.optim.Adamax(self.model.parameters(), lr=LEARNING_RATE)
        self.steps, self.epoch = 0, -(-len(train) // min(BATCH, len(train)))

    def step(self) -> None:
        """Take an optimizer step on the next batch."""
        place = self.steps % self.epoch
        self.steps += 1
        x = self.train[place * BATCH : (place + 1) * BATCH]
        for group in self.optimizer.param_groups:
            group["lr"] = max(group["lr"] * DECAY, LEARNING_RATE / 10)
        weight = 1 - 0.99 ** max(0, self.steps // self.epoch - KL_EPOCHS)
        chosen = torch.rand(x.shape).argsort(1) < self.shown
        self.optimizer.zero_grad()
        found = self.model.compute_all_losses(
            self._batch(x, chosen), n_traj_samples=DRAWS, kl_coef=weight
        )
        found["loss"].backward()
        self.optimizer.step()

    @torch.no_grad()
    def predict(self, x: Tensor, shown: Tensor) -> Tensor:
        """Return the mean of draws at all times, (n, T), from the entries of a mask (n, T)."""
        batch = self._batch(x, shown)
        drawn, _ = self.model.get_reconstruction(
            batch["tp_to_predict"],
            batch["observed_data"],
            batch["observed_tp"],
            mask=batch["observed_mask"],
            n_traj_samples=DRAWS,
            mode="interp",
        )
        mean: Tensor = drawn.mean(0)[..., 0]
        return mean

    def _batch(self, x: Tensor, shown: Tensor) -> dict[str, Any]:
        """Return series with the shown entries, as `split_and_subsample_batch` makes them."""
        data, mask = x[..., None], shown[..., None].float()
        some = shown.any(0)  # times without an entry are left out
        return {
            "observed_data": (data * mask)[:, some],
            "observed_tp": self.times[some],
            "observed_mask": mask[:, some],
            "data_to_predict": data,
            "tp_to_predict": self.times,
            "mask_predicted_data": None,
            "labels": None,
            "mode": "interp",
        }


def main() -> None:
    """Train for a time, and write predictions of the test series and the number of epochs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)  # of arrays times, train, test and shown
    parser.add_argument("out", type=Path)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--budget", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    with np.load(given.file) as arrays:
        found = {name: torch.from_numpy(array) for name, array in arrays.items()}
    times, train, test = (found[name].float() for name in ("times", "train", "test"))
    fit = Fit(given.repository, times, train, int(found["shown"].sum(1).max()))
    begin = process_time()
    while process_time() - begin < given.budget:
        fit.step()
    seconds = process_time() - begin
    mean = fit.predict(test, found["shown"])
    np.savez(given.out, mean=mean.numpy(), epochs=fit.steps / fit.epoch, seconds=seconds)


if __name__ == "__main__":
    main()
