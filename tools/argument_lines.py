"""What each hyperparameter does, written once, and written from here into every docstring.

After a change in this file, run `python tools/argument_lines.py --write`: it rewrites the "Args:"
sections of the factories, `init` and `update`. `--check` lists the modules that are out of date. A
new argument needs a line in `LINES`, or a name in `OWN` if only its own docstring describes it. A
new factory needs an empty "Args:" section. A `scale_by_*` refers to its optimizer and has none.
Numeric defaults are read from the signatures, and each line ends with its own.
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
learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the first step.
b1: Decay rate of m, the running average of gradients, in [0, 1). m averages over about
    `1 / (1 - b1)` steps.
b2: Decay rate of v, the running average of squared gradients, in [0, 1). v averages over about
    `1 / (1 - b2)` steps.
eps: Added to the denominator to avoid division by zero, >= 0. A larger value shortens the steps
    where gradients are small.
eps_root: Added to the second moment under the square root, >= 0. The paper does not have it.
mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
    parameter's dtype if that is wider.
nu_dtype: Dtype in which v is stored; always real. None (default): float32, or float64 for
    parameters of 64-bit precision.
moments: Storage format of m and v: "full" (default), "bfloat16" or "int8", which take 8, 4 and 2
    bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default), "stochastic",
    "compensated" or "split". "nearest" loses small steps. The other three keep them, and `update`
    then needs `params`. Wider parameters are not affected.
nesterov: True uses Nesterov momentum: m_hat looks one step ahead, as in `nadam`.
l2: L2 regularization, >= 0, or a schedule `count -> l2`. It adds l2 * theta to the gradient, so
    `update` needs `params`. None (default): no regularization.
weight_decay: Decoupled weight decay, >= 0, or a schedule `count -> weight decay`. Each step shrinks
    theta by the fraction learning_rate * weight_decay. Unless it is 0, `update` needs `params`.
mask: Which parameters decay: a tree of booleans, a prefix of one, or a function from the parameters
    to such a tree. None (default): all parameters.
independent_weight_decay: True shrinks theta by the fraction `weight_decay` itself, without the
    factor learning_rate.
eps_placement: Where eps is added: "after_correction" (default) adds it to sqrt(v_hat),
    "before_correction" to sqrt(v), as TensorFlow and Keras do.
momentum_decay: The constant psi >= 0 of Dozat's momentum schedule; PyTorch's default is 0.004. None
    (default): the simplified form.
threshold: Smallest rho at which v is used, >= 4. Optax and PyTorch use 5, the paper 4.
initial_accumulator_value: Initial value of every element of m and v, >= 0.
use_clipping: True (default) clips x to [-c, c].
clip_value_fn: The bound c: a schedule `count -> c`, or a constant >= 0. The default is
    count**(1/4). Clipping keeps the phase of a complex x.
b3: Decay rate of m_slow, the slow average of gradients, in [0, 1), or a schedule `count -> b3`.
a: Factor in front of the arctangent, >= 0. With b = 1, a = 4 / pi (about 1.27) gives d = 1 for a
    gradient that never changes.
b: Factor of sqrt(v_hat) inside the arctangent, >= 0. A large `b` with an equally large `a` gives
    Adam. A small `b` gives steps that depend mostly on the sign of m_hat.
alpha: Weight of m_slow in the step, >= 0, or a schedule `count -> alpha`.
bias_correction_mu: False turns the bias correction of m off: c1 = 1.
bias_correction_nu: False turns the bias correction of v off: c2 = 1.
maximum: What v_max is the running maximum of: "after_correction" (default) takes v / c2,
    "before_correction" takes v.
overrides: Other hyperparameters for some leaves: a list of (regular expression, dict of arguments)
    pairs, or a function (path, leaf) -> dict. A leaf gets the arguments of the first pair whose
    expression is found in its path, such as "layers/0/bias". See docs/per-layer.md. None (default):
    all leaves have the same hyperparameters.
"""

