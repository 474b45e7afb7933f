"""Puts the arrays of a restored tree on the devices of a target's leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from functional_adam._types import NumPyArray


def shardings_of(target: Mapping[str, Any]) -> dict[str, Any]:
    """The sharding for each leaf; None for the default device."""
    given = {name: getattr(leaf, "sharding", None) for name, leaf in target.items()}
    meshes = [getattr(sharding, "mesh", None) for sharding in given.values()]

    def known(name: str, sharding: Any) -> Any:
        # An array that JAX placed by default may go to the default device again.
        if isinstance(target[name], jax.Array) and not target[name].committed:
            return None
        abstract = getattr(sharding, "mesh", None)
        if not isinstance(abstract, AbstractMesh):
            return sharding
        for mesh in (*meshes, *_context_mesh()):
            if isinstance(mesh, Mesh) and _axes(mesh) == _axes(abstract):
                return NamedSharding(mesh, sharding.spec)
        raise ValueError(
            f"target{name} has the sharding {sharding.spec} on a mesh without devices, as from "
            "jax.eval_shape. Call from_state_dict under jax.set_mesh(mesh), or pass a target whose "
            "leaves are on devices, such as tx.init(params)."
        )

    return {name: known(name, sharding) for name, sharding in given.items()}


def _axes(mesh: Mesh | AbstractMesh) -> tuple[Any, ...]:
    return mesh.shape_tuple, mesh.axis_types


def _context_mesh() -> list[Any]:
    """The mesh of `jax.set_mesh`, which older versions of JAX do not reveal."""
    get_mesh = getattr(jax.sharding, "get_mesh", None)
    return [] if get_mesh is None else [get_mesh()]


def put(array: NumPyArray, like: Any, sharding: Any) -> jax.Array:
    """A JAX array that shares no memory with `array` and has the weak type of `like`."""
    # On a CPU JAX uses a NumPy array's memory directly, even in device_put(may_alias=False), or
    # copies it later, even in jnp.array.
    own = array.copy()
    x = _weak(own) if getattr(like, "weak_type", False) else own
    return jnp.asarray(x) if sharding is None else jax.device_put(x, sharding)


def _weak(array: NumPyArray) -> Any:
    """`array` with the weak type of Python numbers, if it has the dtype of one."""
    number = {"i": 0, "f": 0.0, "c": 0j}.get(array.dtype.kind)
    if number is None or jnp.result_type(number) != array.dtype:
        return array
    # Only `full_like` passes a weak type on, and only with a scalar: hence one call per element.
    return jnp.vectorize(jax.lax.full_like)(jnp.asarray(number), array)
