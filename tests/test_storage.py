"""Saved and loaded to the last bit; damage and foreign files are found, nothing is executed."""

import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.distributions import (
    Beta,
    Categorical,
    Dirichlet,
    ExpTransform,
    Independent,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    TransformedDistribution,
)

import cnf
from cnf import storage
from cnf.fields import ConcatSquash
from cnf.utils import serialization

BASES = [
    Independent(Normal(torch.zeros(2), torch.ones(2)), 1),
    Independent(Laplace(torch.zeros(2), torch.ones(2)), 1),
    Independent(StudentT(torch.full((2,), 3.0)), 1),
    Independent(Beta(torch.ones(2), torch.ones(2)), 1),
    MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 0.3], [0.3, 1.0]])),
    LowRankMultivariateNormal(torch.zeros(2), torch.ones(2, 1), torch.ones(2)),
    MixtureSameFamily(
        Categorical(logits=torch.tensor([0.1, 0.7])),
        Independent(Normal(torch.randn(2, 2), torch.ones(2, 2)), 1),
    ),
    Dirichlet(torch.ones(2)),
    Independent(LogNormal(torch.zeros(2), torch.ones(2)), 1),
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
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(storage.with_checksum(config)))


def test_the_same_log_prob_to_the_last_bit(flow, folder):
    loaded, x = cnf.load(folder), torch.randn(20, 2)
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))
    assert loaded.layers[0].settings == flow.layers[0].settings
    assert storage.load_config(folder)["metadata"] == {"note": "ours"}


def test_the_same_log_prob_in_another_process(flow, folder, tmp_path):
    x = torch.randn(20, 2)
    torch.save({"x": x, "log_prob": flow.log_prob(x).detach()}, tmp_path / "expected.pt")
    script = (
        "import sys, torch, cnf\n"
        "expected = torch.load(sys.argv[2])\n"
        "log_prob = cnf.load(sys.argv[1]).log_prob(expected['x'])\n"
        "sys.exit(not torch.equal(log_prob, expected['log_prob']))\n"
    )
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "expected.pt")]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0


@pytest.mark.parametrize("base", BASES, ids=lambda base: type(base).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bases_come_back(base, dtype, tmp_path):
    flow = cnf.Flow(base, [cnf.Standardize(2)]).to(dtype)
    cnf.save(flow, tmp_path)
    loaded = cnf.load(tmp_path)
    x = flow.base.sample((5,))
    assert x.dtype == dtype
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))
    torch.manual_seed(1)
    ours = flow.base.sample((3,))
    torch.manual_seed(1)
    assert torch.equal(loaded.base.sample((3,)), ours)


def test_saving_again_replaces_the_model_and_leaves_nothing_else(flow, folder):
    with torch.no_grad():
        next(flow.parameters()).add_(1.0)
    cnf.save(flow, folder)
    assert torch.equal(next(cnf.load(folder).parameters()), next(flow.parameters()))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_flipped_bit_is_found(folder, position):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256 of .* is another one"):
        cnf.load(folder)


@pytest.mark.parametrize("length", [0, 7, 100])
def test_a_truncated_file_is_found(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="SHA-256"):
        cnf.load(folder)


def test_a_base_of_whole_numbers_is_found(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.startswith("base."))
    weights = safetensors.torch.save({**tensors, name: tensors[name].long()})
    (folder / "model.safetensors").write_bytes(weights)
    edit(folder, lambda config: config.update(sha256=storage.hashlib.sha256(weights).hexdigest()))
    with pytest.raises(ValueError, match=f"real numbers for {name}; got torch.int64"):
        cnf.load(folder)


def test_a_foreign_file_with_the_right_checksum_is_found(folder):
    weights = safetensors.torch.save({"weight": torch.zeros(3)})
    (folder / "model.safetensors").write_bytes(weights)
    edit(folder, lambda config: config.update(sha256=storage.hashlib.sha256(weights).hexdigest()))
    with pytest.raises(ValueError, match="Expected a model of cnf-flows in"):
        cnf.load(folder)


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
    ],
)
def test_a_configuration_edited_by_hand(folder, change, message):
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        cnf.load(folder)


def test_a_change_that_still_makes_a_model_is_warned_of(flow, folder):
    """A changed tolerance, or a flipped bit on the disk, gives other numbers."""
    path = folder / "config.json"
    assert '"rtol": 0.0001' in path.read_text()
    path.write_text(path.read_text().replace('"rtol": 0.0001', '"rtol": 0.0009'))
    with pytest.warns(UserWarning, match="edited by hand, or is damaged"):
        assert cnf.load(folder).layers[0].settings.rtol == 0.0009


def test_a_folder_without_a_seal_is_loaded(flow, folder):
    """Earlier versions wrote no seal."""
    path, x = folder / "config.json", torch.zeros(3, 2)
    config = json.loads(path.read_text())
    del config["seal"]
    path.write_text(json.dumps(config))
    assert torch.equal(cnf.load(folder).log_prob(x), flow.log_prob(x))