# Arguments whose meaning differs from `LINES`.
REPLACED = """
adabelief.moments adamax.moments adamaxw.moments adopt.moments laprop.moments: Storage format of m
    and v: "full" (default) or "bfloat16", which take 8 and 4 bytes per float32 parameter; or a
    `Full` or `BFloat16` object. "int8" is refused.
simplified_ademamix.moments yogi.moments: Storage format of m and v: "full" (default) or "bfloat16",
    which take 8 and 4 bytes per float32 parameter; or a `Full` or `BFloat16` object. "int8" is
    refused.
ademamix.moments amsgrad.moments: Storage format of the three moments: "full" (default) or
    "bfloat16", which take 12 and 6 bytes per float32 parameter; or a `Full` or `BFloat16` object.
    "int8" is refused.
adabelief.b2: Decay rate of v, the running average of |g - m|**2, in [0, 1).
adabelief.eps: Added to the denominator, >= 0. With the default `eps_root` the denominator is
    positive even without it.
adabelief.eps_root: Added to v in every step, >= 0. In the long run it keeps v at or above
    eps_root / (1 - b2). The paper calls it epsilon.
adamax.b2 adamaxw.b2: Decay rate of v, in [0, 1): a gradient from t steps ago counts with b2**t of
    its size.
adamax.eps adamaxw.eps: Added to |g|, >= 0, as Optax and PyTorch do. The paper does not have it.
ademamix.mu_dtype: Dtype in which m and m_slow are stored, such as "bfloat16". None (default):
    float32, or the parameter's dtype if that is wider.
adopt.b1: Decay rate of m, the running average of x, in [0, 1).
laprop.b1: Decay rate of m, the running average of x, in [0, 1).
laprop.eps: Added to the number that divides the gradient, >= 0. It makes x smaller where gradients
    are small.
simplified_ademamix.b1: Decay rate of m, the sum of gradients, in [0, 1).
simplified_ademamix.alpha: Weight of the current gradient, added to m, >= 0, or a schedule
    `count -> alpha`.
adopt.eps: Lower bound of the number that divides the gradient, >= 0.
adopt.nesterov: True replaces m in u by b1 m + (1 - b1) x, with the new m.
amsgrad.nu_dtype: Dtype in which v and v_max are stored; always real. None (default): float32, or
    float64 for parameters of 64-bit precision.
amsgrad.eps_placement: Where eps is added: "after_correction" (default), or (only with
    `maximum="before_correction"`) "before_correction", as Keras does.
init_rows.rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default),
    "stochastic", "compensated" or "split". "nearest" loses small steps. The other three keep them.
flush_rows.rounding update_rows.rounding: How a 16-bit parameter is rounded when it takes a step, as
    it was given to `init_rows`: "nearest" (default), "stochastic", "compensated" or "split".
flush_rows.weight_decay update_rows.weight_decay: Decoupled weight decay, >= 0, or a schedule `count
    -> weight decay`. Each step shrinks theta by the fraction learning_rate * weight_decay.
lamb.learning_rate: Relative step size, >= 0, or a schedule `count -> step size`. Each leaf moves by
    learning_rate * |theta|.
lamb.eps: Added to the denominator in d, >= 0. A larger value shortens d where gradients are small.
lamb.weight_decay: Weight decay, >= 0, or a schedule `count -> weight decay`. It is part of d, so
    the norms scale it too.
radam.eps_placement: Where eps is added: "after_correction" (default) adds it to sqrt(v_hat),
    "before_correction" to sqrt(v), as `torch.optim.RAdam` does.
yogi.b2: A number in [0, 1) that sets how fast v changes: v moves by (1 - b2) |g|**2 per step.
"""

