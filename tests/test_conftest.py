"""Many cases in one item: each that fails is told by its name, also one that ends the process, and all are counted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ITEMS = """
import os
import pytest

def test_most_pass(check_each):
    def check(case):
        assert case not in (2, 4), "bad"
    check_each(range(6), check, "level")

def test_one_ends_the_process(check_each):
    check_each(["a", "b"], lambda case: os._exit(1) if case == "b" else None, "level")

def test_without_cases():
    pass

@pytest.mark.parametrize("reason", ["for want of a package", "no such case: it has no numbers", "no such case: two"])
def test_skipped(reason):
    pytest.skip(reason)
"""


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What pytest says of them."""
    folder = tmp_path_factory.mktemp("items")
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_items.py").write_text(ITEMS)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "no:cacheprovider", f"--rootdir={folder}", folder]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout.splitlines()


def after(head: str, lines: list[str]) -> list[str]:
    """What follows the line with an item's name, without the worker's."""
    begin = next(i for i, line in enumerate(lines) if line.startswith("_") and head in line)
    return [line for line in lines[begin + 1 :] if not line.startswith("[gw")]


def test_every_failing_case_has_a_line_that_begins_with_its_name(lines: list[str]) -> None:
    assert [line[:25] for line in after("test_most_pass", lines)[:3]] == [
        "2 level: AssertionError: ",
        "4 level: AssertionError: ",
        "",
    ]


def test_the_first_ones_traceback_is_shown(lines: list[str]) -> None:
    assert any('assert case not in (2, 4), "bad"' in line for line in after("test_most_pass", lines))


def test_a_case_that_ends_the_process_is_named_first(lines: list[str]) -> None:
    assert after("test_items.py", lines)[0] == "b level: the process ended"


def test_cases_are_counted_one_by_one_and_an_item_without_as_one(lines: list[str]) -> None:
    assert "cases: 5 passed, 3 failed" in lines


def test_skips_are_counted_by_what_their_reasons_begin_with(lines: list[str]) -> None:
    assert "skipped: 1 for want of something, 2 because the case does not exist" in lines
