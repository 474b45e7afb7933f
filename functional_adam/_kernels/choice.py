"""The choice of the form of a leaf's step, by the platform that a program is lowered for.

The choice is made in the lowering rule of a JAX primitive. So no kernel is traced for a platform on
which the program does not run, and `jax.export` for several platforms contains the form of each.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import experimental
from jax.dtypes import float0
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from functional_adam import _mesh
from functional_adam._kernels import cpu, native
from functional_adam._kernels.tiles import FITS, Part, origin, shift, tiles
from functional_adam._leaf import LeafConfig, update_leaf
from functional_adam._storage.leaf_state import LeafState

SWITCH = "FUNCTIONAL_ADAM_KERNELS"
HAS_KERNELS = jax.__version_info__ >= (0, 7, 2)  # older versions lack what the kernels use
Mode = Literal["on", "native", "off", "interpret gpu", "interpret tpu"]
MODES: tuple[Mode, ...] = ("on", "off", "interpret gpu", "interpret tpu")


def mode() -> Mode:
    """The mode that the environment sets when a step is traced; the interpreters are for tests.

    "native" means "on" with the native kernel installed and not turned off.
    """
    given = os.environ.get(SWITCH, "on")
    for known in MODES:
        if given == known:
            return "native" if given == "on" and HAS_KERNELS and native.is_on() else known
    raise ValueError(f'{SWITCH} must be "on" or "off"; got {given!r}.')


class Plan(NamedTuple):
    """What is known about the step of a part when it is traced."""

    config: LeafConfig
    shape: tuple[int, ...]  # of the whole leaf
    mode: Mode


Result = tuple[Any, LeafState]  # update or parameter, and stored state


def step_part(plan: Plan, part: Part) -> Result:
    """The step of a part, in the form for the platform."""
    return step_parts((plan,), [part])[0]


def step_parts(plans: tuple[Plan, ...], parts: list[Part]) -> list[Result]:
    """The steps of several parts with the same scalars, which a platform may take together."""
    s, noise, _ = parts[0].scalars
    slim = [part._replace(scalars=part.scalars[-1]) for part in parts]
    operands, tree = jax.tree.flatten((s, noise, slim))
    new = _one_pass.bind(*_mesh.vary_alike(operands), plans=plans, tree=tree)
    return jax.tree.unflatten(jax.tree.structure([(x.g, x.stored) for x in parts]), new)


def _parts(tree: Any, operands: Any) -> list[Part]:
    """The parts that `step_parts` was given."""
    s, noise, parts = jax.tree.unflatten(tree, operands)
    return [part._replace(scalars=(s, noise, part.scalars)) for part in parts]


def has_kernel(plan: Plan, part: Part) -> bool:
    """Whether some platform may have a kernel for this step."""
    return _is_native(plan, part) or may_have_kernel(plan, part)


def _is_native(plan: Plan, part: Part) -> bool:
    """Whether the native CPU kernel is installed and takes this step."""
    return plan.mode == "native" and native.takes(plan.config, plan.shape, part)


def may_have_kernel(plan: Plan, part: Part) -> bool:
    """Whether a GPU or TPU may have a kernel for this step.

    Without codes XLA's own form is one pass already. A step with sums over a leaf needs two passes.
    """
    s, _, _ = part.scalars
    has_codes = part.stored.scale is not None and not plan.config.variant.whole_leaf
    return HAS_KERNELS and has_codes and s.eps.dtype == np.float32


# ---- The forms ----


def plain_step(plan: Plan, part: Part) -> Result:
    s, noise, key = part.scalars
    if part.starts is not None:
        shape = part.g.shape
        at = [jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape))]
        key = key + origin(plan.shape, part.starts) + shift(plan.shape, shape, at)
    return update_leaf(plan.config, s, noise, key, part.g, part.stored, part.theta)


def _kernel(name: str, plan: Plan, part: Part, *, interpret: bool = False) -> Result:
    """The kernel of a platform, or the plain form for a leaf that the kernel does not take."""
    if not may_have_kernel(plan, part):
        return plain_step(plan, part)
    found = tiles(part.g.shape, part.stored.scale.shape, plan.shape)
    dtypes = [x.dtype for x in (part.g, part.theta) if x is not None]
    if found is None or not FITS[name](found, dtypes):
        return plain_step(plan, part)
    # Imported here because importing Pallas takes half as long as importing JAX.
    form = importlib.import_module(f"functional_adam._kernels.{name}")
    start = origin(plan.shape, part.starts)
    return form.one_pass(plan.config, found, start, part, interpret=interpret)


def _on_cpu(plan: Plan, part: Part, *, is_divided: bool = False) -> Result:
    """The form for the CPU, or the plain form for a leaf that would not gain."""
    if plan.mode.startswith("interpret"):
        return _kernel(plan.mode.split()[1], plan, part, interpret=True)
    form = cpu.form_of(plan.config, part, is_divided=is_divided)
    return plain_step(plan, part) if form is None else form(plan.config, plan.shape, part)


def _each(form: Callable[..., Result], plans: tuple[Plan, ...], parts: list[Part]) -> list[Result]:
    return [form(plan, part) for plan, part in zip(plans, parts, strict=True)]


def _each_on_cpu(plans: tuple[Plan, ...], parts: list[Part]) -> list[Result]:
    """All parts in one call of the native kernel, if it takes them."""
    if all(map(_is_native, plans, parts)):
        return native.one_pass(plans[0].config, [plan.shape for plan in plans], parts)
    return _each(_on_cpu, plans, parts)


# ---- The primitive ----

_one_pass = Primitive("functional_adam_one_pass")
_one_pass.multiple_results = True


@_one_pass.def_abstract_eval
def _result_types(*operands: Any, plans: tuple[Plan, ...], tree: Any) -> list[Any]:
    """The types of the update or parameter and of the stored arrays, which keep theirs."""
    results = []
    for plan, part in zip(plans, _parts(tree, operands), strict=True):
        dtype = part.theta.dtype if plan.config.applies else plan.config.out
        results += [part.g.update(dtype=dtype), *jax.tree.leaves(part.stored)]
    return [x.update(weak_type=False) for x in results]


def _flat(forms: Any, *operands: Any, plans: tuple[Plan, ...], tree: Any) -> list[Any]:
    return jax.tree.leaves(forms(plans, _parts(tree, operands)))


_plain_steps = functools.partial(_flat, functools.partial(_each, plain_step))
_one_pass.def_impl(_plain_steps)  # for `jax.disable_jit`


def _lowered(alone: Any, divided: Any) -> Any:
    """The lowering rule: `divided` where XLA divides leaves over devices, otherwise `alone`."""

    def rule(context: Any, *args: Any, plans: tuple[Plan, ...], tree: Any) -> Any:
        module = context.module_context
        if module.lowering_parameters.for_export:  # it may run where no native kernel is installed
            plans = tuple(x._replace(mode="on") if x.mode == "native" else x for x in plans)
        chosen = functools.partial(_flat, alone if _is_alone(module) else divided)
        with warnings.catch_warnings(), _as_wide_as(context.avals_in):
            # JAX 0.12 and later warn that Triton will be dropped; users cannot act on that.
            warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
            try:
                lower = mlir.lower_fun(chosen, multiple_results=True)
                return lower(context, *args, plans=plans, tree=tree)
            except Exception as error:
                error.add_note(f"Set {SWITCH}=off in the environment to run without kernels.")
                raise

    return rule


def _as_wide_as(operands: Any) -> Any:
    """64-bit mode off if no operand has 64 bits: with it TPUs refuse even a loop's counter."""
    if any(x.dtype.itemsize > 4 for x in operands):
        return contextlib.nullcontext()
    modes: Any = jax if hasattr(jax, "enable_x64") else experimental  # before JAX 0.8
    return modes.enable_x64(False)


