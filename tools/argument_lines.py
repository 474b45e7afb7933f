"""What each hyperparameter does, written once, and written from here into every docstring.

After a change in this file, `python tools/argument_lines.py --write` brings the "Args:" sections of
the factories, `init` and `update` up to date; `--check` says which are not. A new argument needs
a line in `LINES` (or in `OWN`, if it is described in its docstring alone), a new factory an empty
"Args:" section. A `scale_by_*` refers to its optimizer and has no such section.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import functional_adam as fa

ROOT = Path(__file__).resolve().parents[1]

LINES = """
learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0.
b1: How much of m, the running average of gradients, is kept each step, in [0, 1).
b2: How much of v, the running average of squared gradients, is kept each step, in [0, 1).
eps: Added to the denominator, >= 0. It shortens the steps where gradients are small.
eps_root: Added under the square root, >= 0. The paper has none.
mu_dtype: Dtype of m in the state, such as "bfloat16". None (default): at least float32.
nu_dtype: Dtype of v in the state, always real. None (default): at least float32.
moments: How m and v are stored: "full" (default), "bfloat16" or "int8", which take 8, 4 and 2 bytes
    per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
    "compensated" or "split". All but the first keep small steps; `update` then needs `params`.
nesterov: True looks one step ahead (Nesterov momentum): m_hat is then that of `nadam`.
l2: L2 regularization >= 0, or a schedule: adds l2 * theta to the gradient; `update` then needs
    `params`. None (default): no regularization.
weight_decay: Decoupled weight decay >= 0, or a schedule. The learning rate multiplies it. Unless it
    is 0, `update` needs `params`.
mask: Which parameters decay: a tree of booleans (or a prefix of one), or a function from the
    parameters to such a tree. None (default): all of them.
independent_weight_decay: True: the learning rate does not multiply `weight_decay`.
eps_placement: Where eps is added: "after_correction" (default) to sqrt(v_hat), or
    "before_correction" to sqrt(v), as in TensorFlow and Keras.
momentum_decay: psi >= 0 of Dozat's momentum schedule; PyTorch's default is 0.004. None (default):
    the simplified form.
threshold: Least rho to use v at, >= 4; 5 (default) in Optax and PyTorch, 4 in the paper.
initial_accumulator_value: What every element of m and v starts at, >= 0.
use_clipping: True (default) clips x to [-c, c].
clip_value_fn: The bound c: a schedule `count -> c`, or one number >= 0. The default is
    count**(1/4). Clipping keeps the phase of a complex x.
b3: How much of m_slow is kept each step, in [0, 1), or a schedule `count -> b3`.
a: Factor of the arctangent, >= 0. The default is 4 / pi, with which d = 1 for a gradient that never
    changes, if b = 1.
b: Factor of sqrt(v_hat) in the arctangent, >= 0. A large one with an equally large `a` is Adam; a
    small one makes steps that go by the sign of m_hat.
alpha: Weight of m_slow in the step, >= 0, or a schedule `count -> alpha`.
bias_correction_mu: False leaves m uncorrected: c1 = 1.
bias_correction_nu: False leaves v uncorrected: c2 = 1.
maximum: What v_max is the maximum of: "after_correction" (default) of v / c2, or
    "before_correction" of v.
overrides: Hyperparameters for some leaves: a list of (regular expression, dict of arguments), of
    which the first one found in a leaf's path, such as "layers/0/bias", wins; or a function (path,
    leaf) -> dict (see docs/per-layer.md). None (default): all leaves have the same.
"""

# Where an argument means something else.
REPLACED = """
adabelief.moments adamax.moments adamaxw.moments adopt.moments laprop.moments: How m and v are
    stored: "full" (default) or "bfloat16", which take 8 and 4 bytes per float32 parameter; or a
    `Full` or `BFloat16` object. "int8" is refused.
simplified_ademamix.moments yogi.moments: How m and v are stored:
    "full" (default) or "bfloat16", which take 8 and 4 bytes per float32 parameter; or a `Full` or
    `BFloat16` object. "int8" is refused.
ademamix.moments amsgrad.moments: How the three moments are stored: "full" (default) or "bfloat16",
    which take 12 and 6 bytes per float32 parameter; or a `Full` or `BFloat16` object. "int8" is
    refused.
adabelief.b2: How much of v, the running average of |g - m|**2, is kept each step, in [0, 1).
adabelief.eps: Added to the denominator, >= 0; `eps_root` alone keeps it from 0 by default.
adabelief.eps_root: Added to v in every step, >= 0, so that v tends to at least eps_root / (1 - b2).
    This is the paper's epsilon.
adamax.b2 adamaxw.b2: How much of v is kept each step, in [0, 1): a gradient t steps ago counts
    b2**t of its size.
adamax.eps adamaxw.eps: Added to |g|, >= 0, as in Optax and PyTorch. The paper has none.
ademamix.mu_dtype: Dtype of m and m_slow in the state, such as "bfloat16". None (default): at least
    float32.
