"""Flows as nessai's samplers train, draw from and score them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from cnf.adapters.hosts import check_host
from cnf.flow import Flow, ffjord

check_host("nessai")  # before the import, whose own error names no version

from nessai.flows.base import BaseFlow  # noqa: E402

PROPOSAL_TOLERANCE = 1e-3  # of log q in nats: rejection sampling is off by a thousandth


class NessaiFlow(BaseFlow):  # type: ignore[misc]  # a class of a library without types
    """A flow between data and latent points in nessai's directions and signs.

        forward: x → (z, log |det ∂z/∂x|),    inverse: z → (x, log |det ∂x/∂z|)

    Where autograd records, `log_prob` is that of `Flow.for_training`; everything else is computed
    with the flow's own solver settings, draws and their log q by one solve.

    Args:
        flow: A flow over real numbers with a standard normal base, which nessai assumes where it
            draws within a radius of the latent space.

    Raises:
        ValueError: The base is not a standard normal of as many columns as the data, or the flow
            draws noise.
        SolveError: From any method: a solve failed.

    Shapes: x and z (rows, dim), a context (rows, context_dim), log-densities (rows,).

    Source: Williams et al. (2021), Nested sampling with normalizing flows for gravitational-wave
    inference.

    Example:
        >>> import cnf
        >>> flow = NessaiFlow(cnf.ffjord(2))
        >>> x, log_prob = flow.sample_and_log_prob(5)
        >>> torch.allclose(flow.log_prob(x), log_prob, atol=1e-2)
        True
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        _check(flow)
        self.flow = flow
        self._initial = {name: each.clone() for name, each in flow.state_dict().items()}

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        pulled = self.flow.pull(x, context)
        return pulled.value, pulled.log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        pushed = self.flow.push(z, context)
        return pushed.value, pushed.log_det

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        flow = self.flow.for_training() if torch.is_grad_enabled() else self.flow
        return flow.log_prob(x, context)

    def forward_and_log_prob(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        z, log_det = self.forward(x, context)
        return z, self.base_distribution_log_prob(z) + log_det

    def sample(self, n: int, context: Tensor | None = None) -> Tensor:
        return self.flow.transport(self.sample_latent_distribution(n), context)

    def sample_and_log_prob(self, n: int, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = self.sample_latent_distribution(n)
        x, log_det = self.inverse(z, context)
        return x, self.base_distribution_log_prob(z) - log_det

    def sample_latent_distribution(self, n: int, context: Tensor | None = None) -> Tensor:
        return self.flow.base.sample(torch.Size([n]))

    def base_distribution_log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.flow.base.log_prob(z)

    def freeze_transform(self) -> None:
        self.requires_grad_(False)

    def unfreeze_transform(self) -> None:
        self.requires_grad_(True)

    def reset_parameters(self) -> None:
        """Return to the weights that the flow had at first, which nessai calls a reset.

        nessai resets modules from the innermost out, so that this is its last word on all of them.
        """
        self.flow.load_state_dict(self._initial)


def build_flow(
    n_inputs: int, n_neurons: int, n_blocks: int, n_layers: int, **options: Any
) -> NessaiFlow:
    """Return `cnf.ffjord` for nessai: its `flow_config` names this function as the `"flow"`.

    It starts as a standard normal distribution.

    nessai hands on the activations `"tanh"` and `"silu"` alone, and refuses other names itself:
    with `functools.partial(build_flow, activation="softplus")` as the `"flow"` it sees none.

    Args:
        n_inputs: The number of sampled parameters, which nessai sets.
        n_neurons: Width of the fields' hidden layers.
        n_blocks: The number of CNF layers.
        n_layers: The number of hidden layers of each field.
        options: Other entries of `flow_config`: arguments of `cnf.ffjord`, with `rtol` and `atol`
            of 1e-3 when not given, and the activation by its name or, as from nessai, a function.

    Raises:
        ValueError: A number or an option is out of range.

    Example:
        >>> flow = build_flow(3, n_neurons=16, n_blocks=1, n_layers=2, activation="silu")
        >>> flow.flow.dim
        3
    """
    if n_layers < 1:
        raise ValueError(f"Expected n_layers of at least 1; got {n_layers}")
    activation = options.get("activation", "tanh")
    options["activation"] = getattr(activation, "__name__", activation)
    options = {"rtol": PROPOSAL_TOLERANCE, "atol": PROPOSAL_TOLERANCE} | options
    return NessaiFlow(ffjord(n_inputs, (n_neurons,) * n_layers, blocks=n_blocks, **options))


def sampler_options(
    flow: dict[str, Any] | None = None, training: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the arguments of nessai's `FlowSampler` that make it sample by `build_flow`.

    One CNF layer with two hidden layers of 32, trained for at most 200 epochs at a learning rate of
    5e-3 each time: nessai trains it further whenever it runs out of points.

    Args:
        flow: Entries of nessai's `flow_config` that differ.
        training: Entries of nessai's `training_config` that differ.

    Returns:
        `flow_config` and `training_config`, new at each call, since nessai writes into them.

    Example:
        >>> options = sampler_options(flow={"n_neurons": 64})
        >>> options["flow_config"]["n_neurons"], options["training_config"]["max_epochs"]
        (64, 200)
    """
    flow_config = {"flow": build_flow, "n_neurons": 32, "n_blocks": 1, "n_layers": 2}
    training_config = {"lr": 5e-3, "max_epochs": 200}
    return {
        "flow_config": flow_config | (flow or {}),
        "training_config": training_config | (training or {}),
    }


def _check(flow: Flow) -> None:
    """Refuse a flow that nessai cannot draw from within a radius of the latent space."""
    if flow.noisy or flow.circular:
        raise ValueError(
            "Expected a flow over real numbers for nessai; got one that draws noise or has "
            "angles: leave out such columns"
        )
    if not _standard_normal(flow.base) or flow.base.event_shape != (flow.dim,):
        raise ValueError(
            f"Expected a standard normal base of {flow.dim} columns for nessai; got {flow.base}: "
            "make the flow by cnf.ffjord"
        )


def _standard_normal(base: Distribution) -> bool:
    normal = isinstance(base, Independent) and isinstance(base.base_dist, Normal)
    return normal and bool((base.mean == 0).all() and (base.stddev == 1).all())
