"""Pictures: well formed, whole, and with nothing in them that a graph could have smuggled in."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_fold import Chain

import ggmlgraph as gg
from ggmlgraph.cli.main import run
from ggmlgraph.drawing import plan
from ggmlgraph.drawing.diagram import Diagram, diagram
from ggmlgraph.drawing.dot import dot
from ggmlgraph.drawing.fold import fold
from ggmlgraph.drawing.layout import Layout, Placed, layout
from ggmlgraph.drawing.operations import of_program
from ggmlgraph.drawing.page import _blocks, page
from ggmlgraph.drawing.svg import picture
from ggmlgraph.models import llama

MODEL = llama.Config(n_vocab=31, n_embd=16, n_head=4, n_layer=6, n_ff=24)
HOSTILE = "</title><script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"


@cache
def graph_file(folder: Path, name: str = "") -> Path:
    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: llama.Config) -> gg.Tensor:
        return llama.loss(p / name if name else p, tokens, targets, c)

    path = folder / f"graph{bool(name)}.bin"
    gg.trace(loss, MODEL, batch=2, ctx=8).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


def drawn_from(path: Path) -> Diagram:
    with gg.Runtime(path) as runtime:
        operations = of_program(runtime.programs.forward("loss"))
        return diagram(fold(operations), operations)


@pytest.mark.parametrize("view", ["forward", "fused", "gradient"])
@pytest.mark.parametrize("suffix", [".svg", ".html", ".dot"])
def test_every_view_is_drawn_in_every_format(folder: Path, view: str, suffix: str) -> None:
    output = folder / f"{view}{suffix}"
    assert run(["draw", str(graph_file(folder)), "-o", str(output), "--view", view]) == 0
    text = output.read_text()
    assert "× 6  blk.0 … blk.5" in text
    if suffix == ".svg":
        ElementTree.fromstring(text)


def test_a_picture_asks_nothing_of_any_other_place(folder: Path) -> None:
    drawn = drawn_from(graph_file(folder))
    for text in (picture(layout(drawn), "x"), page(drawn, "x", "y")):
        addresses = set(re.findall(r"""(?:https?:)?//[^\s"'<>]+""", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"@import|url\(|<link|src=", text)


class Tags(HTMLParser):
    """The tags and event attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_names_with_markup_are_text(folder: Path) -> None:
    drawn = drawn_from(graph_file(folder, '<script>"&'))
    text = page(drawn, HOSTILE, HOSTILE)
    tags = Tags()
    tags.feed(text)
    assert tags.tags.count("script") == 1
    assert "img" not in tags.tags
    assert not tags.handlers
    assert "&lt;script&gt;" in text
    ElementTree.fromstring(picture(layout(drawn), HOSTILE))
    assert '\\"' in dot(drawn, HOSTILE)


def overlaps(drawn: Layout) -> list[tuple[str, str]]:
    found = [(a.box.title, b.box.title) for a, b in combinations(drawn.boxes, 2) if _meet(a, b)]
    return found + [pair for box in drawn.boxes if box.inside for pair in overlaps(box.inside)]


def _meet(a: Placed, b: Placed) -> bool:
    across = a.x < b.x + b.width and b.x < a.x + a.width
    return across and a.y < b.y + b.height and b.y < a.y + a.height


def test_no_box_lies_on_another_and_all_lie_inside(folder: Path) -> None:
    placed = layout(drawn_from(graph_file(folder)))
    assert not overlaps(placed)
    assert all(box.x >= 0 and box.x + box.width <= placed.width + 1e-6 for box in placed.boxes)
    assert all(box.y >= 0 and box.y + box.height <= placed.height + 1e-6 for box in placed.boxes)


def test_arrows_run_downwards(folder: Path) -> None:
    for wire in layout(drawn_from(graph_file(folder))).wires:
        ys = [y for _, y in wire.points]
        assert ys == sorted(ys)


def test_amounts_are_those_of_the_whole_graph(folder: Path) -> None:
    path = graph_file(folder)
    with gg.Runtime(path) as runtime:
        program = runtime.programs.forward("loss")
        operations = of_program(program)
        amounts = diagram(fold(operations), operations).amounts
        assert amounts.n_params == runtime.n_params
        assert amounts.flops == program.cost().flops


def test_blocks_within_blocks_fold_one_by_one() -> None:
    chain = Chain()
    for i in range(12):
        chain.layer("relu" if i % 4 == 3 else "silu")
    operations = chain.operations()
    drawn = diagram(fold(operations), operations)
    blocks = [path for path, _ in _blocks(drawn)]
    assert {len(path) for path in blocks} == {1, 2}
    text = page(drawn, "x", "y")
    (named,) = re.findall(r'data-blocks="([^"]*)"', text)
    assert named.split() == [".".join(map(str, path)) for path in sorted(blocks)]
    assert len(re.findall("data-state=", text)) == 2 ** len(blocks) + 1  # and once in the script
    heights = {bits: layout(drawn, [p for p, b in zip(sorted(blocks), bits, strict=True) if b == "0"]).height
               for bits in ("11", "10", "01")}  # fmt: skip
    assert heights["01"] < heights["10"] < heights["11"]


def test_a_graph_too_large_to_see_is_drawn_in_parts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ggmlgraph.cli.draw.MOST_BOXES", 20)
    monkeypatch.setattr("ggmlgraph.drawing.parts.MOST_ITEMS", 8)
    for suffix in (".svg", ".html", ".dot"):
        output = folder / f"parts{suffix}"
        assert run(["draw", str(graph_file(folder)), "-o", str(output), "--view", "gradient"]) == 0
        assert re.search(r"boxes, drawn as \d+ parts", capsys.readouterr().err)
        text = output.read_text()
        assert "mul_mat, " in text
        if suffix == ".svg":
            ElementTree.fromstring(text)
        if suffix == ".html":
            figures = set(re.findall(r'data-figure id="([^"]*)"', text))
            parts = {f"{figure}-{part}" for figure, inside in re.findall(
                r'data-figure id="([^"]*)"(.*?)(?=<div data-figure|</main>)', text, re.DOTALL)
                for part in re.findall(r'data-part="([^"]*)"', inside)}  # fmt: skip
            assert parts
            assert figures == parts | {"figure"}


def test_a_page_shows_each_way_of_folding_and_the_unfolded_one_without_script(folder: Path) -> None:
    text = page(drawn_from(graph_file(folder)), "x", "y")
    assert re.findall(r'data-state="(\d+)"( hidden)?', text) == [("1", ""), ("0", " hidden")]


def test_what_memory_holds_at_once_lies_apart(folder: Path) -> None:
    with gg.Runtime(graph_file(folder)) as runtime:
        program = runtime.programs.train
        kept = [tensor for tensor in plan.kept(program) if tensor.nbytes]
        ElementTree.fromstring(plan.picture(program, "x"))
    for i, a in enumerate(kept):
        for b in kept[i + 1 :]:
            at_once = a.born < b.last and b.born < a.last  # in place: one ends where the other begins
            assert not at_once or a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["-o", "x.png"], "ends in none of .svg, .html, .dot"),
        (["-o", "x.html", "--plan"], "--plan draws .svg alone"),
        (["-o", "no/such/x.svg"], "no/such"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    folder: Path, arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["draw", str(graph_file(folder)), *arguments]) != 0
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1
