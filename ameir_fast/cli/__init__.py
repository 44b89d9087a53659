"""The ``ameir-fast`` command.

Nothing heavy is imported here: a command imports what it needs when it runs, so that ``--help`` and
mistakes in options answer at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import typer

from ..errors import InputError
from . import prepare, run, tools
from .common import INTERRUPTED, Interrupted, one_line

app = typer.Typer(
    name="ameir-fast",
    help=(
        "Search, train and measure recommendation models (AMEIR, IJCAI 2021).\n\n"
        "From ratings to a scored model, in two commands:\n\n"
        "  ameir-fast prepare movielens --output data/movielens-100k\n\n"
        "  ameir-fast search --data data/movielens-100k --run runs/first\n\n"
        "Each command explains itself: ameir-fast COMMAND --help. Mistakes end with one line and exit "
        "code 2; Ctrl-C ends with exit code 130 and says how to go on."
    ),
    add_completion=False,
    no_args_is_help=False,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

# What typer calls a usage error is click's, wherever this version of typer keeps its click.
_UsageProblem = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


@app.callback()
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and stop.", is_eager=True),
) -> None:
    if version:
        from .. import __version__

        print(f"ameir-fast {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit()


for _command in (
    run.search,
    run.train,
    run.evaluate,
    run.report,
    tools.doctor,
    tools.profile,
    tools.export,
):
    app.command()(_command)
app.add_typer(prepare.app, name="prepare")
app.add_typer(tools.bench, name="bench")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    0: done; 1: a fault of the program (with a traceback); 2: bad input, bad options or an error of the
    operating system such as a full disk (one line ``error: …`` on standard error); 130: interrupted.
    """
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = app(
            args=None if arguments is None else list(arguments), standalone_mode=False, prog_name="ameir-fast"
        )
    except InputError as error:
        return _fail(str(error))
    except _UsageProblem as problem:
        context = getattr(problem, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return _fail(problem.format_message().rstrip(".") + hint)
    except BrokenPipeError:
        # The reader has gone (`ameir-fast … | head`). Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(_os_message(error))
    except Interrupted:
        return INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    # In this mode typer returns the code of an Exit, and a command's own return value otherwise (None for
    # all of ours).
    if result == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return result if isinstance(result, int) else 0


def _fail(message: str) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return 2


def _os_message(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = f"the disk is full ({reason})"
    named = error.filename2 or error.filename
    return f"{named}: {reason}" if named is not None else reason


if __name__ == "__main__":
    main()
