"""`offload`: keeps moments in the host's memory and fetches them to the devices leaf by leaf.

This module decides which leaves wait on the host, and makes the shardings of a state. The transfers
happen in the loop over leaves; `_host` has their code.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.sharding import Sharding
from jax.tree_util import keystr

from functional_adam import _check, _host, _trees
from functional_adam._devices.sharding import state_shardings
from functional_adam._devices.waiting import LeafRule, Moments, chosen
from functional_adam._nested import adam_states, by_parameter, states_or_shapes, with_moments
from functional_adam._origin import Origin
from functional_adam._overrides import path_of
from functional_adam._state import AdamState, is_adam_state, state_shapes
from functional_adam._transform import settings_of, transformation
from functional_adam._types import GradientTransformation, PyTree


class Offloaded(NamedTuple):
    """What `offload` returns.

    Attributes:
        tx: the transformation. `tx.update` and `step` go through the leaves in turn: they fetch the
            moments of a leaf, update them and send them back.
        shardings: the sharding of each array of the state between steps. Pass it to `out_shardings`
            of the jitted `init` and of the jitted step, to `jax.device_put`, to checkpoints and to
            `memory_report`.
        device_shardings: the same with every array on the devices. Move the state there for a
            transformation without offload, for `diagnostics` and for other functions.
    """

    tx: GradientTransformation
    shardings: PyTree
    device_shardings: PyTree


def offload(
    tx: GradientTransformation,
    params: PyTree,
    shardings: PyTree = None,
    *,
    leaves: LeafRule | Sequence[LeafRule] | None = None,
) -> Offloaded:
    """Keep the moments of `tx` in the host's memory, and fetch them leaf by leaf in each step.

    Between steps, `mu`, `nu`, `nu_scale` and the trees of `extra` wait in `pinned_host` memory.
    During a step, the devices hold the moments of two leaves: one arrives while the other leaves.
    (The compiler for TPUs fetches one or two leaves further ahead.) The results are those of `tx`,
    bit for bit. Counts, residuals and the state of other transformations stay on the devices.

    A step transfers 16 bytes per parameter with float32 moments, 8 with moments="bfloat16" and 4
    with "int8", half of them in each direction.

    Pass the returned `shardings` to `out_shardings` of the jitted `init` and of the jitted step,
    and donate the state. To offload a chain, pass the whole chain as `tx`. You may also wrap the
    returned `tx`, but then the state has arrays that these shardings do not cover.

    Args:
        tx: The transformation: one made by this package, or one of Optax that contains such a
            transformation (`chain`, `masked`, `partition`, `inject_hyperparams`, ...).
        params: The parameters, or `jax.ShapeDtypeStruct`s of them.
        shardings: What `state_shardings` returned for `tx` and `params`. None (default) calls it;
            the parameters must then be on a mesh, which may have a single device.
        leaves: Which leaves have their moments on the host. A number of bytes, such as 2**20,
            chooses leaves whose moments take at least that many bytes on one device. A regular
            expression chooses leaves in whose path (`layers/0/attn/kernel`) it is found. A fraction
            in (0, 1] chooses the fewest leaves, largest first, that hold at least that fraction of
            the bytes. A function `(path, leaf) -> bool` chooses leaves for which it is True, where
            `leaf` has the shape and dtype of the first moment. In a list of such rules, each rule
            chooses among the leaves that the rules before it chose. None (default) is 2**20:
            transfers of smaller leaves cost more time than they are worth in memory.

    Returns:
        An `Offloaded`: `(tx, shardings, device_shardings)`.

    Raises:
        ValueError: `tx` has no state of this package; `shardings` is not built like the state, or
            already has arrays on the host; a regular expression is invalid or matches no leaf; a
            fraction or a number of bytes is out of range; a device has no `pinned_host` memory.
        TypeError: `tx` has no `init`, a leaf of `shardings` is not a sharding, or a rule has none
            of the types above.
        NotImplementedError: this version of JAX has no `jax.memory`.

    Example:
        >>> import functional_adam as fa, jax, jax.numpy as jnp
        >>> from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        >>> on_mesh = NamedSharding(Mesh(jax.devices()[:1], "data"), P())
        >>> params = jax.device_put({"w": jnp.ones((512, 1024)), "b": jnp.zeros(512)}, on_mesh)
        >>> tx, shardings, _ = fa.offload(fa.adamw(0.1, moments="bfloat16"), params)
        >>> state = jax.jit(tx.init, out_shardings=shardings)(params)
        >>> params, state = fa.step(tx, params, state, params)
        >>> state.mu["w"].sharding.memory_kind, state.mu["b"].sharding.memory_kind
        ('pinned_host', 'device')

    References:
        Ren et al. 2021, ZeRO-Offload: Democratizing Billion-Scale Model Training. There the host
        also computes the step; here it only stores the moments.
    """
    state = state_shapes(tx, params)
    states_or_shapes("tx.init(params)", state)
    if not _host.HAS_SPACES:
        raise NotImplementedError(
            f"offload needs a version of JAX that has jax.memory; this is {jax.__version__}."
        )
    if shardings is None:
        shardings = state_shardings(tx, params)
    _check_shardings(shardings, state)
    waiting = chosen(leaves, _moments(state, shardings))
    settings = settings_of(tx)
    if settings is None:
        within = GradientTransformation(
            _Init(tx.init, waiting), _Update(tx.update, waiting, _takes_more(tx.update))
        )
    else:
        made_by = settings.origin and Origin(
            "offload", (("", settings.origin),), settings.origin.arguments
        )
        within = transformation(settings._replace(waiting=waiting, origin=made_by))
    return Offloaded(within, _waiting_shardings(shardings, waiting), shardings)


def _waiting_shardings(shardings: PyTree, waiting: _host.Waiting) -> PyTree:
    """`shardings`, with the moments of the leaves in `waiting` on the host."""
    kind: Callable[[Any], Any] = lambda sharding: sharding.with_memory_kind(_host.KIND)  # noqa: E731
    return _map_states(lambda state: with_moments(state, waiting, kind), shardings)


def _map_states(f: Callable[[AdamState], AdamState], tree: PyTree) -> PyTree:
    """`tree` with `f` applied to each of this package's states in it."""
    return jax.tree.map(lambda x: f(x) if is_adam_state(x) else x, tree, is_leaf=is_adam_state)


