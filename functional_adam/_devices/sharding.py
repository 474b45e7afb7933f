"""The shardings of a state on a mesh: like its parameters (FSDP), or divided further (ZeRO-1).

A sharding changes where an array is, never its values. The shapes of the state come from `tx.init`
itself, and the arrays that belong to a parameter are found by the parameter's path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.tree_util import keystr

from functional_adam import _check, _trees
from functional_adam._mesh import dimensions, divided, replicated, scale_sharding, ways
from functional_adam._nested import adam_states, by_parameter
from functional_adam._state import AdamState, built_like, is_adam_state, outside_boxes, state_shapes
from functional_adam._storage.int8 import block_length
from functional_adam._types import GradientTransformation, PyTree


class Layout(NamedTuple):
    """A parameter's shape and sharding."""

    shape: tuple[int, ...]
    sharding: NamedSharding


def state_shardings(
    tx: GradientTransformation,
    params: PyTree,
    params_shardings: PyTree = None,
    *,
    zero_axis: str | None = None,
) -> PyTree:
    """The sharding of each array of `tx.init(params)` on the mesh of the parameters.

    Pass the result as `out_shardings` of the jitted `init` and of the jitted step. A plain
    `jax.jit(tx.init)` leaves the placement to XLA, which puts all zeros on one device. An eager
    `tx.init` uses these shardings by itself if the parameters are on a mesh.

    `mu`, `nu`, `residual` and the trees of `extra` are sharded like their parameter. So is every
    array with a parameter's shape in the state of another transformation (`optax.MultiSteps`,
    `trace`, `ema`, `schedule_free`), if its path ends with the parameter's path. The blocks of
    `nu_scale` are sharded like the axis that they divide, if this divides their number evenly.
    Counts and all other arrays are replicated. If a device does not hold a whole number of blocks,
    an update with moments="int8" exchanges their ends.

    On explicit mesh axes nothing moves by itself. With `zero_axis`, apply `jax.sharding.reshard` to
    gradients and parameters before an update, to shard them like `mu`, and to the updates after it.

    Args:
        tx: A transformation of this package, alone or anywhere inside Optax's wrappers (`chain`,
            `named_chain`, `masked`, `partition`, `inject_hyperparams`).
        params: A tree of arrays or of `jax.ShapeDtypeStruct`s, in Flax's boxes or not.
        params_shardings: None (default): the `sharding` of each leaf itself. Or a tree of
            `NamedSharding`s like `params`, with or without boxes (as `flax.linen.get_sharding`
            makes it), or one `NamedSharding` for all leaves.
        zero_axis: None (default), or a mesh axis that further divides the state of each parameter
            (ZeRO-1). It divides the first dimension whose shards it can divide evenly. A leaf
            stays sharded like its parameter if there is no such dimension, if the axis divides the
            parameter already, or (int8) if blocks would not stay whole.

    Returns:
        A tree of `NamedSharding`s with the structure of `tx.init(params)`.

    Raises:
        TypeError: `tx` has no `init`, or a leaf of `params_shardings` is not a `NamedSharding`.
        ValueError: A parameter is not on a mesh or not on that of the others; a sharding does not
            divide its parameter evenly; the trees differ; or the mesh has no axis `zero_axis`.

    Example:
        >>> import functional_adam as fa, jax, jax.numpy as jnp
        >>> from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        >>> on_mesh = NamedSharding(Mesh(jax.devices()[:1], "data"), P("data", None))
        >>> params = jax.device_put({"w": jnp.zeros((256, 512))}, on_mesh)
        >>> tx = fa.adamw(moments="int8")
        >>> shardings = fa.state_shardings(tx, params)
        >>> shardings.nu_scale["w"].spec == P("data", None), shardings.count.spec == P()
        (True, True)
        >>> state = jax.jit(tx.init, out_shardings=shardings)(params)

    References:
        Rajbhandari et al. 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter
        Models, section 5.1.
    """
    state = state_shapes(tx, params)
    layouts = _layouts(params, params_shardings)
    somewhere = _on_one_mesh(layouts, params_shardings)
    _check_axis(zero_axis, somewhere)
    scales = _scale_shapes(state)
    layouts = {path: _divided_more(x, scales.get(path), zero_axis) for path, x in layouts.items()}

    def layout(path: Any, node: Any) -> Any:
        if is_adam_state(node):
            return _state_layout(node, layouts, somewhere)
        return _like_parameter(keystr(path), node, layouts, somewhere)

    return jax.tree_util.tree_map_with_path(layout, state, is_leaf=is_adam_state)


def _scale_shapes(state: PyTree) -> dict[str, tuple[int, ...]]:
    """The shapes of all scales by the paths of their parameters."""
    shapes: dict[str, tuple[int, ...]] = {}
    for one in adam_states(state):
        if one.nu_scale is not None:
            scales = by_parameter("state.nu_scale", one.nu_scale, one)
            shapes |= {keystr(path): x.shape for path, x in scales.items() if x is not None}
    return shapes


def _state_layout(
    state: AdamState, layouts: dict[str, Layout], somewhere: NamedSharding
) -> AdamState:
    """The layouts of one state of this package."""

    def kept(path: str, leaf: Any) -> NamedSharding:
        return _like_parameter(path, leaf, layouts, somewhere)

    def scale(path: str, leaf: Any) -> Any:
        layout = layouts.get(path)
        if layout is None:
            return replicated(somewhere, len(leaf.shape))
        return scale_sharding(layout.sharding, layout.shape, leaf.shape)

    def like(tree: PyTree, layout: Callable[[str, Any], Any] = kept) -> PyTree:
        if tree is None:
            return None
        leaves = by_parameter("the state", tree, state).items()
        return built_like(
            tree, [None if x is None else layout(keystr(path), x) for path, x in leaves]
        )

    count: Any = replicated(somewhere, 0)
    return AdamState(
        count=count,
        mu=like(state.mu),
        nu=like(state.nu),
        nu_scale=like(state.nu_scale, scale),
        residual=like(state.residual),
        extra=state.extra and {name: like(tree) for name, tree in state.extra.items()},
    )


