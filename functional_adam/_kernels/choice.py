"""Which form of a leaf's step a program gets: by the platform that it is lowered for.

The choice is the lowering rule of a JAX primitive, so that nobody traces a kernel for a platform
that a program does not run on, and `jax.export` for several platforms has the form of each.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir

from functional_adam import _mesh
from functional_adam._kernels.tiles import FITS, Part, tiles
from functional_adam._leaf import LeafConfig, update_leaf
from functional_adam._storage.leaf_state import LeafState

SWITCH = "FUNCTIONAL_ADAM_KERNELS"
HAS_KERNELS = jax.__version_info__ >= (0, 7, 2)  # what they are written with is not in older ones
Mode = Literal["on", "off", "interpret gpu", "interpret tpu"]
MODES: tuple[Mode, ...] = ("on", "off", "interpret gpu", "interpret tpu")


def mode() -> Mode:
    """What the environment says when a step is traced; the last two are for tests."""
    given = os.environ.get(SWITCH, "on")
    for known in MODES:
        if given == known:
            return known
    raise ValueError(f'{SWITCH} must be "on" or "off"; got {given!r}.')


class Plan(NamedTuple):
    """What is known of a part's step before any number is."""

    config: LeafConfig
    shape: tuple[int, ...]  # of the whole leaf
    mode: Mode


def step_part(plan: Plan, part: Part) -> tuple[Any, LeafState]:
    """(update or parameter, what is stored) of a part, in the form that the platform has."""
    if plan.mode.startswith("interpret"):
        return _kernel(plan.mode.split()[1], plan, part, interpret=True)
    operands, tree = jax.tree.flatten(part)
    new = _one_pass.bind(*_mesh.vary_alike(operands), plan=plan, tree=tree)
    return jax.tree.unflatten(jax.tree.structure((part.g, part.stored)), new)


# ---- The forms ----


def plain_step(plan: Plan, part: Part) -> tuple[Any, LeafState]:
    s, noise, key = part.scalars
    if part.starts is not None:
        key = key + _origin(plan, part) + _shifts(plan, part)
    return update_leaf(plan.config, s, noise, key, part.g, part.stored, part.theta)


def _kernel(name: str, plan: Plan, part: Part, *, interpret: bool = False) -> tuple[Any, LeafState]:
    """The kernel of a platform, or the plain form for a leaf that it does not take."""
    found = tiles(part.g.shape, part.stored.scale.shape, plan.shape)
    if found is None or not FITS[name](found):
        return plain_step(plan, part)
    # Imported here, as Pallas takes half as long to import as all of JAX.
    form = importlib.import_module(f"functional_adam._kernels.{name}")
    origin = _origin(plan, part)
    return form.one_pass(plan.config, found, origin, part, interpret=interpret)


def _distances(shape: tuple[int, ...]) -> list[np.uint32]:
    """How many elements lie between neighbours along each axis, modulo 2**32."""
    after = [int(np.prod(shape[axis + 1 :], dtype=object)) for axis in range(len(shape))]
    return [np.uint32(n % 2**32) for n in after]


def _origin(plan: Plan, part: Part) -> Any:
    """Where the first element of a part stands in the leaf."""
    starts = part.starts or ()
    pairs = zip(starts, _distances(plan.shape), strict=part.starts is not None)
    return sum((start * distance for start, distance in pairs), np.uint32(0))


def _shifts(plan: Plan, part: Part) -> Any:
    """How much farther the elements of a part are from its first one in the leaf than in it."""
    shape = part.g.shape
    shifts = jnp.zeros(shape, jnp.uint32)
    pairs = zip(_distances(plan.shape), _distances(shape), strict=True)
    for axis, (in_leaf, in_part) in enumerate(pairs):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        shifts += along * np.uint32((int(in_leaf) - int(in_part)) % 2**32)
    return shifts


# ---- The primitive ----

_one_pass = Primitive("functional_adam_one_pass")
_one_pass.multiple_results = True


@_one_pass.def_abstract_eval
def _result_types(*operands: Any, plan: Plan, tree: Any) -> list[Any]:
    """The update or the parameter, then what is stored, of the types that it had."""
    part = jax.tree.unflatten(tree, operands)
    dtype = part.theta.dtype if plan.config.applies else plan.config.out
    results = [part.g.update(dtype=dtype), *jax.tree.leaves(part.stored)]
    return [x.update(weak_type=False) for x in results]


def _lowered(form: Any) -> Any:
    def flat(form: Any, *operands: Any, plan: Plan, tree: Any) -> list[Any]:
        return jax.tree.leaves(form(plan, jax.tree.unflatten(tree, operands)))

    def rule(context: Any, *args: Any, **parameters: Any) -> Any:
        chosen = functools.partial(flat, form if _is_alone(context.module_context) else plain_step)
        with warnings.catch_warnings():
            # Of JAX 0.12 and later, which is to drop Triton: users can do nothing about it.
            warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
            try:
                return mlir.lower_fun(chosen, multiple_results=True)(context, *args, **parameters)
            except Exception as error:
                error.add_note(
                    f"{SWITCH}=off in the environment takes 8-bit steps without kernels."
                )
                raise

    return rule


def _is_alone(module: Any) -> bool:
    """Whether a program is of one device, or each device's own: XLA does not divide a kernel."""
    manual = getattr(module.axis_context, "manual_axes", None)
    if manual is not None:
        return set(manual) == set(module.axis_context.mesh.axis_names)
    return getattr(module.axis_context, "num_devices", 1) == 1


mlir.register_lowering(_one_pass, _lowered(plain_step))
for _platform, _name in (("cuda", "gpu"), ("tpu", "tpu")):
    kernel = functools.partial(_kernel, _name)
    mlir.register_lowering(_one_pass, _lowered(kernel), platform=_platform)
