"""`ggmlgraph chat MODEL`: a conversation on the terminal, or with the lines of standard input."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import click

from ggmlgraph.cli.terminal import shown
from ggmlgraph.cli.told import told
from ggmlgraph.core.limits import Limits
from ggmlgraph.data.corpus import open_file
from ggmlgraph.errors import DataError
from ggmlgraph.finetuning.attaching import open_with
from ggmlgraph.generation.chat import Conversation, Template
from ggmlgraph.generation.generate import Generator
from ggmlgraph.generation.sampling import Sampling
from ggmlgraph.interchange.ondemand import graph_of

PROMPT = "> "


def command(
    path: Path,
    adapters: tuple[str, ...],
    system: str | None,
    template_file: Path | None,
    predict: int,
    stop: tuple[str, ...],
    ctx: int | None,
    threads: int | None,
    limits: Limits,
    how: Sampling,
) -> None:
    """Talk with a model: each line is a message. Ctrl-C stops an answer, Ctrl-D ends the conversation."""
    runtime, tokenizer = open_with(graph_of(path, told), adapters, threads=threads, ctx=ctx, limits=limits)
    with runtime:
        source = tokenizer.chat_template if template_file is None else "".join(open_file(template_file).chunks())
        if source is None:
            raise DataError("the model has no chat template; give one with --template FILE")
        generator = Generator(runtime, tokenizer)
        for note in generator.notes([]):
            click.echo(note, err=True)
        conversation = Conversation(generator, Template(source, tokenizer), system)
        with suppress(EOFError):
            while True:
                if message := _message():
                    _tell_answer(conversation, message, predict, how, stop)


def _message() -> str:
    """The next line; raises EOFError after the last. Ctrl-C drops what was typed."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.strip()
    import readline  # noqa: F401  (line editing and history for input)

    try:
        return input(PROMPT).strip()
    except KeyboardInterrupt:
        click.echo("\nCtrl-D ends the conversation")
        return ""
    except EOFError:
        click.echo()
        raise


def _tell_answer(conversation: Conversation, message: str, n: int, how: Sampling, stop: tuple[str, ...]) -> None:
    known, answer = conversation.n_forgotten, conversation.answer(message, n, how, stop)
    try:
        for piece in answer:
            if conversation.n_forgotten > known:
                known = conversation.n_forgotten
                click.echo(f"the window is full: the model no longer sees the first {known} messages", err=True)
            click.echo(shown(piece), nl=False)
    except KeyboardInterrupt:
        answer.close()
    click.echo()
    if conversation.full:
        click.echo("the answer ends here, for the window is full", err=True)
