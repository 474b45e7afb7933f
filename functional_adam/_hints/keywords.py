"""Hints for arguments that a function does not have, such as the names of other libraries.

Except for `explained`, nothing here runs before an error is certain.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from functional_adam._origin import short

P = ParamSpec("P")
R = TypeVar("R")


class Signature(inspect.Signature):
    """A signature whose `bind` says what to write instead of an argument that it refuses.

    `optax.inject_hyperparams` calls `bind` itself, so every call passes through here.
    """

    function: str | None = None

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        try:
            return super().bind(*args, **kwargs)
        except TypeError as error:
            if self.function is None:  # a copy that someone has changed
                raise
            hint = _hint(self.function, list(self.parameters.values()), args, kwargs)
            colon = "" if str(error).startswith("got ") else ":"
            raise TypeError(f"{self.function}(){colon} {error}.{hint}") from None


# The arguments of each decorated function: an unknown argument may belong to another of them.
_TAKES: dict[str, tuple[str, ...]] = {}


def signature_of(function: Callable[..., Any]) -> Signature:
    """The signature of a public function, which is also recorded in `_TAKES`."""
    plain = inspect.signature(function)
    parameters = list(plain.parameters.values())
    signature = Signature(parameters, return_annotation=plain.return_annotation)
    signature.function = function.__name__
    _TAKES[function.__name__] = tuple(plain.parameters)
    return signature


def signed(call: Callable[P, R], signature: Signature) -> Callable[P, R]:
    """`call` with the signature that `inspect.signature` is to report."""
    vars(call)["__signature__"] = signature
    return call


def _positional(parameters: Iterable[inspect.Parameter]) -> list[str]:
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose errors about unknown arguments say what to write instead."""
    signature = signature_of(function)
    most = len(_positional(signature.parameters.values()))

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > most or not kwargs.keys() <= signature.parameters.keys():
            signature.bind(*args, **kwargs)  # raises
        return function(*args, **kwargs)

    return signed(call, signature)


# ---- What to write instead; each hint is a sentence ----


