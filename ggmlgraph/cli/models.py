"""`ggmlgraph models [MODEL]`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from ggmlgraph.tracing import architectures

COLUMNS = ("n_layer", "n_embd", "n_head", "n_head_kv", "n_ff", "n_vocab")


def command(name: str | None) -> None:
    """List what `export` takes as MODEL: architectures and presets of published sizes."""
    found = [architectures.load(each) for each in ([name] if name else architectures.built_in())]
    rows = [row for each in found for row in _rows(each)]
    heads = ("model", "preset", "parameters", *COLUMNS)
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, *rows):
        cells = [text.ljust(n) if i < 2 else text.rjust(n) for i, (text, n) in enumerate(zip(row, widths, strict=True))]
        click.echo("  ".join(cells).rstrip())
    if name:
        config = found[0].preset or architectures.config(found[0], {})
        fields = [f"{field}={getattr(config, field)}" for field in architectures.field_types(found[0])]
        click.echo(f"fields: {' '.join(fields)}")


def _rows(found: architectures.Architecture) -> Iterator[tuple[str, ...]]:
    """The architecture with its defaults, then its presets."""
    configs = {found.name: found.preset} if found.preset else {"": architectures.config(found, {}), **found.presets}
    architecture = found.loss.__module__.rpartition(".")[2]
    for preset, config in configs.items():
        sizes = [str(getattr(config, column, 0) or "-") for column in COLUMNS]
        yield (architecture, preset, f"{architectures.n_params(found, config):,}", *sizes)
