"""What every command shares: one JSON object or a table, progress on standard error, one line per error.

Standard output of ``--json`` holds exactly one object (of ``dynome tail``, one per line); of a failed call it is
``{"error": {"type", "message", "exit_code"}}``. Without ``--json`` an error is one line on standard error. Exit codes:
0 done, 1 the data is at fault, 2 the call is.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dynome_recorder.errors import DynomeError, MissingExtraError

__all__ = ["CommandGroup", "ProgressCallback", "json_option", "show", "show_progress", "stream_lines", "to_json"]

ProgressCallback: TypeAlias = Callable[[str, int, int], None]
"""Called as ``progress(description, done, total)``."""

EXTRA_OF_MODULE = {"torch": "torch", "gtda": "giotto", "gph": "giotto"}
"""Which extra brings a module; every other missing module comes with "analysis"."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")


def to_json(value: Any) -> Any:
    """Return a value as JSON holds it: NaN and infinities become null, numpy numbers and arrays become plain."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (str, bytes)):
        return [to_json(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def show(document: Mapping[str, Any], *, as_json: bool, table: Callable[[], RenderableType]) -> None:
    """Print the result of a command.

    Parameters
    ----------
    document
        The whole result.
    as_json
        Print `document` as one JSON object.
    table
        Makes what a person sees instead.
    """
    if as_json:
        click.echo(json.dumps(to_json(document), allow_nan=False))
        return
    # Piped output has no width of its own; 80 columns would break paths in two.
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table())


@contextlib.contextmanager
def stream_lines() -> Iterator[Callable[[Any], None]]:
    """Yield what writes one line at once: a text as it is, anything else as JSON.

    Ctrl-C, and a reader that has seen enough (``dynome tail RUN | head``), end the block quietly.
    """

    def write(line: Any) -> None:
        text = line if isinstance(line, str) else json.dumps(line, allow_nan=False)
        click.echo(text)  # flushes

    try:
        yield write
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # Python flushes standard output once more at exit, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def show_progress() -> Iterator[ProgressCallback]:
    """Yield a progress callback that draws bars on standard error when that is a terminal, one bar per description."""
    if not sys.stderr.isatty():
        yield lambda description, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def update(description: str, done: int, total: int) -> None:
            if description not in tasks:
                tasks[description] = progress.add_task(description, total=total)
            progress.update(tasks[description], completed=done, total=total)

        yield update


class CommandGroup(click.Group):
    """A click group that ends every failure in one line and an exit code, never in a traceback.

    An unexpected exception is a bug of ours; its traceback is shown where ``DYNOME_TRACEBACK`` is set.
    """

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Run a command line and exit."""
        arguments = sys.argv[1:] if args is None else list(args)
        as_json = "--json" in arguments
        extra["standalone_mode"] = False
        try:
            sys.exit(_exit_code(super().main(args=arguments, prog_name=prog_name, **extra)))
        except click.ClickException as error:
            _fail(error.format_message(), kind="UsageError", exit_code=2, as_json=as_json)
        except DynomeError as error:
            _fail(str(error), kind=type(error).__name__, exit_code=error.exit_code, as_json=as_json)
        except ModuleNotFoundError as error:
            missing = missing_extra((error.name or "").partition(".")[0])
            _fail(str(missing), kind=type(missing).__name__, exit_code=missing.exit_code, as_json=as_json)
        except (click.Abort, KeyboardInterrupt):
            _fail("interrupted.", kind="Interrupted", exit_code=130, as_json=as_json)
        except Exception as error:
            if os.environ.get("DYNOME_TRACEBACK"):
                raise
            message = (
                f"internal error: {type(error).__name__}: {error} (set DYNOME_TRACEBACK=1 and report what it shows)"
            )
            _fail(message, kind=type(error).__name__, exit_code=1, as_json=as_json)


def missing_extra(module: str) -> MissingExtraError:
    """Return the error that says which extra brings a module."""
    extra = EXTRA_OF_MODULE.get(module, "analysis")
    return MissingExtraError(f'this command needs {module}, which is not installed: pip install "dynome[{extra}]"')


def _exit_code(result: Any) -> int:
    """Return the exit code of a finished command: what it returned when that is a number."""
    return result if isinstance(result, int) else 0


def _fail(message: str, *, kind: str, exit_code: int, as_json: bool) -> None:
    line = " ".join(message.split())
    if as_json:
        click.echo(json.dumps({"error": {"type": kind, "message": line, "exit_code": exit_code}}))
    else:
        click.echo(f"dynome: error: {line}", err=True)
    sys.exit(exit_code)
