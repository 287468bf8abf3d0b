"""docs/support.md says of ggml what ggml's source says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import real_ggml

from ggmlgraph.table.dialect import V2A

SPELLED = {"F16": "F16", "BF16": "BF16", "quantised": "Q4_0"}
PAGE = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "support.py"))


@pytest.fixture(scope="module")
def source() -> str:
    with real_ggml.or_skip("ggml's source"):
        return real_ggml.source().read_text()


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


# Kernels whose code for several types is not in a switch on that of the first operand.
ELSEWHERE = {
    "MUL_MAT": r"type_traits\[type\]\.vec_dot_type;",  # which every type has
    "MUL_MAT_ID": r"type_traits\[type\]\.vec_dot;",
    "CPY": r"ggml_compute_forward_dup\(",
    "CONT": r"ggml_compute_forward_dup\(",
    "CONV_TRANSPOSE_2D": r"GGML_ASSERT\(src0->type == GGML_TYPE_F16\)",
    "POOL_1D": r"ggml_compute_forward_pool_1d_sk_p0\(",  # which asserts what POOL_2D does
    "POOL_2D": r"src->type == GGML_TYPE_F32 \|\| src->type == GGML_TYPE_F16",
    **dict.fromkeys(("RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"), r"// NOP"),
}


def cases_on_type(kernel: str) -> set[str]:
    """The labels of its switch on the type of the first operand, but for those that lead to an abort."""
    switch = kernel.partition("switch (src0->type)")[2].partition("default:")[0] + "default:"
    refused = r"(?:case GGML_TYPE_\w+:\s*)+(?:\{?\s*(?://[^\n]*\s*)*GGML_ABORT|default:)"
    return set(re.findall(r"case GGML_TYPE_(\w+):", re.sub(refused, "", switch)))


@pytest.mark.parametrize("op", sorted(V2A.op_number.keys() | V2A.unary_number.keys()))
def test_ggml_takes_the_operand_types_that_the_page_says(op: str, source: str) -> None:
    said = set(PAGE["GGML_TYPES"].get(op, ()))
    if op in ELSEWHERE:
        assert said and re.search(ELSEWHERE[op], body(source, f"ggml_compute_forward_{op.lower()}"))
    elif f"ggml_compute_forward_{op.lower()}(" in source:
        cases = cases_on_type(body(source, f"ggml_compute_forward_{op.lower()}"))
        assert said == {name for name, ggml in SPELLED.items() if ggml in cases}
    else:
        assert not said