adopt.b1: How much of m, the running average of x, is kept each step, in [0, 1).
laprop.b1: How much of m, the running average of x, is kept each step, in [0, 1).
laprop.eps: Added to the divisor of a gradient, >= 0. It makes x smaller where gradients are small.
simplified_ademamix.b1: How much of m, the sum of gradients, is kept each step, in [0, 1).
simplified_ademamix.alpha: Weight of this step's gradient beside m, >= 0, or a schedule
    `count -> alpha`.
adopt.eps: The least divisor of a gradient, >= 0.
adopt.nesterov: True puts b1 m + (1 - b1) x, with the new m, in place of m in u.
amsgrad.nu_dtype: Dtype of v and v_max in the state, always real. None (default): at least
    float32.
amsgrad.eps_placement: Where eps is added: "after_correction" (default), or (only with
    `maximum="before_correction"`) "before_correction", as in Keras.
init_rows.rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
    "compensated" or "split". All but the first keep small steps.
flush_rows.rounding update_rows.rounding: How a step of a 16-bit parameter is rounded, as it was
    given to `init_rows`: "nearest" (default), "stochastic", "compensated" or "split".
flush_rows.weight_decay update_rows.weight_decay: Decoupled weight decay >= 0, or a schedule. The
    learning rate multiplies it.
lamb.learning_rate: Relative step size >= 0, or a schedule `count -> step size`: each leaf moves by
    learning_rate * |theta|.
lamb.eps: Added to the denominator in d, >= 0. It shortens d where gradients are small.
lamb.weight_decay: Weight decay >= 0, or a schedule. It is a part of d, which the norms scale.
radam.eps_placement: Where eps is added: "after_correction" (default) to sqrt(v_hat), or
    "before_correction" to sqrt(v), as in `torch.optim.RAdam`.
yogi.b2: 1 - b2 is the size of v's steps in units of |g|**2; b2 is in [0, 1).
"""

# What follows the line in `LINES`.
ADDED = """
adabelief.weight_decay adopt.weight_decay amsgrad.weight_decay: None (default): no decay.
radam.weight_decay yogi.weight_decay: None (default): no decay.
init.mu_dtype: That is float64 for float64 parameters and complex for complex ones. Any other dtype
    has at least 16 bits, is complex for complex parameters, and goes with moments="full" alone.
init.nu_dtype: Prefer moments="bfloat16" to a `nu` of 16 bits: in bfloat16 it stops moving where
    b2 >= 0.99, and in float16 small values become 0, which makes steps hundreds of times too long
    (see docs/precision.md).
init.rounding: "compensated" and "split" store what each parameter lacks in `residual`, one byte
    or two per element. See `update`.
init_rows.moments: "int8" needs rows of at least 32 elements.
flush_rows.moments update_rows.moments: It is what was given to `init_rows`.
lamb.mask: The norms scale every leaf, decayed or not.
update.learning_rate: A coordinate moves by about the step size, whatever the size of its gradient.
update.mu_dtype: A state of another dtype is refused. (If `mu` has 16 bits and you did not ask for
    them, most often a cast of the whole state has made it.)
update.nu_dtype: A state of another dtype is refused.
update.moments: A state of another format is refused.
update.mask: A single boolean is refused beside a decay: write `mask=None` or `weight_decay=0.0`.
update.overrides: A rule that matches no leaf is refused here; with a factory, at `init`.
update.nesterov: It is b1 m / (1 - b1**(t+1)) + (1 - b1) g / (1 - b1**t).
update.rounding: "nearest" rounds as `apply_updates` does and loses steps below half a unit of the
    parameter. "stochastic" rounds up or down so that the mean is right. "compensated" rounds to
    nearest and stores the rest in `state.residual`, in 1/256ths of a unit. "split" stores all of
    it: training is then the same, bit for bit, as with float32 weights that are cast in the loss.
    With these three the update is float32, lands exactly on the parameter's grid, and must come
    last in a chain.
update.l2: The sum is the gradient of the loss plus l2/2 |theta|**2, as with `weight_decay` of
    `torch.optim.Adam`.
update.eps_placement: The second is the paper's other form, with both corrections outside:
    `m sqrt(1 - b2**t) / (1 - b1**t) / (sqrt(v + eps_root) + eps)`.
