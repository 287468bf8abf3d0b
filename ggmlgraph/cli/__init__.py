"""The command line `ggmlgraph`: a group whose commands are imported when used, and where every error ends.

Exit status: 0 success, a run stopped by Ctrl-C or SIGTERM included; 2 for a command line that makes no sense; 1 for
every other error. An error is one line on stderr; GGMLGRAPH_DEBUG=1 shows the traceback too. A reader of our output
that leaves early (`| head`) ends the command quietly with 1.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from ggmlgraph import __version__
from ggmlgraph.errors import GGError

COMMANDS = {  # name: one line of help; the command is `command` in the module ggmlgraph.cli.NAME, - as _
    "models": "List models and their published sizes.",
    "export": "Write a model as a graph file.",
    "convert": "Write a checkpoint of another program as a graph file.",
    "export-gguf": "Write a model for llama.cpp.",
    "export-hf": "Write a model for transformers.",
    "train": "Train a graph file on text.",
    "generate": "Continue a text with a trained model.",
    "chat": "Talk with a model.",
    "eval": "Measure how well a model predicts a text, or picks the right answers.",
    "inspect": "Show what is in a graph file.",
    "rewrite": "Write a graph file in another dialect of ggml's format.",
    "bench": "Measure training steps of a graph file.",
    "tokenizer": "Train a tokenizer.",
    "doctor": "Show what this machine offers and which versions are installed.",
    "demo": "Train a small LLaMA on Python's own documentation.",
}


class LazyGroup(click.Group):
    """Knows its commands' names and one-line helps; imports a command only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"ggmlgraph.cli.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="ggmlgraph %(version)s")
def group() -> None:
    """Write a network in Python, export it as a ggml compute graph, train it on a CPU."""


def run(arguments: Sequence[str]) -> int:
    """One command line; its exit status. Errors are printed, none is raised."""
    try:
        result = group.main(list(arguments), prog_name="ggmlgraph", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.Abort:
        return _report("interrupted", 130)
    except KeyboardInterrupt:
        return _report("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit is quiet too
        return 1
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return error.exit_code
    except click.ClickException as error:
        return _report(error.format_message(), error.exit_code)
    except GGError as error:
        return _report(str(error), error.exit_status)
    except MemoryError:
        return _report("out of memory", 1)
    except OSError as error:
        return _report(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)


def _report(message: str, status: int) -> int:
    if os.environ.get("GGMLGRAPH_DEBUG") == "1" and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    print("ggmlgraph: error: " + " ".join(message.split()), file=sys.stderr)
    return status


def main() -> NoReturn:
    """The console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # generated text has characters that not every terminal has
    sys.exit(run(sys.argv[1:]))
