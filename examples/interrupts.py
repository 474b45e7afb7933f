"""Ctrl-C ends a script at once and without a traceback, with the exit status that shells expect.

A KeyboardInterrupt can be lost where nobody can catch it, for example in code that JAX runs at
garbage collection. Then the run would not stop.
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

    An ordinary exit would wait for processes that may be dead, and for minutes for a failed save.
    """
    with contextlib.suppress(RuntimeError):  # the signal came during another flush
        sys.stdout.flush()
    os.write(sys.stderr.fileno(), f"{message}\n".encode())
    os._exit(status)


def answer_interrupts(say: Callable[[], str] = lambda: "Interrupted.") -> None:
    """Let Ctrl-C end this process at once; it prints what `say` returns."""

    def answer(*_: object) -> None:
        # Show the cursor, which a progress bar has hidden, and leave the line of the bar.
        restored = "\x1b[?25h\n" if sys.stderr.isatty() else ""
        leave(f"{restored}{say()}", 130)

    signal.signal(signal.SIGINT, answer)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__,
        epilog="The other scripts import this module; by itself it does nothing.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    print("A module of the other scripts; see --help.")