"""

# Arguments of one function each, described in its docstring alone.
OWN = {
    *("cautious.tx", "cautious_weight_decay.tx", "clip_update_rms.tx", "hyperball.tx"),
    *("clip_update_rms.threshold", "hyperball.mask"),
    *("clip_update_rms.stacked", "hyperball.stacked"),
    *("skip_spikes.tx", "skip_spikes.factor", "skip_spikes.window", "skip_spikes.judge"),
    *("skip_spikes.warmup", "skip_spikes.max_consecutive"),
    *("flush_rows.catch_up", "flush_rows.state", "flush_rows.table", "init_rows.table"),
    *("update_rows.catch_up", "update_rows.row_grads", "update_rows.rows"),
    *("update_rows.state", "update_rows.table"),
    "init.params",
    "update.grads",
    "update.params",
    "update.state",
}


def parsed(table: str) -> dict[str, str]:
    """A table of `name: text`, or of several names with one text."""
    entries = re.findall(r"^(\w[\w. ]*): (.*(?:\n {4}.*)*)", table, re.M)
    return {name: " ".join(words.split()) for names, words in entries for name in names.split()}


LINE, REPLACEMENT, ADDITION = parsed(LINES), parsed(REPLACED), parsed(ADDED)
SAME = re.compile(r"The arguments are as in `(\w+)`")


def functions() -> dict[str, Callable[..., Any]]:
    """All public functions that take hyperparameters, or a transformation and give another."""
    found = {name: getattr(fa, name) for name in fa.__all__}
    return {
        name: function
        for name, function in found.items()
        if inspect.isfunction(function)
        and (
            name in ("init", "update", "init_rows", "update_rows", "flush_rows")
            or inspect.signature(function).return_annotation == "GradientTransformation"
        )
    }


def optimizer_of(name: str) -> str | None:
    """Whose arguments a docstring refers to."""
    found = SAME.search(" ".join((inspect.getdoc(functions()[name]) or "").split()))
    return found[1] if found else None


def arguments(name: str) -> list[str]:
    """The arguments that a docstring describes."""
    return [] if optimizer_of(name) else list(inspect.signature(functions()[name]).parameters)


def text(name: str, argument: str) -> str:
    """What the docstring says of an argument that is not in `OWN`."""
    key = f"{name}.{argument}"
    if key in REPLACEMENT:
        return REPLACEMENT[key]
    if argument not in LINE:
        raise ValueError(f"{key} needs a line in LINES of tools/argument_lines.py.")
    return f"{LINE[argument]} {ADDITION.get(key, '')}".rstrip()


def wrapped(argument: str, words: str) -> str:
    """An argument's lines in the source; `code` is not broken."""
    whole = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), f"{argument}: {words}")
    lines = textwrap.wrap(
        whole,
        width=100,
        initial_indent=" " * 8,
        subsequent_indent=" " * 12,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace("\0", " ")


def section(name: str, old: str) -> str:
    """The "Args:" section of a docstring; `old` is its body now, which `OWN` texts stay in."""
    found = dict(re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", old, re.M))
    lines: list[str] = []
    for argument in arguments(name):
        if f"{name}.{argument}" not in OWN:
            lines.append(wrapped(argument, text(name, argument)))
        elif argument in found:
            lines.append(f"        {argument}: {found[argument]}")
        else:
            raise ValueError(f"The docstring of {name} must describe {argument}.")
    return "\n".join(lines)


def docstring(name: str, now: str) -> str:
    """The docstring in the source, with the section that belongs there."""
    new, sections = re.subn(
        r"^ {4}Args:\n((?: {8}.*\n)*)",
        lambda old: f"    Args:\n{section(name, old[1])}\n",
        now,
        flags=re.M,
    )
    if sections != (wanted := int(arguments(name) != [])):
        raise ValueError(f'The docstring of {name} must have {wanted} sections "Args:".')
    return new


def sources() -> dict[Path, list[str]]:
    """The modules, and which of the functions each has."""
    found: dict[Path, list[str]] = {}
    for name, function in functions().items():
        path = Path(inspect.getfile(inspect.unwrap(function))).resolve()
        if not path.is_relative_to(ROOT):  # installed from elsewhere: not to be written to
            raise RuntimeError(f"{path} is not in {ROOT}: run with PYTHONPATH={ROOT}.")
        found.setdefault(path, []).append(name)
    return found


def written(source: str, names: list[str]) -> str:
    """The source of a module, with the docstrings of these functions as they should be."""
    lines = source.splitlines(keepends=True)
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    for node in reversed(nodes):  # upwards, so that line numbers stay true
        if node.name in names:
            doc = node.body[0]
            place = slice(doc.lineno - 1, doc.end_lineno)
            lines[place] = [docstring(node.name, "".join(lines[place]))]
    return "".join(lines)


def main() -> int:
    """Write or check; 1 if a docstring is not what it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="bring the docstrings up to date")
    what.add_argument("--check", action="store_true", help="say which modules are not up to date")
    write = parser.parse_args().write
    changed = 0
    for path, names in sources().items():
        now = path.read_text(encoding="utf-8")
        new = written(now, names)
        if new != now:
            changed += 1
            print(f"{'written' if write else 'not up to date'}: {path.name}")
            if write:
                path.write_text(new, encoding="utf-8")
    return int(changed > 0 and not write)


if __name__ == "__main__":
    sys.exit(main())
