"""The folders of the package are floors: each imports only from those below it, and their modules form no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "ggmlgraph"
FLOORS = (  # from the top; docs/internals.md prints them
    "cli",
    "library",
    "cluster",
    "finetuning",
    "interchange",
    "generation",
    "training",
    "drawing",
    "data",
    "tokenizers",
    "execution",
    "tracing",
    "core",
    "graphfile",
    "table",
    "files",
    "",  # the ground: modules at the package's root
)
CELLARS = ("interchange.formats",)  # below the rest of their own floor
FOR_TYPES_ALONE = {("table.ops", "tracing.tensor")}  # upwards, under TYPE_CHECKING: annotations of the ops' signatures

Imports = dict[str, set[str]]  # by module: the modules that it imports


def modules(package: Path) -> dict[str, Path]:
    """The modules of the package by dotted name; models/ is what users write and belongs to no floor."""
    paths = [path for path in package.rglob("*.py") if "models" not in path.relative_to(package).parts]
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in paths}


def imports(package: Path, *, for_types: bool) -> Imports:
    """What each module imports of the package, anywhere in it; for_types: under TYPE_CHECKING, else outside of it."""
    known = modules(package)
    return {name: set(_imported(ast.parse(path.read_text()), known, for_types)) for name, path in known.items()}


def _imported(tree: ast.AST, known: dict[str, Path], for_types: bool, inside: bool = False) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        is_guard = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        if isinstance(node, ast.ImportFrom) and inside == for_types and (node.module or "").startswith("ggmlgraph"):
            home = (node.module or "").removeprefix("ggmlgraph").removeprefix(".")
            for alias in node.names:
                inner = f"{home}.{alias.name}".removeprefix(".")
                yield inner if inner in known else home
        elif isinstance(node, ast.Import) and inside == for_types:
            yield from (a.name.removeprefix("ggmlgraph.") for a in node.names if a.name.startswith("ggmlgraph."))
        yield from _imported(node, known, for_types, inside or is_guard)


def place(module: str) -> tuple[int, bool]:
    """The floor of a module, and whether it lies in a cellar there; the top is 0."""
    folder = module.rpartition(".")[0]
    return FLOORS.index(folder.partition(".")[0]), folder in CELLARS


def upward(found: Imports) -> set[tuple[str, str]]:
    """(module, module of a folder above it) where the first imports the second."""
    real = {(a, b) for a, imported in found.items() for b in imported if b in found}
    return {(a, b) for a, b in real if place(b) < place(a)}


def circles(found: Imports) -> set[frozenset[str]]:
    """The modules that import one another, however long the way around."""
    reach = {name: {b for b in imported if b in found} for name, imported in found.items()}
    for middle in found:
        for name in found:
            if middle in reach[name]:
                reach[name] = reach[name] | reach[middle]
    return {frozenset(b for b in reach[a] if a in reach[b]) for a in found if a in reach[a]}


def test_every_folder_has_a_floor_and_every_floor_a_folder() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"models"}
    assert folders == set(FLOORS) - {""}


def test_no_module_imports_from_a_floor_above_its_own() -> None:
    assert upward(imports(PACKAGE, for_types=False)) == set()


def test_only_annotations_of_ops_name_a_type_of_a_floor_above() -> None:
    surface = {pair for pair in upward(imports(PACKAGE, for_types=True)) if pair[0] != "__init__"}
    assert surface == FOR_TYPES_ALONE


def test_modules_import_one_another_in_no_circle() -> None:
    assert circles(imports(PACKAGE, for_types=False)) == set()


def test_no_module_repeats_the_name_of_its_folder() -> None:
    repeated = [name for name in modules(PACKAGE) if "." in name and _repeats(*name.split(".")[-2:])]
    assert repeated == []


def _repeats(folder: str, name: str) -> bool:
    return folder.removesuffix("s") in name


def test_a_folder_says_what_it_is_and_gives_nothing_on() -> None:
    for path in PACKAGE.glob("*/**/__init__.py"):
        if "models" not in path.parts:
            statements = ast.parse(path.read_text()).body
            assert len(statements) == 1 and ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("core/limits.py", "from ggmlgraph.tracing.tracer import trace", ("core.limits", "tracing.tracer")),
        ("errors.py", "import ggmlgraph.durable", None),
        ("interchange/formats/gguf.py", "from ggmlgraph.interchange import naming",
         ("interchange.formats.gguf", "interchange.naming")),
        ("table/op.py", "def f():\n    from ggmlgraph.core import boundary", ("table.op", "core.boundary")),
    ],
)  # fmt: skip
def test_an_import_from_above_is_found(module: str, line: str, broken: tuple[str, str] | None, tmp_path: Path) -> None:
    for name, path in modules(PACKAGE).items():
        copy = tmp_path / (name.replace(".", "/") + ".py")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    assert upward(imports(tmp_path, for_types=False)) == ({broken} if broken else set())


def outside(*folders: str) -> dict[str, ast.AST]:
    """The modules that lie in none of these folders."""
    return {n: ast.parse(p.read_text()) for n, p in modules(PACKAGE).items() if n.partition(".")[0] not in folders}


def test_only_core_touches_the_extension_module() -> None:
    for name, tree in outside("core").items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ggmlgraph"):
                assert not {"_runtime", "ffi", "lib"} & {alias.name for alias in node.names}, name


def test_only_core_and_graphfile_know_ggmls_order_of_axes() -> None:
    for name, tree in outside("core", "graphfile").items():
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not {"ne", "nb", "ne_of", "shape_of"} & (names | attributes), name
