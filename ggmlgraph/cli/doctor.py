"""`ggmlgraph doctor`: what to look at first when something is slow or does not work."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata

import click

from ggmlgraph import __version__, machine
from ggmlgraph.amounts import nbytes
from ggmlgraph.core.levels import isa_levels, peak_flops
from ggmlgraph.errors import UsageError


def command() -> None:
    """Show what this machine offers and which versions are installed."""
    forced, threads, memory = machine.isa(), machine.n_threads(), machine.available_memory()
    if forced and forced not in isa_levels():
        raise UsageError(f"GGMLGRAPH_ISA is {forced}; this build and processor have {', '.join(isa_levels())}")
    one, all_ = (peak_flops(forced, n) / 1e9 for n in (1, threads))
    why = "GGMLGRAPH_ISA" if forced else "the best this processor has"
    click.echo(f"ggmlgraph     {__version__}, Python {platform.python_version()}, {platform.platform()}")
    click.echo(f"processor     {machine.processor()}, {os.cpu_count()} seen, {threads} usable")
    click.echo(f"ISA levels    {', '.join(isa_levels())}; runs {forced or isa_levels()[0]} ({why})")
    click.echo(f"arithmetic    {one:,.1f} GFLOP/s with 1 thread, {all_:,.1f} with {threads}")
    click.echo(f"memory        {'unknown' if memory is None else nbytes(memory)} available")
    for name, version in dependencies():
        click.echo(f"{name:<12}  {version or 'missing'}")


def dependencies() -> list[tuple[str, str | None]]:
    """Packages that ggmlgraph needs at run time, with their versions; None where one is missing."""
    required = [r for r in metadata.requires("ggmlgraph") or [] if "extra ==" not in r]
    names = [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in required]
    return [(name, machine.version_of(name)) for name in names]
