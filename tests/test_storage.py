"""Saved and loaded to the last bit; damage and foreign files are found, nothing is executed."""

import json
import os

import pytest
import safetensors.torch
import torch
from children import start, wait
from helpers import seeded_draw
from torch import distributions as dist
from torch import nn

import cnf
from cnf import storage
from cnf.adapters.simulation_flow import simulation_flow
from cnf.fields import ConcatSquash
from cnf.utils import serialization

ZEROS, ONES = torch.zeros(2), torch.ones(2)
BASES = [
    dist.Independent(dist.Normal(ZEROS, ONES), 1),
    dist.Independent(dist.Laplace(ZEROS, ONES), 1),
    dist.Independent(dist.StudentT(3 * ONES), 1),
    dist.Independent(dist.Beta(ONES, ONES), 1),
    dist.MultivariateNormal(ZEROS, torch.tensor([[2.0, 0.3], [0.3, 1.0]])),
    dist.LowRankMultivariateNormal(ZEROS, torch.ones(2, 1), ONES),
    dist.MixtureSameFamily(
        dist.Categorical(logits=torch.tensor([0.1, 0.7])),
        dist.Independent(dist.Normal(torch.randn(2, 2), torch.ones(2, 2)), 1),
    ),
    dist.Dirichlet(ONES),
    dist.Independent(dist.LogNormal(ZEROS, ONES), 1),
]


@pytest.fixture
def flow():
    flow = cnf.ffjord(2, hidden=(5, 4, 3), activation="gelu", blocks=2, zero_last=False, rtol=1e-4)
    flow.layers[-1].fit(torch.randn(30, 2) * 3 + 1)
    return flow


@pytest.fixture
def folder(flow, tmp_path):
    cnf.save(flow, tmp_path / "model", {"note": "ours"})
    return tmp_path / "model"


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(storage.with_checksum(config)))


def sharing_by_hand(shared):
    def change(config):
        config["layers"][1]["field"].update(hidden=[5, 4, 2])
        config.update(shared=shared)

    return change


def refused(folder, message):
    with pytest.raises(ValueError, match=message):
        cnf.load(folder)


def score(folder, file):
    """Write the log-densities that another process computes."""
    torch.save(cnf.load(folder).log_prob(torch.load(file)).detach(), file)


def test_the_same_log_prob_to_the_last_bit(flow, folder, tmp_path):
    """In another process too."""
    loaded, x, file = cnf.load(folder), torch.randn(20, 2), tmp_path / "rows.pt"
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))
    assert loaded.layers[0].settings == flow.layers[0].settings
    assert storage.load_config(folder)["metadata"] == {"note": "ours"}
    torch.save(x, file)
    assert wait(start(score, folder, file)) == [0]
    assert torch.equal(torch.load(file), flow.log_prob(x))


@pytest.mark.parametrize("base", BASES, ids=lambda base: type(base).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bases_come_back(base, dtype, tmp_path):
    flow = cnf.Flow(base, [cnf.Standardize(2)]).to(dtype)
    cnf.save(flow, tmp_path)
    loaded = cnf.load(tmp_path)
    x = flow.base.sample((5,))
    assert x.dtype == dtype
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))
    assert torch.equal(seeded_draw(loaded.base, (3,)), seeded_draw(flow.base, (3,)))


