"""The command line: parses, and hands over to one module a command (its function `command`)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core
import typer.main

from aiter_ops.core.decide import Refused
from aiter_ops.core.policy import SettingsError

from .common import UserError, begin, finish

COMMANDS = ("doctor", "ops", "explain", "verify", "inspect", "bench", "run")
"""In the order of help; each is the function `command` of the module of that name, imported when it is asked for."""

_ClickException: Any = typer.BadParameter.__mro__[2]  # newer typer brings its own copy of click


class _Commands(typer.core.TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in COMMANDS if importlib.util.find_spec(f"{__name__}.{name}")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.list_commands(ctx):
            raise UserError(f"{cmd_name}: this build of aiter-ops has no such command", code=1)
        app = typer.Typer(add_completion=False, rich_markup_mode="rich")
        app.command(cmd_name, no_args_is_help=False)(importlib.import_module(f"{__name__}.{cmd_name}").command)
        return typer.main.get_command(app)


def _version(wanted: bool) -> None:
    if wanted:
        import torch

        from aiter_ops import __version__
        from aiter_ops.core.platforms import aiter_facts, version_of_triton

        triton, aiter = version_of_triton() or "not installed", aiter_facts().release or "not installed"
        print(f"aiter-ops {__version__}, torch {torch.__version__}, Triton {triton}, AITER {aiter}")
        raise typer.Exit


app = typer.Typer(cls=_Commands, add_completion=False, rich_markup_mode="rich", no_args_is_help=True)


@app.callback()
def _group(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Versions of what decides, and exit.")
    ] = False,
    svg: Annotated[Path | None, typer.Option(hidden=True, help="Write what the command prints as a picture.")] = None,
) -> None:
    """Operators for LLM inference: AITER on AMD, Triton on any GPU, PyTorch anywhere.

    Exit codes: 0 fine; 1 something requested is not served, or a check failed; 2 usage; 3 the probe itself failed.

    Example: aiter-ops doctor
    """
    begin(svg)


def _run(args: list[str]) -> int:
    try:
        code = typer.main.get_command(app).main(args, prog_name="aiter-ops", standalone_mode=False)
        finish()
        return code if isinstance(code, int) else 0
    except UserError as error:
        return _say(str(error), error.code)
    except SettingsError as error:
        return _say(str(error), 2)
    except Refused as error:
        return _say(str(error), 1)
    except typer.Abort:
        return _say("interrupted", 130)
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return 2
        path = getattr(getattr(error, "ctx", None), "command_path", "aiter-ops")
        return _say(f"{error.format_message()} (see {path} --help)", 2)


def _say(message: str, code: int) -> int:
    print(f"aiter-ops: {' '.join(message.split())}", file=sys.stderr)
    return code


def main(args: list[str] | None = None) -> NoReturn:
    """Run a command line (default: of this process) and exit with one of the codes above; user errors are one line."""
    try:
        code = _run(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader went away, as in `aiter-ops ops | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = _say("interrupted", 130)
    except Exception:
        traceback.print_exc()
        code = _say("the command itself failed, as shown above; this is not an answer about your machine", 3)
    sys.exit(code)
