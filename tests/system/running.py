"""Example scripts called as if from a command line, and what their tests share."""

import contextlib
import importlib
import io
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from modes import switched

EXAMPLES = Path(__file__).parents[2] / "examples"
# The environment of a script that is to compile soon and may run slowly.
QUICKLY_COMPILED = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true",
}


def run(script, *args, cwd, **environment):
    """Run a script in a process of its own, as a reader does; return what it printed."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100", **environment}
    environment.pop("FORCE_COLOR", None)  # Rich would take the pipe for a terminal
    command = [sys.executable, EXAMPLES / script, *map(str, args)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def called(script, *args, cwd):
    """This process as if it had been started with the script; modes and signals are put back.

    XLA compiles twice as fast without optimizations; a script runs with them in `run`.
    """
    before = signal.getsignal(signal.SIGINT)
    with (
        pytest.MonkeyPatch.context() as patch,
        switched("jax_enable_x64", False),
        switched("jax_disable_most_optimizations", True),
    ):
        patch.syspath_prepend(script.parent)
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [str(script), *map(str, args)])
        patch.setenv("COLUMNS", "100")
        patch.delenv("FORCE_COLOR", raising=False)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def exit_of(script, *args, cwd, module=None):
    """Run a script or module in this process, which has imported JAX; return its exit status."""
    start = runpy.run_module if module else runpy.run_path
    sys.modules.pop(f"{module}.__main__", None)  # runpy warns of a module imported before
    with called(Path(script), *args, cwd=cwd), pytest.raises(SystemExit) as stopped:
        start(module or str(script), run_name="__main__")
    return stopped.value.code


def example(name):
    """A script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        return importlib.import_module(name)


def status_of(name, *args, cwd):
    """The exit status of a script's `main`, whose compiled functions stay; and what it printed."""
    main, printed = example(name).main, io.StringIO()
    with called(EXAMPLES / f"{name}.py", *args, cwd=cwd), contextlib.redirect_stdout(printed):
        try:
            status = main()
        except SystemExit as stopped:
            status = stopped.code
    return status, printed.getvalue()


def run_here(script, *args, cwd):
    """`run`, in this process."""
    status, printed = status_of(Path(script).stem, *args, cwd=cwd)
    assert not status, printed
    return printed


def assert_png(path):
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def rows_of(output):
    """The cells of every row of the printed tables, headings left out."""
    lines = (line.strip("│").split("│") for line in output.splitlines() if line.startswith("│"))
    return [[cell.strip() for cell in line] for line in lines]


def adam(gradient, theta, steps, rate, b1=0.9, b2=0.999, eps=1e-8, decay=0.0):
    """Algorithm 1 in NumPy: the parameters before each step and after the last.

    `decay` is AdamW's, and may be an array.
    """
    thetas, m, v = [np.float64(theta)], 0.0, 0.0
    for t in range(1, steps + 1):
        g = gradient(thetas[-1], t - 1)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = rate * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        thetas.append(thetas[-1] - step - rate * decay * thetas[-1])
    return thetas
