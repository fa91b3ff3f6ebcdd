"""``ckptshrink completion``: print the script that completes commands in a shell."""

import click
from click.shell_completion import get_completion_class

from ckptshrink_cli.declare import Command, refuse
from ckptshrink_cli.streams import emit

_SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    cls=Command,
    help="""Print the script that completes commands in a shell.

    Source it, or put it where the shell looks for completions.
    """,
    example='eval "$(ckptshrink completion bash)"',
)
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(_SHELLS))
def command(shell: str) -> None:
    """Print what click makes for the shell."""
    from ckptshrink_cli.main import main
    from ckptshrink_cli.reporting import NAME

    completion = get_completion_class(shell)
    if completion is None:
        refuse(f"click has no completion for {shell}")
    emit(completion(main, {}, NAME, f"_{NAME.upper()}_COMPLETE").source())
