"""Carries a run over from PyTorch or to it: converts between its `state_dict()` and `AdamState`.

PyTorch keeps the same two moments and one count per parameter, and it identifies parameters by
numbers. The caller therefore only says which parameter is which leaf and how its axes are ordered.
PyTorch itself is not needed: tensors are read as NumPy arrays, and NumPy arrays are returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.tree_util import keystr, tree_leaves_with_path

from functional_adam import _check, _trees
from functional_adam._interop.torch_dict import (
    Names,
    Transform,
    check_numbers,
    keys_of,
    laid_out,
    numpy_of,
    parts_of,
)
from functional_adam._state import AdamState, check_count, init
from functional_adam._storage.leaf_state import holds_codes
from functional_adam._types import PyTree

_OURS = {"exp_avg": "mu", "exp_avg_sq": "nu", "max_exp_avg_sq": "nu_max"}  # torch's -> here
_LARGEST = "max_exp_avg_sq"


def from_torch(
    state_dict: Mapping[str, PyTree],
    params: PyTree,
    *,
    names: Names | None = None,
    transform: Transform | None = None,
) -> AdamState:
    """Convert the state of a `torch.optim.Adam`, `AdamW` or `RAdam` to an `AdamState`.

    `exp_avg` becomes `mu`, `exp_avg_sq` becomes `nu`, and `step`, which must be the same for all
    parameters, becomes the count. With amsgrad=True, `max_exp_avg_sq` becomes `extra["nu_max"]`. It
    is the maximum of the uncorrected second moment, so continue with
    `amsgrad(maximum="before_correction")`, not with the default. PyTorch keeps learning rates and
    decay in parameter groups; `overrides_from_torch` converts these to arguments.
    docs/from-torch.md shows how to fill a state inside wrappers.

    Args:
        state_dict: The result of the torch optimizer's `state_dict()`, with tensors on any device
            or NumPy arrays. They are copied.
        params: The parameters in JAX. Their structure, shapes, dtypes and shardings are used.
        names: Which torch parameter belongs to each leaf: a tree like `params` of torch's indices
            or names, or a function from a leaf's path, as `jax.tree_util.keystr` prints it, to an
            index or name. The tree may have further leaves. Names need a state dict that has them,
            as "param_names" in its groups or in place of indices. Torch parameters that are not
            named are left out. None (default) pairs both in order: torch's groups, and
            `jax.tree.leaves`, which sorts dicts by key. A wrong order among equal shapes goes
            unnoticed.
        transform: A function `transform(path, array)` that returns torch's array with its axes in
            the order used here, such as `array.T` for the (out, in) weight of a torch.nn.Linear.
            None (default): no change. Take care with square matrices, which fit either way.

    Returns:
        An `AdamState` as `init(params)` makes it, with the same dtypes. Parameters for which torch
        has no state, because they never had a gradient, get zero moments and the common count.

    Raises:
        ValueError: `step` differs between parameters, is not a whole number or exceeds an int32; a
            moment is NaN or infinite in the state's dtype, which may be narrower than torch's; a
            mean of squares is negative; a parameter or name is listed twice; or shapes, names or
            leaves do not fit.
        TypeError: `state_dict` does not come from such an optimizer or has a NumPy masked array; or
            parameters are complex, for which torch keeps the second moments of the real and
            imaginary parts separately.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp, numpy as np
        >>> entry = {"step": 7.0, "exp_avg": np.full((1, 2), 0.5), "exp_avg_sq": np.ones((1, 2))}
        >>> groups = [{"params": [0], "param_names": ["linear.weight"], "lr": 1e-3}]
        >>> state_dict = {"state": {0: entry}, "param_groups": groups}
        >>> params, names = {"kernel": jnp.zeros((2, 1))}, {"kernel": "linear.weight"}
        >>> state = fa.from_torch(state_dict, params, names=names, transform=lambda path, x: x.T)
        >>> int(state.count), state.mu["kernel"].shape
        (7, (2, 1))
    """
    groups, states = parts_of("state_dict", state_dict)
    start = init(params)
    paths = _paths("params", start.mu)
    keys = keys_of("state_dict", groups, paths, names)
    held = {key: states[key] for key in keys if states.get(key)}
    kept = _kept(held)
    leaves, treedef = jax.tree.flatten(start.mu)  # all moments of real parameters are alike

    def moment(name: str) -> PyTree:
        return treedef.unflatten(
            # Zeros are copied too: each leaf is a buffer of its own.
            _leaf(path, key, name, held[key][name], old, transform) if key in held else old.copy()
            for path, key, old in zip(paths, keys, leaves, strict=True)
        )

    new = {_OURS[name]: moment(name) for name in kept}
    extra = {"nu_max": new.pop("nu_max")} if _LARGEST in kept else None
    return start._replace(count=start.count + jnp.int32(_count(held)), extra=extra, **new)


def to_torch(
    state: AdamState,
    like: Mapping[str, PyTree],
    *,
    names: Names | None = None,
    transform: Transform | None = None,
) -> dict[str, PyTree]:
    """Convert a state to the `state_dict` of the same torch optimizer: `from_torch` reversed.

    The values are NumPy arrays. Convert them to tensors before `load_state_dict`:

        state_dict["state"] = jax.tree.map(torch.as_tensor, state_dict["state"])

    Args:
        state: An `AdamState` of `adam`, `adamw`, `radam` or `amsgrad(maximum="before_correction")`.
            (With the default `maximum`, `nu_max` looks the same, but torch cannot continue it.)
        like: The `state_dict()` of the torch optimizer that is to continue, fresh or not. The
            result keeps its groups, and its state of parameters that `names` leaves out.
        names: Which torch parameter belongs to each leaf, as in `from_torch`. Default None.
        transform: A function `transform(path, array)` that returns the array with its axes in
            torch's order, the reverse of that in `from_torch`. None (default): no change.

    Returns:
        {"state": ..., "param_groups": ...}; arrays are copied.

    Raises:
        ValueError: Names, leaves, shapes or `amsgrad` do not fit `like`, or `like` lists a
            parameter twice; a moment is NaN or infinite; or `state` has 8-bit moments (see
            `convert_moments`) or trees of another variant.
        TypeError: `state` is not an `AdamState`, `like` is not a state dict or has a NumPy masked
            array, or parameters are complex.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> _, state = fa.update({"w": jnp.ones(2)}, fa.init({"w": jnp.ones(2)}))
        >>> like = {"state": {}, "param_groups": [{"params": [0], "lr": 1e-3, "amsgrad": False}]}
        >>> fa.to_torch(state, like)["state"][0]["exp_avg"].round(3)
        array([0.1, 0.1], dtype=float32)
    """
    check_count(state)
    groups, held = parts_of("like", like)
    paths = _paths("state.mu", state.mu)
    keys = keys_of("like", groups, paths, names)
    columns = _columns(state)
    _check_amsgrad(groups, keys, _LARGEST in columns)
    new: dict[Any, dict[str, Any]] = {}
    for i, (path, key) in enumerate(zip(paths, keys, strict=True)):
        old = held.get(key) or {}
        new[key] = {"step": np.array(state.count, np.float32)} | {
            name: _tensor(path, key, name, column[i], old, transform)
            for name, column in columns.items()
        }
    return {**like, "state": {**held, **new}}


def _paths(name: str, mu: PyTree) -> list[str]:
    """The paths of the leaves of a first moment; raises for complex leaves."""
    paths_and_leaves = tree_leaves_with_path(mu)
    for path, leaf in paths_and_leaves:
        if jnp.iscomplexobj(leaf):
            raise TypeError(
                f"{name}{keystr(path)} is complex and cannot be converted: torch keeps separate "
                "second moments for real and imaginary parts, this package one for both."
            )
    return [keystr(path) for path, _ in paths_and_leaves]


# ---- From torch ----


def _kept(held: Mapping[Any, Any]) -> list[str]:
    """Torch's names of the moments, which must be the same for all its parameters."""
    has_maximum = any(_LARGEST in state for state in held.values())
    kept = [name for name in _OURS if name != _LARGEST or has_maximum]
    for key, state in held.items():
        if set(state) != {"step", *kept}:
            raise ValueError(
                f"state_dict['state'][{key!r}] holds {', '.join(map(str, state))}; it must hold "
                f"step, {', '.join(kept)}, and so must all parameters. (This is the state of "
                "torch's Adam, AdamW and RAdam, with amsgrad=True in all groups or in none.)"
            )
    return kept


