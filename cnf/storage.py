"""Storage of models as safetensors and JSON, never pickle, so that loading executes no code.

A model is a folder with `model.safetensors` (weights, buffers, the base's tensors) and
`config.json` (the configurations of base and layers, solver settings, metadata, the SHA-256 of the
weights' file, and a SHA-256 of all these entries).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cnf.flow import Flow
from cnf.flow.base_config import describe, rebuild
from cnf.layers import LAYERS, Layer, Standardize
from cnf.layers.context import CONTEXTS, ContextEncoder
from cnf.utils.random import seeded
from cnf.utils.registry import Registry, name_of
from cnf.utils.serialization import add_prefix, read_file, strip_prefix, write_atomic
from cnf.utils.sharing import restore_sharing, shared_parts

FORMAT = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CHECKSUM = "seal"  # the entry of config.json with the SHA-256 of all others
FLOW_ENTRIES = ("dtype", "base", "layers", "metadata")  # required in a flow's configuration
SIZE_ARGUMENTS = {
    *("dim", "hidden", "context_dim", "time_features", "x_features", "harmonics"),
    *("sizes", "continuous", "embedding", "shape"),  # of contexts
    "count",  # of explicit steps
}
RENAMED_LAYERS = {"beside": "concatenate", "keep": "identity"}  # by earlier names
RENAMED_SETTINGS = {"keep": "activation_bytes"}
BUILD_ERRORS = (AttributeError, RuntimeError, TypeError, ValueError)  # of wrong arguments
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class StorableModel(Protocol):
    """A model of another kind than a flow, which is entered in `MODELS`."""

    kind: ClassVar[str]
    """The name in `MODELS`."""

    def inner_flows(self) -> Mapping[str, Flow]:
        """Return the flows that are parts of it, by their names in its state dict."""
        ...

    def config(self) -> dict[str, Any]:
        """Return the configuration of the rest, ready for JSON."""
        ...

    @classmethod
    def of(cls, config: Mapping[str, Any], parts: Mapping[str, Flow]) -> Self:
        """Return a model of a configuration and parts, whose weights are loaded afterwards."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights, as `torch.nn.Module` does."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any:
        """Load the weights, as `torch.nn.Module` does."""
        ...


MODELS: Registry[type[StorableModel]] = Registry(
    {
        "mixture": "cnf.flow.mixture:FlowMixture",
        "rows": "cnf.tables.row_model:RowModel",
        "latent_ode": "cnf.series.latent_ode:LatentODE",
        "flow_process": "cnf.series.flow_process:FlowProcess",
    }
)
"""The kinds of models that can be saved besides flows."""


