"""The libraries that adapters plug into: one that is missing, or of another version."""

import sys
import tomllib
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from cnf.adapters.hosts import HOSTS, check_host

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


@pytest.mark.parametrize("name", HOSTS)
def test_versions_are_those_of_the_extra(name):
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    distribution, first, end = HOSTS[name]
    assert f"{distribution}>={first},<{end}" in extras[name]


@pytest.mark.parametrize("name", HOSTS)
def test_a_missing_host_is_one_line_with_the_command(name, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("cnf.adapters.hosts.version", missing)
    monkeypatch.delitem(sys.modules, f"cnf.adapters.{name}", raising=False)
    with pytest.raises(ImportError) as raised:
        import_module(f"cnf.adapters.{name}")
    distribution, first, _ = HOSTS[name]
    assert str(raised.value) == (
        f"Expected {distribution} {first} for cnf.adapters.{name}; got no installation: "
        f"pip install 'cnf-flows[{name}]'"
    )


@pytest.mark.parametrize("version", ["1.9", "1.9.1", "1.10.0", "1.10rc1", "1.99.dev1+local"])
def test_versions_are_compared_by_their_numbers(version, monkeypatch):
    monkeypatch.setattr("cnf.adapters.hosts.version", lambda name: version)
    check_host("pyro")


@pytest.mark.parametrize("version", ["1", "1.8.6", "0.9.9", "2.0", "2", "19.0", "unknown"])
def test_other_versions_are_refused(version, monkeypatch):
    monkeypatch.setattr("cnf.adapters.hosts.version", lambda name: version)
    with pytest.raises(ImportError, match=f"^Expected pyro-ppl 1.9 for .*; got {version}: pip"):
        check_host("pyro")
