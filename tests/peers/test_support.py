"""docs/support.md says of ggml what ggml's source says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import real_ggml

PAGE = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "support.py"))


@pytest.fixture(scope="module")
def source() -> str:
    try:
        return real_ggml.source().read_text()
    except real_ggml.Unavailable as reason:
        pytest.skip(f"ggml's source: {reason}")


TENSOR = r"struct ggml_tensor \* "


def body(source: str, function: str, returned: str = "static void ") -> str:
    found = re.search(rf"^{returned}{function}\(.*?^}}", source, re.DOTALL | re.MULTILINE)
    assert found, function
    return found[0]


def test_ggml_has_the_derivatives_that_the_page_says(source: str) -> None:
    implemented, labels = set(), []
    cases = re.split(r"(?=^ *(?:case GGML_(?:OP|UNARY_OP)_\w+|default):)", body(source, "ggml_compute_backward"),
                     flags=re.MULTILINE)  # fmt: skip
    for case in cases[1:]:
        label, code = case.split(":", 1)
        labels.append(label.strip().removeprefix("case GGML_").removeprefix("UNARY_").removeprefix("OP_"))
        if not re.sub(r"//.*", "", code).strip():
            continue  # falls through to the next label
        if "GGML_ABORT" not in code:
            implemented |= set(labels)
        labels = []
    # FLASH_ATTN_EXT calls ggml_flash_attn_back, which aborts: "adapt to ggml_flash_attn_ext() changes". WIN_PART and
    # WIN_UNPART fall through to UNARY, whose switch aborts at what is no unary op.
    # ROPE_BACK's constructor aborts where its operand has a gradient.
    others = {"NONE", "UNARY", "FLASH_ATTN_EXT", "WIN_PART", "WIN_UNPART", "ROPE_BACK"}
    assert implemented - others == PAGE["GGML_BACKWARD"]
    assert 'GGML_ASSERT(false && "backwards pass not implemented")' in body(source, "ggml_rope_back", TENSOR)
    assert 'GGML_ABORT("TODO: adapt to ggml_flash_attn_ext() changes")' in source


@pytest.mark.parametrize("op", ["GET_ROWS", "ADD", "OUT_PROD", "DUP"])
def test_ggml_takes_the_operand_types_that_the_page_says(op: str, source: str) -> None:
    switch = body(source, f"ggml_compute_forward_{op.lower()}").split("default:")[0]
    spelled = {"F16": "F16", "BF16": "BF16", "quantised": "Q4_0"}
    refused = "".join(re.findall(r"((?:case GGML_TYPE_\w+:\s*)+)\{?\s*(?://[^\n]*\s*)*GGML_ABORT", switch))
    for name, ggml in spelled.items():
        taken = f"GGML_TYPE_{ggml}:" in switch and f"GGML_TYPE_{ggml}:" not in refused
        assert taken == (name in PAGE["GGML_TYPES"][op]), name