def _hint(
    function: str,
    parameters: list[inspect.Parameter],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> str:
    """For a call whose arguments do not fit the signature."""
    takes = tuple(p.name for p in parameters)
    unknown = {name: value for name, value in kwargs.items() if name not in takes}
    if unknown:
        return "".join(f" {_way_out(function, takes, *item)}" for item in unknown.items())
    ordered = _positional(parameters)
    if len(args) > len(ordered):
        named = takes[len(ordered) :][:1]
        others = "".join(f"; name the others: {function}(..., {x}=...)" for x in named)
        return f" Only {', '.join(ordered)} can be passed by position{others}."
    if args and ordered[:1] == ["learning_rate"] and "learning_rate" in kwargs:
        return " A factory takes no parameters: state = tx.init(params) does."
    return ""


def _way_out(function: str, takes: tuple[str, ...], name: str, value: Any) -> str:
    """For one argument that `function` does not take."""
    ours = _RENAMED.get(name, name)
    if (value is False or value is None) and name in (*_SPECIAL, *_ELSEWHERE):
        return f"Leave {name}={value} out."
    if name in _SPECIAL:
        return _SPECIAL[name](function, takes, value)
    if ours in takes:
        return f"Write {ours}={short(value)} instead of {name}={short(value)}."
    if ours in _ABSENT:
        return _ABSENT[ours](function, takes, short(value))
    if name in _ELSEWHERE:
        return f"{name}: {_ELSEWHERE[name]}."
    return _guess(function, takes, ours, value)


def _guess(function: str, takes: tuple[str, ...], name: str, value: Any) -> str:
    """For a name that no other library is known to use."""
    others = [other for other, arguments in _TAKES.items() if name in arguments]
    if others:
        return f"{name} is an argument of {', '.join(others)}."
    near = difflib.get_close_matches(name, takes, n=1)
    if near:
        return f"Did you mean {near[0]}={short(value)}?"
    return f"{function} takes {', '.join(takes)}."


_NAMES = {
    "learning_rate": "lr lrate learningrate step_size stepsize eta schedule lr_schedule scheduler "
    "lr_scheduler learning_rate_schedule learning_rate_fn",
    "b1": "beta1 beta_1 b_1 beta momentum",
    "b2": "beta2 beta_2 b_2",
    "b3": "beta3 beta_3 b_3",
    "eps": "epsilon adam_eps adam_epsilon",
    "weight_decay": "wd weightdecay weight_decay_rate decay decay_rate",
    "mask": "weight_decay_mask decay_mask wd_mask",
    "l2": "l2_regularization l2_reg",
    "mu_dtype": "dtype state_dtype moment_dtype momentum_dtype m_dtype",
    "nu_dtype": "v_dtype",
    "eps_root": "epsilon_root",
}
_RENAMED = {theirs: ours for ours, names in _NAMES.items() for theirs in names.split()}

_COMPILED = "leave it out; jax.jit compiles the whole step"
_CLIP = "clip before the step: optax.chain(optax.clip_by_global_norm(1.0), tx)"
_PER_LAYER = "write overrides=[(regular expression for paths, dict of arguments)]"
_ELSEWHERE = {
    "maximize": "to maximize, pass the gradients of -loss",
    **dict.fromkeys(("foreach", "fused", "capturable", "differentiable"), _COMPILED),
    **dict.fromkeys(("clipnorm", "global_clipnorm", "max_grad_norm", "grad_clip"), _CLIP),
    "clipvalue": "clip before the step: optax.chain(optax.clip(1.0), tx)",
    "params": "leave it out; state = tx.init(params) takes the parameters",
    **dict.fromkeys(("bits", "optim_bits"), 'write moments="int8" for 8-bit moments'),
    **dict.fromkeys(
        ("stochastic_rounding", "bf16_stochastic_round"), 'write rounding="stochastic"'
    ),
    **dict.fromkeys(("param_groups", "layer_decay", "lr_mult", "no_decay"), _PER_LAYER),
    "kahan_sum": 'write rounding="compensated"',
    "master_weights": 'write rounding="split"',
    "use_master_weights": 'write rounding="split"',
    **dict.fromkeys(("caution", "cautious"), "wrap it, fa.cautious(fa.adamw(...))"),
    **dict.fromkeys(
        ("cautious_weight_decay", "cautious_wd", "use_cautious_wd"),
        "wrap it, fa.cautious_weight_decay(fa.adamw(...))",
    ),
    **dict.fromkeys(
        ("clip_threshold", "update_clipping", "clip_update_rms"),
        "wrap it, fa.clip_update_rms(fa.adamw(...), threshold)",
    ),
    "decouple_lr": "write independent_weight_decay=True",
    **dict.fromkeys(
        ("decoupled_weight_decay", "decoupled"),
        "leave it out; the decay of fa.adamw, fa.nadamw and fa.adamaxw is decoupled",
    ),
}


def _betas(function: str, takes: tuple[str, ...], value: Any) -> str:
    rates = [name for name in ("b1", "b2", "b3") if name in takes]
    if not rates:
        return _no_rate(function, takes, "b1=..., b2=...")
    given = [short(b) for b in value] if isinstance(value, tuple | list) else ["..."] * len(rates)
    ours = ", ".join(f"{name}={b}" for name, b in zip(rates, given, strict=False))
    return f"Write {ours} instead of betas={short(value)}."


def _amsgrad(function: str, _takes: tuple[str, ...], value: Any) -> str:
    if function.endswith("amsgrad"):
        return f"Leave amsgrad={value} out."
    return (
        "AMSGrad has a factory of its own: fa.amsgrad(...). For PyTorch's form write "
        'fa.amsgrad(..., maximum="before_correction").'
    )


_SPECIAL: dict[str, Callable[[str, tuple[str, ...], Any], str]] = {
    "betas": _betas,
    "amsgrad": _amsgrad,
}


def _no_rate(function: str, _takes: tuple[str, ...], value: str) -> str:
    if function.startswith("scale_by_"):
        return (
            f"{function} gives a direction without a learning rate: write "
            f"optax.chain(fa.{function}(...), optax.scale_by_learning_rate({value}))."
        )
    if function == "init":
        return "init makes a state and takes no hyperparameters: update and the factories do."
    return f"Pass it to the factory inside: fa.{function}(fa.adamw({value}))."


def _no_decay(function: str, takes: tuple[str, ...], value: str) -> str:
    if function == "init" or "tx" in takes:
        return _no_rate(function, takes, f"weight_decay={value}")
    ways: list[str] = []
    if f"{function}w" in _TAKES:
        ways.append(f"fa.{function}w(weight_decay={value}) decays the parameters themselves")
    elif "learning_rate" in takes or function.startswith("scale_by_"):
        scale = {"adabelief": "scale_by_belief"}.get(function, f"scale_by_{function}")
        scale = function if function.startswith("scale_by_") else scale
        ways.append(
            f"optax.chain(fa.{scale}(...), optax.add_decayed_weights({value}), "
            "optax.scale_by_learning_rate(...)) decays the parameters themselves"
        )
    if "l2" in takes:
        ways.append(f"l2={value} adds it to the gradient, as torch.optim.Adam does")
    return f"{function} has no weight_decay: {'; '.join(ways)}."


_ABSENT = {"learning_rate": _no_rate, "weight_decay": _no_decay}
