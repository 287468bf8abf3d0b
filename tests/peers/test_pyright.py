"""pyright knows the names that ggmlgraph has, and no others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typedpage

pytest.importorskip("pyright", reason="for want of pyright")


def test_pyright_takes_what_is_right_and_names_what_is_wrong(tmp_path: Path) -> None:
    page, lines = typedpage.write(tmp_path)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard", "reportUnusedExpression": false}')
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(page)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    if not done.stdout:
        pytest.skip(f"pyright does not run here: {done.stderr.strip()[-200:]}")
    errors = [each for each in json.loads(done.stdout)["generalDiagnostics"] if each["severity"] == "error"]
    assert [each["range"]["start"]["line"] + 1 for each in errors] == lines
    for error, wrong in zip(errors, typedpage.WRONG, strict=True):
        assert wrong.pyright in error["message"]