def test_saving_again_replaces_the_model_alone_and_a_write_that_fails_nothing(
    flow, folder, monkeypatch
):
    def changed():
        with torch.no_grad():
            return next(flow.parameters()).add_(1.0).clone()

    def full(*_):
        raise OSError(28, "No space left on device")

    saved = changed()
    cnf.save(flow, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(next(cnf.load(folder).parameters()), saved)
    monkeypatch.setattr(serialization.os, "fsync", full)
    changed()
    with pytest.raises(OSError, match="No space"):
        cnf.save(flow, folder)
    assert torch.equal(next(cnf.load(folder).parameters()), saved)


@pytest.mark.parametrize(
    ("bit", "length"), [(0, None), (100, None), (None, 0), (None, 7), (None, -1)]
)
def test_damaged_weights_are_found(folder, bit, length):
    """One byte is another one, or the file is shorter."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    if bit is not None:
        content[bit] ^= 1
    path.write_bytes(content[:length])
    refused(folder, "SHA-256 of .* is another one")


@pytest.mark.parametrize("kind", ["whole base", "foreign"])
def test_foreign_weights_with_the_right_checksum_are_found(kind, folder):
    tensors, message = {"weight": torch.zeros(3)}, "Expected a model of cnf-flows in"
    if kind == "whole base":
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        name = next(name for name in tensors if name.startswith("base."))
        tensors, message = {**tensors, name: tensors[name].long()}, f"real numbers for {name}; got"
    weights = safetensors.torch.save(tensors)
    (folder / "model.safetensors").write_bytes(weights)
    edit(folder, lambda config: config.update(sha256=storage.hashlib.sha256(weights).hexdigest()))
    refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=2), "format 1 in .*; got 2"),
        (lambda c: c.pop("layers"), "to hold layers; missing"),
        (lambda c: c["layers"][0].update(name="os.system"), "layer among .*got 'os.system'"),
        (lambda c: c["layers"][0]["field"].update(name="eval"), "field among .*; got 'eval'"),
        (lambda c: c["layers"][0].update(rtol=-1), "rtol"),
        (lambda c: c["layers"][0].update(bogus=1), "got bogus"),
        (lambda c: c["layers"].pop(0), "Expected a model"),
        (lambda c: c["layers"][0].pop("field"), "Expected a model"),
        (lambda c: c["base"].update({"class": "kl_divergence"}), "base of torch.distributions"),
        (lambda c: c["base"].update({"class": "Transform"}), "base of torch.distributions"),
        (lambda c: c["base"].pop("parts"), "Expected a model"),
        (lambda c: c.update(dtype="system"), "Expected a model"),
        (lambda c: c.update(layers=3), "Expected a model"),
        # Sizes beyond the weights, before memory is taken.
        (lambda c: c["layers"][0]["field"].update(hidden=[10**12]), "hidden .10{12}., beyond its"),
        (sharing_by_hand({"layers.1": "layers.0"}), "layers.0 and layers.1 of one type and shape"),
        (sharing_by_hand({"layers.0.field": "layers.2"}), "of one type and shape"),
        (sharing_by_hand({"layers.0.name": "layers.0.name"}), "a module or a tensor to share"),
        *(
            (sharing_by_hand(shared), "Expected a model")
            for shared in ({"layers.0.field": "layers.9"}, {"layers.0": 3}, [])
        ),
    ],
)
def test_a_configuration_edited_by_hand(folder, change, message):
    edit(folder, change)
    refused(folder, message)


@pytest.mark.parametrize("towards", ["base", "data"])
def test_explicit_steps_come_back_with_what_they_learnt(flow, towards, tmp_path):
    steps, x = flow.discretized(3, "heun2", learnt=True, towards=towards), torch.randn(20, 2)
    with torch.no_grad():
        for parameter in steps.layers[0].parameters(recurse=False):
            parameter.add_(0.05 * torch.randn_like(parameter))
    cnf.save(steps, tmp_path)
    loaded = cnf.load(tmp_path)
    assert torch.equal(loaded.log_prob(x), steps.log_prob(x))
    assert loaded.layers[0].config() == steps.layers[0].config()
    assert not torch.equal(loaded.log_prob(x), flow.discretized(3, "heun2").log_prob(x))


@pytest.mark.parametrize("shape", [[10**11], [10**4, 10**4]])
def test_contexts_beyond_the_weights_are_refused_before_memory_is_taken(tmp_path, shape):
    theta, x = torch.randn(2, 20, 2)
    cnf.save(simulation_flow(theta, x), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["context"]["shape"] = shape
    path.write_text(json.dumps(storage.with_checksum(config)))
    with pytest.raises(ValueError, match="shape .*, beyond its .* bytes of weights"):
        cnf.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "3"}, "steps of at least 1; got '3'"),
        ({"count": 0}, "steps of at least 1; got 0"),
        ({"count": 10**12}, "count 10{12}, beyond its"),
        ({"method": "os.system"}, "got 'os.system': unknown"),
        ({"method": "euler"}, "at least 2 stages .*; got 'euler'"),
        ({"method": ["heun2"]}, "Expected a model"),
        ({"learnt": False}, "Expected a model"),
        ({"towards": "side"}, "base or data; got 'side'"),
        ({"rtol": 0.1}, "Expected a model"),
    ],
)
def test_explicit_steps_edited_by_hand(flow, change, message, tmp_path):
    cnf.save(flow.discretized(3, "heun2", learnt=True), tmp_path)
    edit(tmp_path, lambda config: config["layers"][0].update(change))
    refused(tmp_path, message)


def test_a_change_that_still_makes_a_model_is_warned_of(flow, folder):
    """A changed tolerance, or a flipped bit on the disk, gives other numbers."""
    path, text = folder / "config.json", (folder / "config.json").read_text()
    assert '"rtol": 0.0001' in text
    path.write_text(text.replace('"rtol": 0.0001', '"rtol": 0.0009'))
    with pytest.warns(UserWarning, match="edited by hand, or is damaged"):
        assert cnf.load(folder).layers[0].settings.rtol == 0.0009
    config = json.loads(text)
    del config["seal"]  # as earlier versions wrote it
    path.write_text(json.dumps(config))
    x = torch.zeros(3, 2)
    assert torch.equal(cnf.load(folder).log_prob(x), flow.log_prob(x))


def test_what_is_no_model_at_all(folder, tmp_path):
    """A pipe is not waited for."""
    refused(tmp_path / "nowhere", "Expected a folder written by train")
    for content, message in (("{not json", "to be JSON"), ("[1, 2]", "to hold")):
        (tmp_path / "config.json").write_text(content)
        refused(tmp_path, message)
    (folder / "model.safetensors").unlink()
    refused(folder, "weights in .*No such file")
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        refused(folder, f"{name}.* a pipe or a device")


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    class Field(nn.Module):
        def forward(self, t, x):
            return x

    exp = dist.TransformedDistribution(BASES[0], [dist.ExpTransform()])
    for flow, message in (
        (cnf.Flow(BASES[0], [cnf.CNF(Field())]), "cnf.fields.FIELDS; got Field"),
        (cnf.Flow(exp, [cnf.Standardize(2)]), "TransformedDistribution"),
    ):
        with pytest.raises(ValueError, match=message):
            cnf.save(flow, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def sharing(part):
    """A flow with a part in two places."""
    field, scaling, number = ConcatSquash(2, hidden=(4,)), cnf.Standardize(2), torch.ones(2)
    layer, other, flow = cnf.CNF(field), cnf.Standardize(2), cnf.ffjord(2, hidden=(4,), blocks=2)
    conditional = cnf.CNF(ConcatSquash(2, (4,), context_dim=2))
    left, right = (layer.field.last.linear for layer in flow.layers[:2])
    right.weight, other.loc = left.weight, scaling.loc
    return {
        "field": cnf.Flow(BASES[0], [layer, cnf.CNF(field, rtol=1e-3)]),
        "layer": cnf.Flow(BASES[0], [layer, scaling, layer]),
        "scaling": cnf.Flow(BASES[0], [conditional, scaling], scaling),
        "buffer": cnf.Flow(BASES[0], [scaling, other]),
        "base": cnf.Flow(dist.Independent(dist.Normal(number, number), 1), [scaling]),
        "weight": flow,
    }[part]


def places(module):
    """Which names have the same part, of modules, parameters and buffers."""
    parts = {}
    for kind in (module.named_modules, module.named_parameters, module.named_buffers):
        for name, part in kind(remove_duplicate=False):
            parts.setdefault(id(part), []).append(name)
    return sorted(parts.values())


@pytest.mark.parametrize("part", ["field", "layer", "scaling", "buffer", "base", "weight"])
def test_shared_parts_are_shared_again(part, tmp_path):
    flow, x = sharing(part), torch.randn(100, 2, dtype=torch.float64)
    context = x if flow.context_dim else None
    if part == "field":
        cnf.fit(flow, x, steps=3)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.rand_like(parameter))
    flow.to(x.dtype)
    cnf.save(flow, tmp_path)
    loaded = cnf.load(tmp_path)
    assert places(loaded) == places(flow)
    assert torch.equal(loaded.log_prob(x, context), flow.log_prob(x, context))
    if part == "field":
        assert [layer.settings.rtol for layer in loaded.layers] == [1e-5, 1e-3]