def _count(held: Mapping[Any, Any]) -> int:
    """The number of steps, which must be the same for all parameters."""
    steps = {key: _step(key, state["step"]) for key, state in held.items()}
    first = next(iter(steps), None)
    for key, step in steps.items():
        if step != steps[first]:
            raise ValueError(
                f"state_dict['state'][{key!r}]['step'] is {step}, but that of {first!r} is "
                f"{steps[first]}: an AdamState has a single count. Use optax.partition with one "
                "part for each count."
            )
    return steps.get(first, 0)


def _step(key: Any, value: Any) -> int:
    """A parameter's number of steps, which torch stores as a float."""
    where = f"state_dict['state'][{key!r}]['step']"
    array, most = numpy_of(where, value), np.iinfo(np.int32).max
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise TypeError(f"{where} must be one real number; got {_check.show(value)}.")
    step = array.item()
    if not 0 <= step <= most or step % 1:
        raise ValueError(
            f"{where} must be a whole number >= 0 and <= {most}, the largest count of an "
            f"AdamState; got {step!r}."
        )
    return int(step)


def _leaf(path: str, key: Any, name: str, value: Any, like: jax.Array, transform: Any) -> jax.Array:
    """A copy of one of torch's arrays as a leaf like `like`."""
    whose = f"params{path} from {name} of torch's parameter {key!r}"
    array = laid_out(path, numpy_of(whose, value), transform, like.shape, whose)
    with np.errstate(over="ignore"):  # overflow is refused below
        # A copy, because torch continues to write into its tensors.
        array = array.astype(like.dtype, casting="same_kind")
    check_numbers(name, whose, array)
    on_mesh = isinstance(like.sharding, NamedSharding)
    return jax.device_put(array, like.sharding) if on_mesh else jnp.asarray(array)


