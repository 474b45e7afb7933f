"""Ctrl-C ends a script at once and without a traceback, with the exit status that shells expect.

An exception would be lost where nobody can catch it, as in what JAX does at garbage collection,
and the run would not stop.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def leave(message: str, status: int) -> NoReturn:
    """End this process now.

    An ordinary exit would wait for processes that may be dead, and minutes for a failed save.
    """
    with contextlib.suppress(RuntimeError):  # a signal came while it was being flushed
        sys.stdout.flush()
    os.write(sys.stderr.fileno(), f"{message}\n".encode())
    os._exit(status)


def answer_interrupts(say: Callable[[], str] = lambda: "Interrupted.") -> None:
    """Let Ctrl-C end this process at once, with what `say` returns as its last words."""

    def answer(*_: object) -> None:
        # A progress bar has hidden the cursor, and left it in its own line.
        restored = "\x1b[?25h\n" if sys.stderr.isatty() else ""
        leave(f"{restored}{say()}", 130)

    signal.signal(signal.SIGINT, answer)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__,
        epilog="A part of the other scripts, which import it; by itself it does nothing.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    print("A part of the other scripts; see --help.")
