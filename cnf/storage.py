"""Saving and loading: safetensors and JSON, never pickle, so that loading executes no code.

A model is a folder with `model.safetensors` (weights, buffers, the base's tensors) and
`config.json` (what the flow is made of, its solver settings, the SHA-256 of the weights' file,
metadata, and a SHA-256 of all that).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cnf.flow.base_config import describe, rebuild
from cnf.flow import Flow
from cnf.layers import LAYERS, Layer, Standardize
from cnf.utils.random import seeded
from cnf.utils.serialization import read_whole, write_whole
from cnf.utils.sharing import share, shared_parts

FORMAT = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
SEAL = "seal"
FLOW = ("dtype", "base", "layers", "metadata")  # what a flow's configuration holds
SIZES = {"dim", "hidden", "context_dim", "time_features", "x_features", "harmonics"}
RENAMED_LAYERS = {"beside": "concatenate", "keep": "identity"}  # by their earlier names
RENAMED_SETTINGS = {"keep": "activation_bytes"}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def save(flow: Flow, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write `flow` to `folder`, which is made if need be.

    Both files are written under temporary names first and then renamed.

    Args:
        flow: A flow whose fields, layers and base can be made anew from their configuration.
        folder: Where to.
        metadata: What else to remember, ready for JSON; `load_config(folder)["metadata"]`.

    Raises:
        ValueError: A part of the flow cannot be made anew from its configuration.
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
    base, base_tensors = describe(flow.base, "base")
    config = {
        "dtype": str(flow.like.dtype).removeprefix("torch."),
        "base": base,
        "layers": [{"name": layer.name, **layer.config()} for layer in flow.layers],
        "context": None if flow.context is None else flow.context.config(),
        "shared": shared_parts(flow),
        "metadata": dict(metadata or {}),
    }
    write_model(folder, {**flow.state_dict(), **base_tensors}, config)


def write_model(
    folder: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Write a model's two files to `folder`, which is made if need be.

    Args:
        folder: Where to.
        tensors: Its weights.
        config: What it is made of, ready for JSON; the format, the weights' SHA-256 and its own
            are added.

    Raises:
        OSError: The folder cannot be written to.
    """
    # Copies: safetensors takes no tensors that share memory or lie in another order.
    weights = safetensors.torch.save(
        {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
    )
    sha256 = hashlib.sha256(weights).hexdigest()
    entries = {"format": FORMAT, "sha256": sha256, **config}
    text = json.dumps(sealed(entries), indent=2, allow_nan=False).encode()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole({folder / WEIGHTS: weights, folder / CONFIG: text})


def sealed(entries: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the SHA-256 of its other entries under `seal`, by which damage shows.

    Example:
        >>> config = sealed({"layers": []})
        >>> sealed(config) == config, sealed({**config, "layers": [1]}) == config
        (True, False)
    """
    others = {name: entry for name, entry in entries.items() if name != SEAL}
    text = json.dumps(others, sort_keys=True)
    return {**others, SEAL: hashlib.sha256(text.encode()).hexdigest()}


def read_model(folder: str | Path, wanted: Collection[str]) -> tuple[dict[str, Any], bytes]:
    """The configuration that `write_model` wrote to `folder`, and the weights as they stand there.

    Args:
        folder: Where they are.
        wanted: What the configuration is to hold.

    Raises:
        ValueError: They are not there, or damaged, or of another kind of model.
    """
    config = read_config(folder, wanted)
    path = Path(folder) / WEIGHTS
    try:
        weights = read_whole(path)
    except OSError as error:
        raise ValueError(f"Expected a model's weights in {path}; {error.strerror}") from None
    if hashlib.sha256(weights).hexdigest() != config["sha256"]:
        raise ValueError(
            f"Expected the weights that config.json was written with; the SHA-256 of {path} is "
            "another one, so the file is damaged or of another model. Restore or retrain it"
        )
    return config, weights


def load(folder: str | Path) -> Flow:
    """The flow that `save` wrote to `folder`, on the CPU and bit for bit.

    Raises:
        ValueError: The folder holds no model, or one that is damaged, of another program or of a
            newer version; the message says which.
    """
    config, weights = read_model(folder, FLOW)
    with rebuilding("a model", folder):
        _check_sizes(config["layers"], len(weights))
        tensors = safetensors.torch.load(weights)
        base = rebuild(config["base"], "base", tensors)
        with seeded(0):  # the first weights, drawn only to be replaced
            layers = [_layer(layer) for layer in config["layers"]]
        context = config.get("context")
        flow = Flow(base, layers, None if context is None else Standardize(**context))
        flow = flow.to(DTYPES[config["dtype"]])
        share(flow, config.get("shared", {}))
        flow.load_state_dict(
            {name: tensor for name, tensor in tensors.items() if not name.startswith("base.")}
        )
    return flow


def _check_sizes(entries: Any, most: int) -> None:
    """Refuse sizes beyond all that the weights can have, before memory is taken for them."""
    if isinstance(entries, dict):
        for name in SIZES & entries.keys():
            sizes = entries[name] if isinstance(entries[name], list) else [entries[name]]
            if any(isinstance(size, int | float) and size > most for size in sizes):
                raise ValueError(f"{name} {entries[name]}, beyond its {most} bytes of weights")
    if isinstance(entries, dict | list):
        for entry in entries.values() if isinstance(entries, dict) else entries:
            _check_sizes(entry, most)


@contextmanager
def rebuilding(what: str, folder: str | Path) -> Iterator[None]:
    """Have all that fails where a model is made anew, from what a folder holds, say so.

    Args:
        what: The model is, for people.
        folder: Where it was read.

    Raises:
        ValueError: It cannot be made.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"Expected {what} of cnf-flows in {folder}; {error} is missing or unknown"
        ) from None
    except (
        safetensors.SafetensorError,
        AttributeError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"Expected {what} of cnf-flows in {folder}; got: {reason}") from None


def load_config(folder: str | Path) -> dict[str, Any]:
    """What `config.json` in `folder` says, checked to be a flow's of this format.

    Raises:
        ValueError: There is no such file, or it is not a flow's configuration.
    """
    return read_config(folder, FLOW)


def read_config(folder: str | Path, wanted: Collection[str]) -> dict[str, Any]:
    """What `config.json` in `folder` says, checked to be of this format and to hold what is wanted.

    What was changed since it was written, by hand or by damage, is warned of.

    Raises:
        ValueError: There is no such file, or it is not such a configuration.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(read_whole(path).decode())
    except OSError as error:
        raise ValueError(
            f"Expected a folder written by train or cnf.save; {path}: {error.strerror}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected {path} to be JSON; {error}") from None
    missing = {"format", "sha256", *wanted}
    missing -= set(config) if isinstance(config, dict) else set()
    if missing:
        raise ValueError(f"Expected {path} to hold {', '.join(sorted(missing))}; missing")
    if config["format"] != FORMAT:
        raise ValueError(
            f"Expected a model of format {FORMAT} in {path}; got {config['format']!r}. "
            "Load it with the version of cnf-flows that wrote it"
        )
    checked: dict[str, Any] = config
    if SEAL in checked and checked != sealed(checked):  # folders of before have none
        warnings.warn(
            f"{path} is not as it was written: it was edited by hand, or is damaged. It is taken "
            "as it stands",
            stacklevel=2,
        )
    return checked


def _layer(config: Mapping[str, Any]) -> Layer:
    """Return the layer of a configuration, which may use the words of an earlier version."""
    entries = {RENAMED_SETTINGS.get(name, name): entry for name, entry in config.items()}
    entries.pop("divergence", None)  # which earlier models had
    name = entries.pop("name")
    name = RENAMED_LAYERS.get(name, name)
    if name not in LAYERS:
        raise ValueError(f"Expected a layer among {', '.join(LAYERS)}; got {name!r}")
    if "layers" in entries:
        entries["layers"] = [_layer(each) for each in entries["layers"]]
    return LAYERS[name](**entries)