def _like_parameter(
    path: str, leaf: Any, layouts: dict[str, Layout], somewhere: NamedSharding
) -> NamedSharding:
    """The layout of the parameter whose path ends `path`, if it has this shape."""
    ends = [
        end for end, layout in layouts.items() if path.endswith(end) and layout.shape == leaf.shape
    ]
    if ends:
        return layouts[max(ends, key=len)].sharding
    whole: Any = replicated(somewhere, len(leaf.shape))
    return whole


def _divided_more(layout: Layout, scales: tuple[int, ...] | None, zero_axis: str | None) -> Layout:
    """A moment's layout: that of its parameter, divided over one more axis if possible."""
    shape, sharding = layout
    axes = dimensions(sharding, len(shape))
    if zero_axis is None or any(zero_axis in names for names in axes) or 0 in shape:
        return layout
    for i, (names, size) in enumerate(zip(axes, shape, strict=True)):
        more = [*axes[:i], (*names, zero_axis), *axes[i + 1 :]]
        if size % ways(sharding, more[i]):
            continue
        new = divided(sharding, more, in_full=len(sharding.spec) == len(shape))
        if scales is None or i < len(scales) - 1 or _whole_blocks(new, shape, scales):
            return Layout(shape, new)
    return layout


def _whole_blocks(sharding: NamedSharding, shape: tuple[int, ...], scales: tuple[int, ...]) -> bool:
    """Whether each device has only whole blocks of a leaf with these scales."""
    lead = len(scales) - 1
    along, *inner = dimensions(sharding, len(shape))[lead:]
    width = math.prod(shape[lead:])
    # Only the first of merged axes may be divided, so that a device's elements are contiguous.
    length = block_length(width, scales[-1])
    return not any(inner) and width % (length * ways(sharding, along)) == 0


# ---- Arguments ----


def _layouts(params: PyTree, params_shardings: PyTree) -> dict[str, Layout]:
    """Every parameter's layout, by path."""
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=_trees.is_none)
    if params_shardings is None:
        shardings = [getattr(leaf, "sharding", None) for _, leaf in paths_and_leaves]
    elif isinstance(params_shardings, NamedSharding):
        shardings = [params_shardings] * len(paths_and_leaves)
    elif isinstance(params_shardings, Mesh | PartitionSpec | Sharding):
        raise _not_named("params_shardings", params_shardings)
    else:
        flat = outside_boxes(params_shardings), outside_boxes(params)
        shardings = _trees.leaves_like("params_shardings", *flat, "params")
    own = params_shardings is None
    return {
        keystr(path): Layout(np.shape(leaf), _sharding(keystr(path), leaf, sharding, own))
        for (path, leaf), sharding in zip(paths_and_leaves, shardings, strict=True)
        if leaf is not None
    }


def _sharding(path: str, leaf: Any, sharding: Any, own: bool) -> NamedSharding:
    """`sharding`; raises unless it is on a mesh and fits the parameter."""
    if not isinstance(sharding, NamedSharding):
        if own:
            raise ValueError(
                f"params{path} must be on a mesh; its sharding is {_check.show(sharding)}. Put it "
                "there with jax.device_put(params, NamedSharding(mesh, spec)), or pass "
                "params_shardings (from Flax Linen: nn.get_sharding(params, mesh))."
            )
        raise _not_named(f"params_shardings{path}", sharding)
    shape, spec = np.shape(leaf), sharding.spec
    known = len(spec) <= len(shape) and PartitionSpec.UNCONSTRAINED not in tuple(spec)
    parts = zip(shape, dimensions(sharding, len(shape)), strict=True) if known else ()
    if not known or any(size % ways(sharding, axes) for size, axes in parts):
        whose = f"The sharding of params{path}" if own else f"params_shardings{path}"
        raise ValueError(
            f"{whose} is {spec} on a mesh of {dict(sharding.mesh.shape)}, which does not divide "
            f"the parameter's shape {shape} evenly. Use None for a dimension that is not divided."
        )
    return sharding


def _not_named(name: str, sharding: Any) -> TypeError:
    return TypeError(
        f"{name} must be a NamedSharding; got {_check.show(sharding)}. Write "
        "jax.sharding.NamedSharding(mesh, spec)."
    )


def _on_one_mesh(layouts: dict[str, Layout], params_shardings: PyTree) -> NamedSharding:
    """One of the shardings; raises unless all are on one mesh."""
    if not layouts and isinstance(params_shardings, NamedSharding):
        return params_shardings
    if not layouts:
        raise ValueError(
            "params has no leaves, so the mesh of the state is unknown: pass a NamedSharding as "
            "params_shardings."
        )
    (first, layout), *others = layouts.items()
    for path, other in others:
        if other.sharding.mesh != layout.sharding.mesh:
            raise ValueError(
                f"All parameters must be on one mesh; params{path} is on {other.sharding.mesh}, "
                f"but params{first} is on {layout.sharding.mesh}."
            )
    return layout.sharding


def _check_axis(zero_axis: Any, sharding: NamedSharding) -> None:
    names = sharding.mesh.axis_names
    if zero_axis is None or (isinstance(zero_axis, str) and zero_axis in names):
        return
    error = ValueError if isinstance(zero_axis, str) else TypeError
    raise error(
        f"zero_axis must be None or an axis of the mesh, {' or '.join(map(repr, names))}; got "
        f"{_check.show(zero_axis)}."
    )
