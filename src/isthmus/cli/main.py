"""The command ``isthmus``: what it returns to the shell, and how it says what went wrong."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from isthmus.cli.commands import app
from isthmus.cli.quiet import quieten
from isthmus.errors import IsthmusError
from isthmus.memory import keep_few_kernels

STOPPED = 130
_FULL = {errno.ENOSPC: "no space left on the device", errno.EDQUOT: "the disk quota is used up"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns
    -------
    int
        0 when it did what was asked, 1 when a check found something wrong, 2 when it could not do what was asked,
        130 when it was stopped.
    """
    quieten()
    keep_few_kernels()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _stoppable():
            code = app(given or ["--help"], prog_name="isthmus", standalone_mode=False)
    except IsthmusError as error:
        return _fail(str(error))
    except typer.TyperException as error:
        return _fail(f"{error.format_message().rstrip('.')}; see isthmus --help")
    except KeyboardInterrupt:
        code = STOPPED
    except BrokenPipeError:
        # Whoever read the output has gone; the interpreter would complain once more as it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _FULL:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{_FULL[error.errno]}; make room or choose another folder, then run it again")
    if code == STOPPED:
        print("stopped", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    return 2


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM stop the work the way Ctrl-C does, so that what is under way is tidied up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
