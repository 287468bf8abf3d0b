"""What the metadata say of a graph holds, or the file is refused by one typed line, in every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from metadatachanges import try_changes

import ggmlgraph as gg
from ggmlgraph.cli.main import run
from ggmlgraph.core.importer import import_file, read_metadata
from ggmlgraph.errors import FormatError
from ggmlgraph.graphfile import metadata, reader, records, writer
from ggmlgraph.models import gpt_neox
from ggmlgraph.table.dialect import DIALECTS

SMALL = gpt_neox.Config(n_vocab=7, n_embd=16, n_head=2, n_layer=1, n_ff=8)
Meta = dict[str, Any]
Change = Callable[[Meta], object]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "graph.bin"
    gg.trace(gpt_neox.loss, SMALL, batch=2, ctx=4).save(path)
    return path


def saying(graph: Path, path: Path, change: Change) -> Path:
    """The graph with its metadata changed."""
    read = reader.read(graph)
    at = next(i for i, r in enumerate(read.records) if r.name == metadata.LEAF_NAME)
    data = read.records[at].data
    assert data is not None
    meta = json.loads(b"".join(data()))
    change(meta)
    content = json.dumps(meta).encode()
    leaf = records.leaf(metadata.LEAF_NAME, content)
    leafs = [replace(leaf, name=r.name) if i == at else r for i, r in enumerate(read.leafs)]
    with path.open("wb") as stream:
        writer.emit(stream, records.Order(tuple(leafs), read.nodes), DIALECTS["v2"], read.size_eval)
    return path


REFUSED: dict[str, tuple[Change, str]] = {
    "an input that is not there": (lambda m: m["inputs"].update(nope=m["inputs"].pop("positions")), "nope"),
    "inputs that are not there": (lambda m: m.update(inputs={"nope": "tokens"}), "no tensor 'nope'"),
    "an input that is computed": (lambda m: m.update(inputs={"logits": "tokens"}), "'logits' is no input"),
    "an input that is a weight": (lambda m: m.update(inputs={"token_embd.weight": "tokens"}), "is no input"),
    "an input that is the loss": (lambda m: m.update(inputs={"loss": "tokens"}), "is no input"),
    "an input that is the metadata": (lambda m: m.update(inputs={metadata.LEAF_NAME: "tokens"}), "is no input"),
    "tokens that are float32": (lambda m: m.update(inputs={"loss_weights": "tokens"}), "i32 with at most 2 axes"),
    "weights that are int32": (lambda m: m.update(inputs={"tokens": "loss_weights"}), "f32 with at most"),
    "positions of two axes": (lambda m: m.update(inputs={"tokens": "positions"}), "at most 1 axes"),
    "axes of nothing": (lambda m: m["ranks"].update(nope=1), "no tensor 'nope'"),
    "too few axes": (lambda m: m["ranks"].update(logits=2), r"'logits' has the shape \[2, 4, 7\], not 2 axes"),
    "a size of nothing": (lambda m: m["exprs"].update(nope={}), "no tensor 'nope'"),
    "a size that is not the file's": (lambda m: m["exprs"]["tokens"].update(ne=["2*ctx", None, None, None]), "is 4"),
    "sizes that are not the file's": (lambda m: m["sizes"].update(ctx=8), "is 4, 'ctx' is 8"),
    "sizes without ctx": (lambda m: m["sizes"].pop("ctx"), "unknown size 'ctx'"),
    "no sizes": (lambda m: m.update(sizes={}), "unknown size"),
    "a huge size": (lambda m: m["sizes"].update(ctx=1 << 40), "not in 0..2^40|is 4"),
    "an expression that is none": (
        lambda m: m["exprs"]["tokens"].update(ne=["ctx+", None, None, None]),
        "unexpected end",
    ),
    "a division by zero": (lambda m: m["exprs"]["tokens"].update(ne=["4//0", None, None, None]), "divides by zero"),
    "the size of a weight": (
        lambda m: m["exprs"].update({"token_embd.weight": {"ne": ["4*ctx", None, None, None]}}),
        "'token_embd.weight' is not free",
    ),
    "the size of a result": (lambda m: m["exprs"].update(logits={"ne": [None] * 4}), "'logits' is not free"),
    "the place of what is no view": (lambda m: m["exprs"].update(tokens={"offset": "0*ctx"}), "is no view"),
    "an exact form of another op": (lambda m: m.update(exact={"loss": "gelu_erf"}), "of which gelu_erf is no form"),
    "an exact form of a leaf": (lambda m: m.update(exact={"tokens": "gelu_erf"}), "of which gelu_erf is no form"),
    "a dropout of what is no reshape": (lambda m: m.update(dropout={"loss": 0.5}), "no float32 reshape to the same"),
    "a dropout of a leaf": (lambda m: m.update(dropout={"tokens": 0.5}), "no float32 reshape to the same"),
    "a dropout of nothing": (lambda m: m.update(dropout={"nothing": 0.5}), "no tensor"),
    "a parameter that is computed": (lambda m: m.update(flags={"logits": 4}), "cannot be a parameter"),
    "a parameter that is int32": (lambda m: m.update(flags={"tokens": 4}), "cannot be a parameter"),
    "a parameter that is an input": (lambda m: m.update(flags={"output.weight": 5}), "cannot be a parameter"),
    "an input that has an op": (lambda m: m.update(flags={"logits": 1}), "cannot be an input"),
    "a loss that is a leaf": (lambda m: m.update(flags={"tokens": 8}), "cannot be the loss"),
    "a loss of many numbers": (lambda m: m.update(flags={"logits": 8}), "cannot be the loss"),
    "control characters": (lambda m: m.update(model="\x1b[31m", corpus="\x07"), r"control character '\\x1b'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_metadata_that_do_not_hold_are_refused(what: str, graph: Path, tmp_path: Path) -> None:
    change, reason = REFUSED[what]
    path = saying(graph, tmp_path / "graph.bin", change)
    with pytest.raises(FormatError, match=reason) as raised:
        read_metadata(import_file(path), path)
    assert raised.value.code == "BadMetadata"
    assert str(raised.value).startswith(f"{path}: metadata: ")
    assert str(raised.value).endswith(" [BadMetadata]")
    with pytest.raises(FormatError, match=reason):
        gg.Runtime(path)


@pytest.mark.parametrize("what", REFUSED)
def test_every_command_refuses_them_in_one_line(
    what: str, graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("abcdefg" * 100)
    path = str(saying(graph, tmp_path / "graph.bin", REFUSED[what][0]))
    for line in (
        ["inspect", path], ["generate", path, "-p", "a", "-n", "2"], ["eval", path, "--text", "text.txt"],
        ["train", path, "--data", "text.txt", "-o", "run"], ["bench", path], ["chat", path],
    ):  # fmt: skip
        assert run(line) == 1, line
        said = capsys.readouterr()
        assert said.out == "", line
        assert said.err.count("\n") == 1, line
        assert "[BadMetadata]" in said.err, line


def test_what_readers_do_not_know_is_nobodys_business(graph: Path, tmp_path: Path) -> None:
    path = saying(graph, tmp_path / "graph.bin", lambda m: m.update(later={"\x1b": ["\x07"]}, where={"gone": "a:1"}))
    assert read_metadata(import_file(path)).where == {"gone": "a:1"}


def test_metadata_that_are_computed_are_none(graph: Path, tmp_path: Path) -> None:
    read = reader.read(graph)
    leafs = tuple(r for r in read.leafs if r.name != metadata.LEAF_NAME)
    shift = len(read.leafs) - len(leafs)
    at = next(i for i, r in enumerate(read.leafs) if r.name == metadata.LEAF_NAME)
    nodes = [
        replace(r, src=tuple(s - shift if s > at else s for s in r.src), name="x" if r.name == "loss" else r.name)
        for r in read.nodes
    ]
    nodes[-1] = replace(nodes[-1], name=metadata.LEAF_NAME)
    with (tmp_path / "graph.bin").open("wb") as stream:
        writer.emit(stream, records.Order(leafs, tuple(nodes)), DIALECTS["v2"], read.size_eval)
    with pytest.raises(FormatError, match="metadata: they are computed"):
        gg.Runtime(tmp_path / "graph.bin")


def test_changed_metadata_give_what_they_say_or_a_typed_error() -> None:
    verdicts = try_changes(3000, 0, seed=1)
    assert set(verdicts) <= {"accepted", "BadMetadata", "AmbiguousName"}
    assert verdicts["accepted"] > 300
