"""What the run says at its end: how many ops, cases and ISA levels were covered."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List the coverage of the op table where its tests ran."""
    reports = [r for r in terminalreporter.stats.get("passed", []) if r.when == "call" and "test_ops.py" in r.nodeid]
    if not reports:
        return
    from ggmlgraph.core.levels import isa_levels
    from ggmlgraph.table.op import TABLE

    kinds = {"forward": "forward_is", "gradient": "difference_quotient", "threads": "number_of_threads"}
    counts = ", ".join(f"{sum(text in r.nodeid for r in reports)} {kind}" for kind, text in kinds.items())
    levels = ", ".join(isa_levels())
    terminalreporter.write_line(f"ops: {len(TABLE)} in the table; cases passed: {counts}; ISA: {levels}")
