"""The program: finds the command, runs it, and turns whatever comes of it into one exit status."""

import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import click

from ckptshrink.version import __version__
from ckptshrink_cli import exit_codes, streams
from ckptshrink_cli.reporting import NAME, report
from ckptshrink_cli.streams import Run, say

COMMANDS: Final[dict[str, str]] = {
    "inspect": "List the tensors of checkpoints, and what each of them is.",
    "check": "Say what is wrong with files, without loading them.",
    "plan": "Show what would become of every tensor.",
    "compress": "Write a smaller checkpoint.",
    "verify": "Prove that an artefact is what its manifest says.",
    "restore": "Write the dense checkpoint again, from an artefact alone.",
    "eval": "Score models on a task, alone, beside a baseline, or in a sweep.",
    "gate": "Decide whether a smaller model is good enough beside its baseline.",
    "batch": "Compress, verify, score and gate a whole zoo of checkpoints.",
    "bench": "Measure how much faster a model runs as it is stored than dense.",
    "clean": "Remove what killed runs left behind.",
    "completion": "Print the script that completes commands in a shell.",
}
"""Each command and its help in one line, so that the list of them imports none of them."""


class LazyGroup(click.Group):
    """Commands that are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"ckptshrink_cli.commands_{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one is close."""
        name = args[0] if args else ""
        if name not in COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(COMMANDS)}"
            ctx.fail(f"no command {name!r}{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    name=NAME,
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="""Rewrite saved LSTM checkpoints into smaller ones by low-rank factorization, and prove
    that they still hold what they should.

    \b
      ckptshrink inspect elmo.hdf5
      ckptshrink compress elmo.hdf5 --target Wh --rank 400
      ckptshrink verify elmo.shrunk --source elmo.hdf5

    Data goes to standard output: a table on a terminal, tab-separated values otherwise, JSON with
    --json. Everything else goes to standard error.
    """,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    epilog="""Exit status: 0 done, 1 the answer is no, 2 usage, 3 input, 4 output, 5 inconclusive,
    6 some models of a batch failed, 70 a bug of ours.""",
)
@click.version_option(__version__, "--version", prog_name=NAME, message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Hold the commands together; without one, say what there is."""
    if ctx.invoked_subcommand is None:
        say(*ctx.get_help().splitlines())
        ctx.exit(exit_codes.USAGE)


def entry() -> None:
    """Run the program on the arguments it was started with, and leave with its exit status."""
    streams.prepare()
    with _stopped_by_signals():
        status = run(sys.argv[1:])
    parts = sys.modules.get("ckptshrink.io.part_folder")  # not imported: then there are none
    if parts is not None:
        parts.discard_living()
    if status == exit_codes.SIGNALLED + signal.SIGINT:
        # CPython ends itself by SIGINT, whatever the status, if the interrupt passed through an
        # exec() on its way here, such as the one that makes a dataclass; seen in 2 of 100 runs
        os._exit(status)  # nothing is buffered: both streams are flushed line by line
    sys.exit(status)


def run(args: Sequence[str]) -> int:
    """Run the program and return its exit status; no error leaves it.

    Parameters
    ----------
    args : sequence of str
        The command and its arguments.
    """
    state = Run()
    try:
        status: Any = main.main(list(args), prog_name=NAME, standalone_mode=False, obj=state)
    except (KeyboardInterrupt, click.Abort):
        say(f"{NAME}: interrupted")
        return exit_codes.SIGNALLED + signal.SIGINT
    except exit_codes.Stopped as error:
        say(f"{NAME}: stopped by signal {error.number}")
        return exit_codes.status_of(error)
    except Exception as error:  # the outermost line: what nobody foresaw is a bug, and says so
        report(error, state)
        return exit_codes.status_of(error)
    return status if isinstance(status, int) else exit_codes.DONE


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that what was staged is removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise exit_codes.Stopped(number)

    # one that was set to be ignored stays so: nohup means it
    caught = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_DFL]
    for number in caught:
        signal.signal(number, stop)
    hook, sys.unraisablehook = sys.unraisablehook, _sent_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


def _sent_again(lost: "sys.UnraisableHookArgs") -> None:
    """Send a signal again whose exception was lost: it came while an object was being removed.

    Python goes on after an exception in there, and so would a run that was asked to end.
    """
    error = lost.exc_value
    if isinstance(error, exit_codes.Stopped | KeyboardInterrupt):
        number = error.number if isinstance(error, exit_codes.Stopped) else signal.SIGINT
        # later, and so elsewhere: here its exception would be lost once more
        again = threading.Timer(0.02, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)