# Sentences that follow the line in `LINES`.
ADDED = """
adabelief.weight_decay adopt.weight_decay amsgrad.weight_decay: None (default): no decay.
radam.weight_decay yogi.weight_decay: None (default): no decay.
adam.learning_rate adamw.learning_rate update.learning_rate: A parameter moves by about the step
    size, whatever the size of its gradient.
adam.mu_dtype adamw.mu_dtype adam.nu_dtype adamw.nu_dtype: Setting it needs
    moments="full".
init.mu_dtype: Other dtypes must have at least 16 bits, be complex for complex parameters, and need
    moments="full".
init.nu_dtype: Prefer moments="bfloat16" to a 16-bit dtype here. In bfloat16 v stops moving where
    b2 >= 0.99. In float16 small values become 0, which makes steps hundreds of times too long (see
    docs/precision.md).
init.rounding: "compensated" and "split" store the rounding error of each such parameter in
    `residual`: one and two bytes per element. See `update`.
init_rows.moments: "int8" needs rows of at least 32 elements.
flush_rows.moments update_rows.moments: Pass what was given to `init_rows`.
lamb.mask: The norms scale every leaf, whether it decays or not.
update.mu_dtype: The state must have this dtype. (If `mu` has 16 bits and you did not ask for them,
    a cast of the whole state has most likely changed it.)
update.nu_dtype: The state must have this dtype.
update.moments: The state must have this format.
update.mask: A single boolean is refused where anything decays: write `mask=None` or
    `weight_decay=0.0`.
update.overrides: A rule that matches no leaf is refused here; a factory refuses it at `init`.
update.nesterov: m_hat is then b1 m / (1 - b1**(t+1)) + (1 - b1) g / (1 - b1**t).
update.rounding: "nearest" rounds as `apply_updates` does and loses steps smaller than half the
    distance to the next number. "stochastic" rounds up or down so that the mean is right.
    "compensated" rounds to nearest and stores the error in `state.residual`, in 1/256ths of that
    distance. "split" stores all of the error: training is then bit for bit the same as with float32
    master weights that are cast in the loss. With these three the update is float32, moves the
    parameter to a number of its own dtype exactly, and must come last in a chain.
update.l2: The sum is the gradient of the loss plus l2/2 |theta|**2, as with `weight_decay` of
    `torch.optim.Adam`.
update.eps_placement: The second is the paper's other form, with both corrections outside:
    `m sqrt(1 - b2**t) / (1 - b1**t) / (sqrt(v + eps_root) + eps)`.
"""

# Arguments of a single function, described only in its docstring.
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
    """All public functions that take hyperparameters or change a transformation."""
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
    """The optimizer whose arguments a docstring refers to, if any."""
    found = SAME.search(" ".join((inspect.getdoc(functions()[name]) or "").split()))
    return found[1] if found else None


def arguments(name: str) -> list[str]:
    """The arguments that a docstring describes."""
    return [] if optimizer_of(name) else list(inspect.signature(functions()[name]).parameters)


def text(name: str, argument: str) -> str:
    """The description of an argument that is not in `OWN`."""
    key = f"{name}.{argument}"
    if key not in REPLACEMENT and argument not in LINE:
        raise ValueError(f"{key} needs a line in LINES of tools/argument_lines.py.")
    said = [REPLACEMENT.get(key) or LINE[argument], ADDITION.get(key), default(name, argument)]
    return " ".join(words for words in said if words)


def default(name: str, argument: str) -> str:
    """The sentence that states a numeric default; tables state the other defaults."""
    value = inspect.signature(functions()[name]).parameters[argument].default
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return f"Default {value:g}.".replace("e-0", "e-")


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
    """The "Args:" section of a docstring; the texts of `OWN` are read from `old`, its body now."""
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
    """The docstring as it is in the source, with its section brought up to date."""
    new, sections = re.subn(
        r"^ {4}Args:\n((?: {8}.*\n)*)",
        lambda old: f"    Args:\n{section(name, old[1])}\n",
        now,
        flags=re.M,
    )
    if sections != (wanted := int(arguments(name) != [])):
        raise ValueError(f'The docstring of {name} must have {wanted} "Args:" sections.')
    return new


def sources() -> dict[Path, list[str]]:
    """The modules, each with the names of the functions that it defines."""
    found: dict[Path, list[str]] = {}
    for name, function in functions().items():
        path = Path(inspect.getfile(inspect.unwrap(function))).resolve()
        if not path.is_relative_to(ROOT):  # an installed copy must not be written to
            raise RuntimeError(f"{path} is not in {ROOT}: run with PYTHONPATH={ROOT}.")
        found.setdefault(path, []).append(name)
    return found


def written(source: str, names: list[str]) -> str:
    """The source of a module, with the docstrings of these functions brought up to date."""
    lines = source.splitlines(keepends=True)
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    for node in reversed(nodes):  # upwards, so that line numbers stay true
        if node.name in names:
            doc = node.body[0]
            place = slice(doc.lineno - 1, doc.end_lineno)
            lines[place] = [docstring(node.name, "".join(lines[place]))]
    return "".join(lines)


def main() -> int:
    """Write or check; returns 1 if a check finds a docstring that is out of date."""
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
