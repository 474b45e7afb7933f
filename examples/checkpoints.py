"""Checkpoints that a run can trust: Orbax writes them, a digest of `to_state_dict` verifies them.

Orbax writes while training goes on, and never takes a half-written checkpoint for a complete one.
It does not notice a bit that changed on the disk, and does not fall back from a damaged checkpoint
to the one before. This module does both. All processes must see the same directory.
"""

import argparse
import functools
import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from interrupts import answer_interrupts
from jax.experimental import multihost_utils

import functional_adam as fa


def _say_unless_late(say: Callable[[Any], None], what: Any) -> None:
    """Print an exception that nobody could catch, except for one kind."""
    # After a failed read, TensorStore's other reads find no event loop to report to.
    if "Event loop is closed" not in str(what.exc_value):
        say(what)


sys.unraisablehook = functools.partial(_say_unless_late, sys.unraisablehook)
KEPT = 3  # checkpoints to keep, so that two may be damaged


class CheckpointError(Exception):
    """The run cannot resume from the checkpoints in the directory; the message says why."""


class Saved(NamedTuple):
    """What a checkpoint holds."""

    step: int
    tree: Any
    notes: dict[str, Any]


def whole(tree: Any) -> Any:
    """The whole tree as NumPy arrays on this host, even if several processes share its arrays."""
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def digest_of(tree: Any, notes: dict[str, Any]) -> str:
    """SHA-256 over every number's bits, dtype, shape and name, and over the notes."""
    bits = fa.to_state_dict(tree)["functional_adam.sha256"].tobytes()
    return hashlib.sha256(bits + json.dumps(notes, sort_keys=True).encode()).hexdigest()


def reason_of(error: Exception) -> str:
    """The end of the error's message, where TensorStore and the system say what was wrong."""
    text = re.sub(r"\[tensorstore_spec=.*|\[os_error_code.*", "", " ".join(str(error).split()))
    return text.rstrip(" .") if len(text) < 160 else f"... {text[-150:].rstrip(' .')}"


class Checkpoints:
    """A directory of checkpoints. Each holds a tree of arrays, and notes that JSON can store.

    Each process reads and verifies by itself. All processes must save together.
    """

    def __init__(
        self, directory: Path, settings: dict[str, Any], say: Callable[[str], Any] = print
    ):
        self.directory = directory.resolve()  # Orbax refuses relative paths
        self.settings = settings
        self.say = say
        self.good: int | None = None  # the newest step known to be whole
        self.failed: int | None = None  # the newest step that could not be saved
        self.pending: int | None = None
        self.manager: ocp.CheckpointManager | None = None
        for name in ("absl", "asyncio"):  # Orbax would log a stack trace for what `say` reports
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def restore(self, target: Any) -> Saved | None:
        """The newest good checkpoint, in NumPy arrays; None if there are no checkpoints.

        Damaged ones are put aside. `target` is a tree of arrays or shapes like the one to read.
        """
        steps = [int(path.name) for path in self._listed() if path.name.isdigit()]
        found, refused = None, []
        for step in sorted(steps, reverse=True):
            try:
                found = self.read(step, target)
                break
            except Exception as error:  # Orbax and TensorStore raise many kinds
                self.say(f"Refused the checkpoint of step {step}: {reason_of(error)}")
                refused.append(step)
        if refused and found is None:
            raise CheckpointError(
                f"No checkpoint in {self.directory} is good; to start over, move it away."
            )
        if found and found.notes["settings"] != self.settings:
            raise CheckpointError(f"The checkpoint has other settings: {found.notes['settings']}")
        self._agree(found)
        if jax.process_index() == 0:
            for step in refused:
                self._put_aside(step)
        self.good = found.step if found else None
        return found

    def save(self, step: int, tree: Any, notes: dict[str, Any]) -> None:
        """Start to write a checkpoint, after waiting for the one before to finish."""
        self.finish()
        notes = {**notes, "settings": self.settings}
        notes = {"notes": notes, "digest": digest_of(whole(tree), notes)}
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(tree), notes=ocp.args.JsonSave(notes)
        )
        self.pending = step
        self._try(lambda: self._opened().save(step, args=args))

    def finish(self) -> None:
        """Wait until the pending checkpoint is written; report it if that failed."""
        if self.pending is not None:
            self._try(lambda: self._opened().wait_until_finished())
        if self.pending is not None:
            self.good, self.pending = self.pending, None

    def answer_interrupts(self) -> None:
        """Let Ctrl-C end this process at once, and print where the run can go on."""
        answer_interrupts(lambda: f"Interrupted. The same command goes on from {self.left()}.")

    def left(self) -> str:
        """Where the run can go on from."""
        # A checkpoint gets its final name once it is complete, perhaps before `finish` is called.
        named = self.pending is not None and (self.directory / str(self.pending)).is_dir()
        newest = self.pending if named else self.good
        return "the beginning" if newest is None else f"step {newest}"

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:
            message = f"Step {self.pending} could not be saved: {reason_of(error)}."
            if jax.process_count() > 1:  # the other processes wait for this one's part
                raise OSError(message) from error
            self.failed, self.pending, self.manager = self.pending, None, None
            self.say(
                f"{message} Training goes on; if it stopped, it could go on from {self.left()}."
            )

    def _opened(self) -> ocp.CheckpointManager:
        if self.manager is None:  # at first, and after a failure, which makes a manager unusable
            options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, cleanup_tmp_directories=True)
            self.manager = ocp.CheckpointManager(self.directory, options=options)
        return self.manager

    def _listed(self) -> list[Path]:
        return list(self.directory.iterdir()) if self.directory.exists() else []

    def read(self, step: int, target: Any) -> Saved:
        """Read a checkpoint in this process alone; raise if any bit has changed."""
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"read-{me}"
        )

        def part(name: str, handler: Any, args: Any) -> Any:
            handler = handler(multiprocessing_options=alone)
            with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
                return reader.restore(self.directory / str(step) / name, args=args)

        notes = part("notes", ocp.JsonCheckpointHandler, ocp.args.JsonRestore())
        like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), target)
        args = ocp.args.StandardRestore(like)
        tree = part("arrays", ocp.StandardCheckpointHandler, args)
        if digest_of(tree, notes["notes"]) != notes["digest"]:
            raise ValueError("its numbers are not those that were saved (SHA-256)")
        return Saved(step, tree, notes["notes"])

    def _agree(self, found: Saved | None) -> None:
        """Raise unless all processes found the same checkpoint, in the same directory."""
        steps = multihost_utils.process_allgather(np.int32(found.step if found else -1))
        if len(set(np.ravel(steps).tolist())) > 1:
            raise CheckpointError(
                f"Processes disagree on the newest good checkpoint in {self.directory}."
            )

    def _put_aside(self, step: int) -> None:
        """Rename a refused checkpoint, since its step will be saved again."""
        path, number = self.directory / f"refused-{step}", 1
        while path.exists():
            path, number = self.directory / f"refused-{step}-{number}", number + 1
        (self.directory / str(step)).rename(path)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__,
        epilog="A module of train_digits.py and train_distributed.py: use their --checkpoint.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    print("A module of train_digits.py and train_distributed.py; see --help.")
