"""Converts PyTorch's parameter groups to overrides: hyperparameters for each leaf."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from jax.tree_util import keystr, tree_leaves_with_path

from functional_adam import _check, _overrides
from functional_adam._interop.torch_dict import Names, keys_of, numpy_of, parts_of
from functional_adam._types import PyTree

_FIELDS = ("lr", "betas", "eps", "weight_decay")


def overrides_from_torch(
    state_dict: Mapping[str, PyTree],
    params: PyTree,
    *,
    names: Names | None = None,
    decay: Literal["weight_decay", "l2"] | None = None,
) -> list[tuple[str, dict[str, float]]]:
    """Convert the parameter groups of a `torch.optim.Adam`, `AdamW` or `RAdam` to `overrides=`.

    `from_torch` converts the state; this function converts the hyperparameters. It makes one rule
    per group, with the `lr`, `betas`, `eps` and `weight_decay` of the state dict. If a scheduler
    changes a learning rate, its present value is taken: replace it by a schedule.

    Args:
        state_dict: The result of the torch optimizer's `state_dict()`.
        params: The parameters in JAX, of which only the paths are read.
        names: Which torch parameter belongs to each leaf, as in `from_torch`. Default None.
        decay: The kind of the groups' `weight_decay`. "weight_decay" is decoupled, as in AdamW, for
            `adamw` and other optimizers with this argument; "l2" is that of Adam, for `adam`. None
            (default): the kind that the groups state in `decoupled_weight_decay`, which newer
            versions of PyTorch write.

    Returns:
        A list of `(regular expression, dict of arguments)`. A group without a leaf in `params` has
        no rule. If no group decays, no rule has an argument for decay.

    Raises:
        ValueError: Names or leaves do not fit the groups, a group lacks one of the numbers or has
            maximize=True, or a group that decays does not state the kind of its decay.
        TypeError: `state_dict` does not come from such an optimizer.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> numbers = dict(betas=(0.9, 0.95), eps=1e-8, decoupled_weight_decay=True)
        >>> groups = [
        ...     {"params": [0], "lr": 1e-3, "weight_decay": 0.1, **numbers},
        ...     {"params": [1], "lr": 2e-3, "weight_decay": 0.0, **numbers},
        ... ]
        >>> params = {"bias": jnp.zeros(3), "kernel": jnp.zeros((2, 3))}
        >>> rules = fa.overrides_from_torch(
        ...     {"state": {}, "param_groups": groups}, params, names={"kernel": 0, "bias": 1}
        ... )
        >>> [(pattern, arguments["learning_rate"]) for pattern, arguments in rules]
        [('^(kernel)$', 0.001), ('^(bias)$', 0.002)]
        >>> tx = fa.adamw(overrides=rules)
    """
    groups, _ = parts_of("state_dict", state_dict)
    leaves = [path for path, _ in tree_leaves_with_path(params)]
    keys = keys_of("state_dict", groups, [keystr(path) for path in leaves], names)
    kind = None if decay is None else _check.choice("decay", decay, _KINDS)
    found = [_arguments(number, group, kind) for number, group in enumerate(groups)]
    decays = any(arguments[name] for arguments in found for name in _KINDS if name in arguments)
    rules: list[tuple[str, dict[str, float]]] = []
    for group, arguments in zip(groups, found, strict=True):
        mine = zip(leaves, keys, strict=True)
        paths = [_overrides.path_of(path) for path, key in mine if key in group["params"]]
        if paths:
            kept = {k: x for k, x in arguments.items() if decays or k not in _KINDS}
            rules.append((f"^({'|'.join(map(re.escape, paths))})$", kept))
    return rules


_KINDS = {"weight_decay": "weight_decay", "l2": "l2"}


def _arguments(number: int, group: Mapping[str, Any], kind: str | None) -> dict[str, float]:
    """The hyperparameters of a group by this package's names."""
    where = f"state_dict['param_groups'][{number}]"
    lacking = [name for name in _FIELDS if name not in group]
    if lacking:
        raise ValueError(
            f"{where} has no {', '.join(lacking)}: it is not a group of Adam, AdamW or RAdam."
        )
    if group.get("maximize"):
        raise ValueError(
            f"{where} has maximize=True, which does not exist here: pass the gradients of -loss."
        )
    b1, b2 = (_number(f"{where}['betas']", b) for b in group["betas"])
    rate, eps, decay = (_number(f"{where}[{k!r}]", group[k]) for k in ("lr", "eps", "weight_decay"))
    if kind is None and "decoupled_weight_decay" in group:
        kind = "weight_decay" if group["decoupled_weight_decay"] else "l2"
    if kind is None and decay:
        raise ValueError(
            f"{where} has weight_decay={decay!r} but does not state its kind, as in older versions "
            'of PyTorch: pass decay="weight_decay" for AdamW or decay="l2" for Adam.'
        )
    numbers = {"learning_rate": rate, "b1": b1, "b2": b2, "eps": eps}
    return numbers if kind is None else numbers | {kind: decay}


def _number(where: str, value: Any) -> float:
    """A number, or a tensor of one."""
    array = numpy_of(where, value)
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise TypeError(f"{where} must be a number; got {_check.show(value)}.")
    return float(array.item())