def test_what_is_no_model_at_all(tmp_path):
    with pytest.raises(ValueError, match="Expected a folder written by train"):
        cnf.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ValueError, match="to be JSON"):
        cnf.load(tmp_path)
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="to hold"):
        cnf.load(tmp_path)


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="weights in .*No such file"):
        cnf.load(folder)


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.ones(1))

        def forward(self, t, x):
            return self.rate * x

    own_field = cnf.Flow(BASES[0], [cnf.CNF(Field())])
    exp = TransformedDistribution(BASES[0], [ExpTransform()])
    transformed = cnf.Flow(exp, [cnf.Standardize(2)])
    for flow, message in (
        (own_field, "cnf.fields.FIELDS; got Field"),
        (transformed, "TransformedDistribution"),
    ):
        with pytest.raises(ValueError, match=message):
            cnf.save(flow, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_write_that_fails_leaves_the_old_model(flow, folder, monkeypatch):
    before = cnf.load(folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serialization.os, "fsync", full)
    with torch.no_grad():
        next(flow.parameters()).add_(1.0)
    with pytest.raises(OSError, match="No space"):
        cnf.save(flow, folder)
    assert torch.equal(next(cnf.load(folder).parameters()), next(before.parameters()))


def test_sizes_beyond_the_weights_are_refused_before_memory_is_taken(folder):
    edit(folder, lambda config: config["layers"][0]["field"].update(hidden=[10**12]))
    with pytest.raises(ValueError, match="hidden .1000000000000., beyond its .* bytes of weights"):
        cnf.load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(name, folder):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match=f"{name}.* a pipe or a device"):
        cnf.load(folder)


def sharing_field():
    field = ConcatSquash(2, hidden=(4,))
    return cnf.Flow(BASES[0], [cnf.CNF(field), cnf.CNF(field, rtol=1e-3)])


def sharing_layer():
    layer = cnf.CNF(ConcatSquash(2, hidden=(4,)))
    return cnf.Flow(BASES[0], [layer, cnf.Standardize(2), layer])


def sharing_scaling():
    scaling = cnf.Standardize(2)
    return cnf.Flow(BASES[0], [cnf.CNF(ConcatSquash(2, (4,), context_dim=2)), scaling], scaling)


def sharing_weight():
    flow = cnf.ffjord(2, hidden=(4,), blocks=2)
    one, other = (layer.field.last.linear for layer in flow.layers[:2])
    other.weight = one.weight
    return flow


def sharing_buffer():
    one, other = cnf.Standardize(2), cnf.Standardize(2)
    other.loc = one.loc
    return cnf.Flow(BASES[0], [one, other])


def sharing_base_tensor():
    number = torch.ones(2)
    return cnf.Flow(Independent(Normal(number, number), 1), [cnf.Standardize(2)])


def places(module):
    """Which names have the same part, of modules, parameters and buffers."""
    named = [
        *module.named_modules(remove_duplicate=False),
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    parts = {}
    for name, part in named:
        parts.setdefault(id(part), []).append(name)
    return sorted(parts.values())


SHARING = (
    sharing_field,
    sharing_layer,
    sharing_scaling,
    sharing_weight,
    sharing_buffer,
    sharing_base_tensor,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", SHARING)
def test_shared_parts_are_shared_again(make, dtype, tmp_path):
    flow, x = make(), torch.randn(5, 2, dtype=dtype)
    context = x if flow.context_dim else None
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.rand_like(parameter))
    flow.to(dtype)
    cnf.save(flow, tmp_path)
    loaded = cnf.load(tmp_path)
    assert places(loaded) == places(flow)
    assert torch.equal(loaded.log_prob(x, context), flow.log_prob(x, context))


def test_two_layers_of_one_field_train_save_and_load(tmp_path):
    flow, x = sharing_field(), torch.randn(100, 2)
    cnf.fit(flow, x, steps=3)
    cnf.save(flow, tmp_path)
    loaded = cnf.load(tmp_path)
    assert loaded.layers[0].field is loaded.layers[1].field
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))
    assert [layer.settings.rtol for layer in loaded.layers] == [1e-5, 1e-3]


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ({"layers.1": "layers.0"}, "layers.0 and layers.1 of one type and shape"),
        ({"layers.0.field": "layers.2"}, "of one type and shape"),
        ({"layers.0.field": "layers.9"}, "Expected a model"),
        ({"layers.0.name": "layers.0.name"}, "a module or a tensor to share"),
        ({"layers.0": 3}, "Expected a model"),
        ([], "Expected a model"),
    ],
)
def test_shared_parts_edited_by_hand(shared, message, folder):
    edit(folder, lambda config: config["layers"][1]["field"].update(hidden=[5, 4, 2]))
    edit(folder, lambda config: config.update(shared=shared))
    with pytest.raises(ValueError, match=message):
        cnf.load(folder)
