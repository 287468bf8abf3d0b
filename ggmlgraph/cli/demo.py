"""`ggmlgraph demo`: the whole way from a text to a language model, in the commands a user would type."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

PROMPT = "The class"


def command(output: Path) -> int:
    """Train a small LLaMA from nothing on Python's own documentation, in about three minutes on two processors."""
    run = str(output)
    tokenizer, graph = f"{run}/tokenizer.model", f"{run}/graph.bin"
    steps: list[tuple[str, list[str]]] = [
        ("A vocabulary of 2,048 pieces, learnt from the documentation that every Python brings along:",
         ["tokenizer", "train", "builtin:pydoc", "--n-vocab", "2048", "-o", tokenizer]),
        ("A LLaMA with four layers as a ggml compute graph, its weights still random:",
         ["export", "llama", "n_embd=192", "n_head=6", "n_layer=4", "n_ff=512", "--tokenizer", tokenizer,
          "--batch", "16", "--ctx", "64", "-o", graph]),
        ("Training it:",
         ["train", graph, "--data", "builtin:pydoc", "--steps", "800", "--lr", "2e-3", "--eval-every", "100",
          "--sample-every", "200", "--prompt", PROMPT, "--predict", "64", "-o", run, "--resume", "auto"]),
        ("What it has learnt:",
         ["generate", run, "--prompt", "If the class", "--predict", "96"]),
    ]  # fmt: skip
    from ggmlgraph.cli.main import run as run_command

    for text, arguments in steps:
        click.echo(f"\n{text}\n$ ggmlgraph {shlex.join(arguments)}")
        if (status := run_command(arguments)) != 0:
            return status
    click.echo(
        f"\nTry next:\n"
        f'  ggmlgraph generate {run} --prompt "A function" --temperature 0.5\n'
        f"  ggmlgraph train {graph} -o {run} --resume auto --steps 2000\n"
        f"  ggmlgraph inspect {graph}\n"
        f"  ggmlgraph export baby_llama -o baby.bin && ggmlgraph train baby.bin -o wave/"
    )
    return 0
