"""The command line `ggmlgraph`: the group of the commands that commands.py declares, and where every error ends.

Exit status: 0 success, a run that a signal has it save and stop included; 2 for a command line that makes no sense; 1
for every other error, faults of our own too. An error is one line on stderr; GGMLGRAPH_DEBUG=1 shows the traceback too.
A reader of our output that leaves early (`| head`) ends the command quietly with 1.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click

from ggmlgraph import __version__
from ggmlgraph.cli.commands import COMMANDS
from ggmlgraph.errors import GGError, UsageError, escaped

PACKAGE = Path(__file__).resolve().parents[1]
DEBUG = "GGMLGRAPH_DEBUG"


class InOrder(click.Group):
    """Lists its commands as they are declared."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=InOrder, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="ggmlgraph %(version)s")
def group() -> None:
    """Write a network in Python, export it as a ggml compute graph, train it on a CPU."""


def run(arguments: Sequence[str]) -> int:
    """One command line; its exit status. Errors are printed, none is raised."""
    try:
        if any("\0" in argument for argument in arguments):
            raise UsageError("an argument has a NUL character, which no name of a file can have")
        result = group.main(list(arguments), prog_name="ggmlgraph", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.Abort:
        return _report("interrupted", 130)
    except KeyboardInterrupt:
        return _report("interrupted", 130)
    except BrokenPipeError:
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
        return _report(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error), 1)
    except Exception as error:
        return _report(_fault(error), 1)


def _fault(error: Exception) -> str:
    """What nobody foresaw, and where it happened, for whoever mends it."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if PACKAGE in Path(frame.filename).parents]
    where = f" at {Path(ours[-1].filename).relative_to(PACKAGE)}:{ours[-1].lineno}" if ours else ""
    return f"a fault of ggmlgraph{where}: {type(error).__name__}: {error}; {DEBUG}=1 shows the traceback, to report it"


def _report(message: str, status: int) -> int:
    with suppress(OSError):  # nobody listens
        if os.environ.get(DEBUG) == "1" and sys.exc_info()[0] is not None:
            traceback.print_exc()
        print("ggmlgraph: error: " + escaped(" ".join(message.split())), file=sys.stderr, flush=True)
    return status


def _open_standard_streams() -> None:
    """Those that the caller has closed lead nowhere; else the next file opened would take the place of one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  (till the end)


def _flush_output() -> None:
    """What a stream that takes no more has not taken goes nowhere, so that the flush at exit is quiet."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main() -> NoReturn:
    """The console script."""
    _open_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # generated text has characters that not every terminal has
    status = run(sys.argv[1:])
    _flush_output()
    if status and "mpi4py.MPI" in sys.modules:
        from ggmlgraph.cluster.mpi import abort

        abort(status)
    sys.exit(status)