def _is_alone(module: Any) -> bool:
    """Whether a program runs on one device or is each device's own; XLA does not divide kernels."""
    manual = getattr(module.axis_context, "manual_axes", None)
    if manual is not None:
        return set(manual) == set(module.axis_context.mesh.axis_names)
    return getattr(module.axis_context, "num_devices", 1) == 1


_each_plain = functools.partial(_each, plain_step)
_each_divided_on_cpu = functools.partial(_each, functools.partial(_on_cpu, is_divided=True))
mlir.register_lowering(_one_pass, _lowered(_each_plain, _each_plain))
mlir.register_lowering(_one_pass, _lowered(_each_on_cpu, _each_divided_on_cpu), platform="cpu")
for _platform, _name in (("cuda", "gpu"), ("tpu", "tpu")):
    kernel = functools.partial(_each, functools.partial(_kernel, _name))
    mlir.register_lowering(_one_pass, _lowered(kernel, _each_plain), platform=_platform)


# ---- Under `jax.vmap` and derivatives: the plain form ----


def _batched(operands: Any, axes: Any, **parameters: Any) -> tuple[list[Any], list[int]]:
    """Results of a batch of steps and their axes; kernels take only one leaf at a time."""
    new = jax.vmap(functools.partial(_plain_steps, **parameters), in_axes=axes)(*operands)
    return new, [0] * len(new)


def _derivative(operands: Any, tangents: Any, **parameters: Any) -> tuple[list[Any], list[Any]]:
    moves = [not isinstance(tangent, ad.Zero) for tangent in tangents]

    def plain(*moving: Any) -> list[Any]:
        given = iter(moving)
        every = [next(given) if m else x for x, m in zip(operands, moves, strict=True)]
        return _plain_steps(*every, **parameters)

    primals = [x for x, m in zip(operands, moves, strict=True) if m]
    new, slopes = jax.jvp(plain, primals, [t for t, m in zip(tangents, moves, strict=True) if m])
    pairs = zip(new, slopes, strict=True)
    zero: Any = ad.Zero
    return new, [zero.from_primal_value(x) if t.dtype == float0 else t for x, t in pairs]


batching.primitive_batchers[_one_pass] = _batched
ad.primitive_jvps[_one_pass] = _derivative
