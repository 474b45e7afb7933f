"""What these recipes share as commands: `--help`, and Ctrl-C without a traceback."""

import argparse
import os
import signal


def begin(description):
    """Parse the command line, which has no options, and let Ctrl-C end the run at once."""
    argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))


if __name__ == "__main__":
    begin(f"{__doc__}\n\nA part of the others: it does nothing by itself.")
    print("A part of the others; see --help.")
