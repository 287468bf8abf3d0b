"""What `make wheel` put into dist/, installed as a stranger does: each file alone in a fresh environment; ten steps.

The wheel on a PATH without a compiler; the source distribution with what it declares and a compiler. Run by
`make release`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from places import ROOT

import ggmlgraph
from ggmlgraph.execution import checkpoint

DIST = ROOT / "dist"
STEPS = 10
COMMANDS = (
    ["export", "llama", "n_embd=32", "n_head=2", "n_layer=2", "n_ff=64", "-o", "graph.bin"],
    ["train", "graph.bin", "--data", ROOT / "README.md", "--steps", STEPS, "--lr", "3e-3", "-o", "run"],
)


def only(pattern: str) -> Path:
    """The one file of dist/ of this kind."""
    (path,) = DIST.glob(pattern)
    return path


@pytest.fixture(scope="module")
def wheel() -> Path:
    return only("*.whl")


@pytest.fixture(scope="module")
def source() -> Path:
    return only("*.tar.gz")


def run(command: list[object], **options: object) -> str:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert result.returncode == 0, result.stdout + result.stderr
    return str(result.stdout)


def train(programs: Path, path: Path, environment: dict[str, str]) -> tuple[list[float], bytes]:
    """The losses of ten steps with this environment's `ggmlgraph`, and its weights."""
    path.mkdir()
    for words in COMMANDS:
        run([programs / "ggmlgraph", *words], cwd=path, env=environment)
    lines = [json.loads(line) for line in (path / "run" / "metrics.jsonl").read_text().splitlines()]
    weights = path / "run" / f"step_{STEPS:06d}" / checkpoint.WEIGHTS
    return [line["loss"] for line in lines if "loss" in line], weights.read_bytes()


def files(source: Path) -> set[str]:
    """What a source distribution holds, all of it regular files."""
    with tarfile.open(source) as archive:
        members = [member for member in archive if not member.isdir()]
    assert all(member.isfile() for member in members)
    return {member.name.partition("/")[2] for member in members}


def installed(package: Path, directory: Path, path: str) -> Path:
    """The programs of a fresh environment with this package, installed with no other program than on `path`."""
    run([sys.executable, "-m", "venv", directory])
    run([directory / "bin" / "pip", "install", "--quiet", package], env={**clean(directory), "PATH": path})
    return directory / "bin"


def clean(home: Path) -> dict[str, str]:
    """The variables without those of this run's own environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "MAKE"))}
    return kept | {"PATH": os.defpath, "HOME": str(home)}


@pytest.mark.parametrize("kind", ["wheel", "source"])
def test_it_installs_alone_and_trains_to_the_same_bytes(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    package, path = request.getfixturevalue(kind), "" if kind == "wheel" else os.defpath
    programs = installed(package, tmp_path / "env", path)
    environment = clean(tmp_path) | {"PATH": path}
    version = run([programs / "ggmlgraph", "--version"], env=environment)
    losses, weights = train(programs, tmp_path / "alone", environment)
    assert version == f"ggmlgraph {ggmlgraph.__version__}\n"
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    assert (losses, weights) == train(Path(sys.executable).parent, tmp_path / "ours", dict(os.environ))


def test_the_wheel_serves_every_python_from_3_11_on_any_linux_of_its_age(wheel: Path) -> None:
    assert re.fullmatch(rf"ggmlgraph-{ggmlgraph.__version__}-cp311-abi3-manylinux_\d+_\d+_\w+\.whl", wheel.name)


def test_the_wheel_holds_the_package_its_types_and_the_library(wheel: Path, source: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name and name[-1] != "/"}
    sources = [name for name in files(source) if name.startswith("ggmlgraph/")]
    models = [f"ggmlgraph/{name}" for name in files(source) if name.startswith("models/")]
    assert packed == {*sources, *models, "ggmlgraph/_runtime.abi3.so"}
    assert "ggmlgraph/py.typed" in packed


def test_the_source_holds_what_is_committed_and_no_built_file(source: Path) -> None:
    """But for this repository's own settings, and for the link by which the models are seen without installing."""
    committed = set(run(["git", "ls-files"], cwd=ROOT).splitlines())
    assert files(source) == {n for n in committed if not n.startswith(".")} - {"ggmlgraph/models"} | {"PKG-INFO"}


def test_the_version_is_the_changelogs_last() -> None:
    heads = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[:2] == ["Unreleased", ggmlgraph.__version__]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
