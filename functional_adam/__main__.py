"""`python -m functional_adam`: checks that Adam is exact on this device and measures its cost.

Prints the error of an update against the paper's formulas, whether a step compiles once and reuses
its memory, the bytes and the time of each moment format, and a verdict.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from functional_adam._kernels import native
from functional_adam._kernels.choice import mode
from functional_adam._watch import selfcheck as check

NOTE = """\
Error of one update against Adam's Algorithm 1, in units of one rounding error of the step
in that dtype (float32: 2**-24): rms over all coordinates at the worst step / maximum."""


def versions() -> dict[str, str]:
    """The versions of the packages that matter here."""
    found = {"python": platform.python_version()}
    for name in ("functional_adam", native.PACKAGE, "jax", "jaxlib", "optax", "torch"):
        if importlib.util.find_spec(name):
            try:
                found[name] = version(name)
            except PackageNotFoundError:  # on the path, but not installed
                found[name] = "unknown"
    if native.PACKAGE in found and mode() != "native":
        found[native.PACKAGE] += " (off)"
    return found


def errors(report: dict[str, Any], say: Any) -> list[str]:
    """Fill in the errors; returns what is wrong with those of this package."""
    say(f"\n{NOTE}\n")
    names = list(check.libraries())
    say(f"{'gradients':10} {'b1, b2':12}" + "".join(f"{name:>18}" for name in names))
    wrong = []
    for of in check.PRECISIONS:
        found = list(check.errors(of))
        report["errors"] += [error._asdict() for error in found]
        for i in range(0, len(found), len(names)):
            row = found[i : i + len(names)]
            cells = "".join(f"{f'{e.rms:,.1f} / {e.worst:,.0f}':>18}" for e in row)
            say(f"{of.dtype:10} {f'{row[0].b1}, {row[0].b2}':12}{cells}")
            if not (row[0].rms <= of.rms and row[0].worst <= of.worst):  # NaN is wrong too
                wrong.append(f"{of.dtype} updates have errors above {of.rms} / {of.worst}")
    return wrong


def costs(report: dict[str, Any], say: Any) -> list[str]:
    """Fill in the cost of each format; returns what is wrong with it."""
    found = {moments: measured(moments) for moments in check.FORMATS}
    rows = {moments: row for moments, (row, _) in found.items()}
    for timing in check.timings():
        rows[timing.moments] |= timing._asdict()
    report["formats"] = list(rows.values())
    say("\nA training step with 2**22 float32 parameters, by moment format: rms error of updates")
    say("relative to their size, programs compiled in ten steps, share of donated memory that is")
    say("reused, bytes of state per parameter, time relative to Optax's step, and memory")
    say("bandwidth (bytes that a step must move per second) relative to a copy.\n")
    heads = ("error", "programs", "reused", "state bytes", "time / Optax", "bandwidth")
    say(f"{'moments':10}" + "".join(f"{head:>16}" for head in heads))
    for moments, row in rows.items():
        ratio = "no Optax" if row["to_optax"] is None else f"{row['to_optax']:.2f}"
        cells = (f"{row['error']:.1g}", row["programs"], f"{row['reused']:.0%}")
        cells = (*cells, f"{row['state_bytes']:.2f}", ratio, f"{row['of_copy']:.0%}")
        say(f"{moments:10}" + "".join(f"{cell:>16}" for cell in cells))
    return [problem for _, wrong in found.values() for problem in wrong]


def measured(moments: str) -> tuple[dict[str, Any], list[str]]:
    """A format's row without times, and what is wrong with it."""
    error, stays = check.coarseness(moments)
    programs, reused = check.compilations_and_donation(moments)
    found, said = check.state_bytes(moments)
    wrong, most = [], check.COARSENESS[moments]
    if not error <= most:  # NaN is wrong too
        wrong.append(f"{moments}: updates have a relative error of {error:.2g}, above {most}")
    if not stays:
        wrong.append(f"{moments}: a NaN gradient is lost (does XLA use fast math?)")
    if programs != 1:
        wrong.append(f"{moments}: ten steps compiled {programs} programs")
    if reused != 1:
        wrong.append(f"{moments}: only {reused:.0%} of the donated memory was reused")
    if found != said:
        wrong.append(f"{moments}: {found} bytes of state per parameter, not {said}")
    row = {"error": error, "programs": programs, "reused": reused, "state_bytes": found}
    return row, wrong


def finite(x: Any) -> Any:
    """`x` with None for infinity and NaN, which JSON cannot express."""
    if isinstance(x, dict):
        return {k: finite(v) for k, v in x.items()}
    if isinstance(x, list):
        return [finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def main() -> int:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(
        prog="python -m functional_adam",
        description=(__doc__ or "").partition("\n")[0],
        epilog="Takes about 20 seconds. Exit status: 0 good, 1 something is wrong, 2 no device, "
        "130 interrupted.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead (null: not finite)"
    )
    parser.add_argument("--version", action="version", version=versions()["functional_adam"])
    args = parser.parse_args()
    say: Any = (lambda _: None) if args.json else lambda text: print(text, flush=True)
    try:
        device = jax.devices()[0]
    except Exception as error:  # of several types: JAX asserts if a CUDA plugin is missing
        wanted: Any = getattr(jax.config, "jax_platforms")  # noqa: B009 (not in its annotations)
        asked = f" for JAX_PLATFORMS={wanted}" if wanted else ""
        print(
            f"JAX found no device{asked}: {str(error) or type(error).__name__}\n"
            "Unset JAX_PLATFORMS, or install the jaxlib for your device.",
            file=sys.stderr,
        )
        return 2
    report: dict[str, Any] = {
        "device": f"{device.device_kind} ({device.platform}, {jax.device_count()} in total)",
        "versions": versions(),
        "errors": [],
    }
    say(report["device"] + "; " + ", ".join(f"{k} {v}" for k, v in report["versions"].items()))
    wrong = errors(report, say) + costs(report, say)
    report["wrong"] = wrong
    say("\nWRONG: " + "; ".join(wrong) if wrong else "\nGOOD: exact, one program, no copies.")
    if args.json:
        print(json.dumps(finite(report), indent=2, allow_nan=False))
    return 1 if wrong else 0


if __name__ == "__main__":
    # Ctrl-C ends the program without a traceback, even where an exception would be lost.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    sys.exit(main())