def _moments(state: PyTree, shardings: PyTree) -> dict[str, Moments]:
    """The moments of each parameter by its path, with their bytes on one device."""
    found: dict[str, Moments] = {}
    for one, places in zip(adam_states(state), adam_states(shardings), strict=True):
        parts = [(getattr(one, k), getattr(places, k)) for k in ("mu", "nu", "nu_scale")]
        parts += [(tree, places.extra[k]) for k, tree in (one.extra or {}).items()]
        for tree, where in parts:
            lies = by_parameter("shardings", where, places)
            for path, leaf in by_parameter("state", tree, one).items():
                if leaf is None:
                    continue
                size = math.prod(lies[path].shard_shape(leaf.shape)) * leaf.dtype.itemsize
                new = Moments(path_of(path), jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), 0)
                old = found.setdefault(keystr(path), new)
                found[keystr(path)] = old._replace(bytes=old.bytes + size)
    return found


# ---- Transformations of other libraries that hold one of this package ----


# Data classes, because JAX needs weak references to what it traces, and NamedTuples have none.
@dataclass(frozen=True)
class _Init:
    """`init` of a transformation, followed by a move of the waiting moments to the host."""

    init: Callable[[PyTree], PyTree]
    waiting: _host.Waiting

    def __call__(self, params: PyTree) -> PyTree:
        move = lambda state: with_moments(state, self.waiting, _host.on_host)  # noqa: E731
        return _map_states(move, self.init(params))


@dataclass(frozen=True)
class _Update:
    """Its `update`. Steps of this package that run inside it know which leaves wait."""

    update: Callable[..., tuple[PyTree, PyTree]]
    waiting: _host.Waiting
    takes_more: bool  # whether the update accepts extra arguments

    def __call__(
        self, updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        more = extra_args if self.takes_more else {}
        return self._knowing(self.update, updates, state, params, **more)

    @property
    def take_step(self) -> Callable[..., tuple[PyTree, PyTree]] | None:
        """What `step` calls instead of `update` if `tx` is a wrapper of this package; else None."""
        inner = getattr(self.update, "take_step", None)
        return inner and functools.partial(self._knowing, inner)

    def _knowing(self, call: Callable[..., Any], *arguments: Any, **extra_args: Any) -> Any:
        """Run `call`. Steps of this package that run inside it know which leaves wait."""
        token = _host.WITHIN.set(self.waiting)
        try:
            return call(*arguments, **extra_args)
        finally:
            _host.WITHIN.reset(token)


def _takes_more(update: Callable[..., Any]) -> bool:
    """Whether an update has `**extra_args`; Optax passes extra arguments to no other."""
    kinds = [x.kind for x in inspect.signature(update).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


# ---- Arguments ----


def _check_shardings(shardings: PyTree, state: PyTree) -> None:
    """Check that they fit the state, and that all their devices can read the host's memory."""
    given = _trees.leaves_like("shardings", shardings, state, "the state")
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=_trees.is_none)
    for (key_path, leaf), sharding in zip(leaves, given, strict=True):
        if leaf is None:
            continue
        path = keystr(key_path)
        if not isinstance(sharding, Sharding):
            raise TypeError(
                f"shardings{path} must be a sharding, as state_shardings returns it; got "
                f"{_check.show(sharding)}."
            )
        if sharding.memory_kind == _host.KIND:
            raise ValueError(
                f"shardings{path} lies in the host's memory already: pass what state_shardings "
                "returned, and choose leaves with leaves=."
            )
        _check_memory(sharding)


def _check_memory(sharding: Sharding) -> None:
    for device in sharding.addressable_devices:
        kinds = [memory.kind for memory in device.addressable_memories()]
        if _host.KIND not in kinds:
            raise ValueError(
                f"offload needs devices that can read {_host.KIND!r} memory; {device} has "
                f"{' and '.join(map(repr, kinds)) or 'no kinds of memory'}. On a CPU, a newer JAX "
                "supports it. On other devices, do without offload."
            )