# ---- To torch ----


def _columns(state: AdamState) -> dict[str, list[Any]]:
    """The leaves by torch's names."""
    if holds_codes(state.nu_scale):
        raise ValueError(
            'state has 8-bit moments: use convert_moments(state, params, moments="full") first.'
        )
    extra = state.extra or {}
    if set(extra) - {"nu_max"}:
        raise ValueError(f"state.extra holds {list(extra)}, which torch's Adam does not have.")
    ours = {"mu": state.mu, "nu": state.nu} | extra
    for name, tree in ours.items():
        _trees.leaves_like(f"state: {name}", tree, state.mu, "state.mu")
    return {theirs: jax.tree.leaves(ours[name]) for theirs, name in _OURS.items() if name in ours}


def _check_amsgrad(groups: list[Any], keys: list[Any], has_maximum: bool) -> None:
    """Raise unless `amsgrad` of the state's groups fits the state."""
    for number, group in enumerate(groups):
        wanted = group.get("amsgrad", has_maximum)
        if wanted != has_maximum and not set(keys).isdisjoint(group["params"]):
            raise ValueError(
                f"like['param_groups'][{number}] has amsgrad={wanted}, but the state is "
                f"{'that' if has_maximum else 'not that'} of amsgrad."
            )


def _tensor(path: str, key: Any, name: str, leaf: Any, old: Any, transform: Any) -> Any:
    """A leaf in the form that torch takes: a dtype that it knows, writable, contiguous."""
    whose = f"{name} of torch's parameter {key!r} from leaf {path}"
    array = numpy_of(whose, leaf)
    array = array.astype(np.float32) if array.dtype.kind == "V" else array  # bfloat16
    check_numbers(name, whose, array)
    shape = tuple(getattr(old[name], "shape", ())) if name in old else None
    return np.array(laid_out(path, array, transform, shape, whose), order="C")