def save(
    flow: Flow | StorableModel, folder: str | Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Save a flow, or another model, to a folder, which is created where it is missing.

    Args:
        flow: A flow whose fields, layers and base can be rebuilt from their configuration, or a
            model of another kind in `MODELS`.
        folder: The folder to write to.
        metadata: Further entries to store, ready for JSON; `load_config(folder)["metadata"]`.

    Raises:
        ValueError: A part of the flow cannot be rebuilt from its configuration.
        OSError: The folder cannot be written to.

    Example:
        >>> import tempfile
        >>> from cnf.flow import ffjord
        >>> flow, x = ffjord(2), torch.zeros(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(flow, folder)
        ...     torch.equal(load(folder).log_prob(x), flow.log_prob(x))
        True
    """
    entries = {"metadata": dict(metadata or {})}
    if isinstance(flow, Flow):
        tensors, config = _flow_parts(flow)
    else:
        tensors, parts = flow.state_dict(), {}
        for name, part in flow.inner_flows().items():
            own, parts[name] = _flow_parts(part)
            tensors |= add_prefix(name, own)
        config = {"kind": flow.kind, **flow.config(), "parts": parts}
    write_model(folder, tensors, {**config, **entries})


def _flow_parts(flow: Flow) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a flow's tensors and configuration."""
    base, base_tensors = describe(flow.base, "base")
    config = {
        "dtype": str(flow.like.dtype).removeprefix("torch."),
        "base": base,
        "layers": [{"name": layer.name, **layer.config()} for layer in flow.layers],
        "context": _context_config(flow.context),
        "shared": shared_parts(flow),
    }
    return {**flow.state_dict(), **base_tensors}, config


def write_model(
    folder: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Write a model's two files to a folder, which is created where it is missing.

    Args:
        folder: The folder to write to.
        tensors: Weights of the model, by name.
        config: Its configuration, ready for JSON; the format and checksums are added.

    Raises:
        OSError: The folder cannot be written to.
    """
    weights = safetensors.torch.save(independent_copies(tensors))
    entries = {"format": FORMAT, "sha256": hashlib.sha256(weights).hexdigest(), **config}
    text = json.dumps(with_checksum(entries), indent=2, allow_nan=False).encode()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic({folder / WEIGHTS: weights, folder / CONFIG: text})


def independent_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU, as safetensors takes none that share memory."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def with_checksum(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the SHA-256 of its entries under `seal`, which reveals damage."""
    others = {name: entry for name, entry in entries.items() if name != CHECKSUM}
    text = json.dumps(others, sort_keys=True)
    return {**others, CHECKSUM: hashlib.sha256(text.encode()).hexdigest()}


def read_model(folder: str | Path, required: Collection[str]) -> tuple[dict[str, Any], bytes]:
    """Read the configuration, which must have some entries, and the bytes of the weights.

    Raises:
        ValueError: A file is missing, damaged, or of another kind of model.
    """
    config = load_config(folder, required)
    path = Path(folder) / WEIGHTS
    try:
        weights = read_file(path)
    except OSError as error:
        raise ValueError(
            f"Expected a model's weights in {path}; got: {error.strerror}. Restore it or retrain"
        ) from None
    if hashlib.sha256(weights).hexdigest() != config["sha256"]:
        raise ValueError(
            f"Expected the weights that config.json was written with; the SHA-256 of {path} is "
            "another one, so the file is damaged or of another model. Restore or retrain it"
        )
    return config, weights


def load(folder: str | Path) -> Flow | StorableModel:
    """Load the flow, or the other model, that `save` wrote to a folder, bit for bit, on the CPU.

    Raises:
        ValueError: The folder holds no model, or one that is damaged, of another program or of a
            newer version; the message says which.
    """
    config, weights = read_model(folder, ("metadata",))
    if "kind" not in config:
        return load_flow(folder)
    with reporting_load_errors("a model", folder):
        tensors = safetensors.torch.load(weights)
        parts = {
            name: _built_flow(part, strip_prefix(name, tensors), len(weights))
            for name, part in _parts_config(config).items()
        }
        with seeded(0):  # initial weights are replaced
            model = MODELS[config["kind"]].of(config, parts)
        bases = tuple(f"{name}.base." for name in parts)  # which are no part of a state dict
        model.load_state_dict(
            {name: each for name, each in tensors.items() if not name.startswith(bases)}
        )
    return model


def _parts_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configurations of a model's flows; earlier versions wrote at most one."""
    if "parts" in config:
        return dict(config["parts"])
    return {} if config["flow"] is None else {"flow": config["flow"]}


def load_flow(folder: str | Path) -> Flow:
    """Load a flow as `load` does.

    Raises:
        ValueError: As `load`, or the folder holds a model of another kind.
    """
    config, weights = read_model(folder, FLOW_ENTRIES)
    with reporting_load_errors("a model", folder):
        return _built_flow(config, safetensors.torch.load(weights), len(weights))


def _built_flow(config: Mapping[str, Any], tensors: dict[str, Tensor], limit: int) -> Flow:
    """Build a flow of its configuration and tensors, whose file has so many bytes."""
    _check_sizes([config["layers"], config.get("context")], limit)
    base = rebuild(config["base"], "base", tensors)
    with seeded(0):  # initial weights are replaced
        layers = [build_layer(layer) for layer in config["layers"]]
    flow = Flow(base, layers, _build_context(config.get("context")))
    flow = flow.to(DTYPES[config["dtype"]])
    restore_sharing(flow, config.get("shared", {}))
    flow.load_state_dict(
        {name: tensor for name, tensor in tensors.items() if not name.startswith("base.")}
    )
    return flow


def _check_sizes(entries: Any, weight_bytes: int) -> None:
    """Refuse sizes that exceed the weights' bytes, before memory is allocated for them."""
    if isinstance(entries, dict):
        for name in SIZE_ARGUMENTS & entries.keys():
            sizes = entries[name] if isinstance(entries[name], list) else [entries[name]]
            sizes = [size for size in sizes if isinstance(size, int | float)]
            sizes = [*sizes, prod(sizes)] if name == "shape" else sizes
            if any(size > weight_bytes for size in sizes):
                size = f"{name} {entries[name]}"
                raise ValueError(f"{size}, beyond its {weight_bytes} bytes of weights")
        entries = list(entries.values())
    if isinstance(entries, list):
        for entry in entries:
            _check_sizes(entry, weight_bytes)


@contextmanager
def reporting_load_errors(kind: str, folder: str | Path) -> Iterator[None]:
    """Report errors of rebuilding a model of some kind as ValueErrors that name its folder."""
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"Expected {kind} of cnf-flows in {folder}; {error} is missing or unknown"
        ) from None
    except (*BUILD_ERRORS, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"Expected {kind} of cnf-flows in {folder}; got: {reason}") from None


def load_config(folder: str | Path, required: Collection[str] = ("metadata",)) -> dict[str, Any]:
    """Read `config.json` in a folder, and check its format and required entries.

    Warns where it has changed since it was written, by hand or by damage.

    Raises:
        ValueError: There is no such file, or it is not such a configuration.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(read_file(path).decode())
    except OSError as error:
        raise ValueError(
            f"Expected a folder written by train or cnf.save; got {path}: {error.strerror}. "
            "Give the folder of a model"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"Expected {path} to be JSON; got: {error}. Restore the file or retrain"
        ) from None
    missing = {"format", "sha256", *required}
    missing -= set(config) if isinstance(config, dict) else set()
    if missing:
        raise ValueError(
            f"Expected {path} to hold {', '.join(sorted(missing))}; missing: give the folder of a "
            "model of this kind"
        )
    if config["format"] != FORMAT:
        raise ValueError(
            f"Expected a model of format {FORMAT} in {path}; got {config['format']!r}. "
            "Load it with the version of cnf-flows that wrote it"
        )
    checked: dict[str, Any] = config
    if CHECKSUM in checked and checked != with_checksum(checked):  # earlier versions wrote none
        warnings.warn(
            f"{path} has changed since it was written: it was edited by hand, or is damaged. It is "
            "used as it is",
            stacklevel=2,
        )
    return checked


def _context_config(context: Standardize | ContextEncoder | None) -> dict[str, Any] | None:
    """Return the configuration of a flow's context; an encoder's has its name in `CONTEXTS`."""
    if isinstance(context, ContextEncoder):
        name = name_of(type(context), CONTEXTS, "cnf.layers.context.CONTEXTS")
        return {"name": name, **context.config()}
    return None if context is None else context.config()


def _build_context(config: Mapping[str, Any] | None) -> Standardize | ContextEncoder | None:
    """Build a flow's context from its configuration, a standardisation where it has no name."""
    if config is None or "name" not in config:
        return None if config is None else Standardize(**config)
    entries = dict(config)
    return CONTEXTS[entries.pop("name")](**entries)


def build_layer(config: Mapping[str, Any]) -> Layer:
    """Build a layer from its configuration, which may use names of an earlier version."""
    entries = {RENAMED_SETTINGS.get(name, name): entry for name, entry in config.items()}
    entries.pop("divergence", None)  # an entry of earlier versions
    name = entries.pop("name")
    name = RENAMED_LAYERS.get(name, name)
    if name not in LAYERS:
        raise ValueError(f"Expected a layer among {', '.join(LAYERS)}; got {name!r}")
    if "layers" in entries:
        entries["layers"] = [build_layer(layer) for layer in entries["layers"]]
    return LAYERS[name](**entries)
