"""A part of a leaf, as a device of a mesh has it, steps as it does in the whole leaf."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codes import CODES
from quick import quick_jit

import functional_adam as fa
from functional_adam._kernels import cpu, tpu
from functional_adam._kernels.choice import HAS_KERNELS, Plan, step_part
from functional_adam._kernels.tiles import Part, kernels, tiles
from functional_adam._leaf import LeafConfig
from functional_adam._scalars import scalars
from functional_adam._storage.leaf_state import LeafState
from functional_adam._storage.noise import leaf_key, step_noise
from functional_adam._transform import settings_of

pytestmark = pytest.mark.skipif(not HAS_KERNELS, reason="kernels need jax 0.7.2")

FORMS = ["plain", "cpu", "interpret gpu", "interpret tpu"]
COUNT = jnp.int32(1)


def whole_leaf(shape):
    """The operands of a first step, and what is known of it before any number is."""
    settings = settings_of(fa.adamw(0.02, b1=0.8, b2=0.97, weight_decay=0.1, moments=CODES))
    random = np.random.default_rng(3)
    theta, g = (jnp.asarray(random.normal(size=shape), jnp.float32) for _ in range(2))
    state = fa.init(theta, moments=CODES)
    stored = LeafState(state.mu, state.nu, {}, state.nu_scale)
    s = scalars(settings, COUNT, np.dtype(np.float32))
    given = s, step_noise(COUNT), jnp.asarray(leaf_key("['w']"))
    config = LeafConfig(settings.variant, settings.moments, None, True, g.dtype, True)
    return config, Part(given, g, stored, theta)


def cut(part, axis, half):
    """A half of a leaf along an axis."""

    def taken(x):
        size = x.shape[axis] // 2
        return jax.lax.slice_in_dim(x, half * size, (half + 1) * size, axis=axis)

    scale = taken(part.stored.scale) if axis < part.stored.scale.ndim else part.stored.scale
    stored = jax.tree.map(taken, part.stored._replace(scale=None))._replace(scale=scale)
    starts = [np.uint32(0)] * part.g.ndim
    starts[axis] = np.uint32(half * (part.g.shape[axis] // 2))
    g, theta = taken(part.g), taken(part.theta)
    return part._replace(g=g, stored=stored, theta=theta, starts=tuple(starts))


def run(config, shape, form, part):
    return quick_jit(lambda part: step_part(Plan(config, shape, form), part))(part)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((6, 256), 0), ((6, 256), 1), ((4, 6, 128), 1), ((2, 4, 6, 128), 1), ((512,), 0)],
    ids=str,
)
def test_a_part_of_a_leaf_has_the_bits_of_its_place(form, shape, axis, monkeypatch):
    config, part = whole_leaf(shape)
    mode = form if form.startswith("interpret") else "on"  # plain, as these leaves are small
    whole = run(config, shape, "on", part)
    if form == "cpu":
        monkeypatch.setattr(cpu, "_PIECE", 256)
        monkeypatch.setattr(cpu, "_LEAST", 256)
    parts = [run(config, shape, mode, cut(part, axis, half)) for half in (0, 1)]
    (_, first), (_, second) = parts
    for name in ("m", "v", "scale"):
        pieces = [np.asarray(getattr(x, name)) for x in (first, second)]
        together = np.concatenate(pieces, axis)
        np.testing.assert_array_equal(together, getattr(whole[1], name), err_msg=name)


def test_what_is_a_leaf_of_full_blocks():
    assert tiles((4, 6, 256), (4, 6, 2)) == (4, 6, 256, 2, 128, 256, 1536)
    assert tiles((2, 3, 128), (2, 3, 1), (2, 6, 128)) == (2, 3, 128, 1, 128, 128, 768)
    assert tiles((6, 200), (6, 2)) == (1, 6, 200, 2, 112, 200, 1200)
    assert tiles((0, 128), (0, 1)) is None
    assert tiles((2, 2, 4, 128), (2, 2, 4, 1), (2, 4, 8, 128)) is None  # three distances


@pytest.mark.parametrize(
    ("shape", "scales", "wanted"),
    [
        ((4096, 1024), (4096, 8), ("gpu", "tpu")),
        ((512, 2880), (512, 23), ("gpu", "tpu")),  # the last block is not full
        ((1000, 96), (1000, 1), ("gpu", "tpu")),
        ((1000, 320), (1000, 3), ("gpu",)),  # blocks of 112
        ((), (1,), ("gpu",)),
        ((2**16, 2**15), (2**16, 2**8), ("tpu",)),  # more elements than 31 bits count
        ((0, 128), (0, 1), ()),
        ((512, 8192), (512, 2), ("gpu", "tpu")),  # blocks of 4096
        ((512, 8192), (512, 1), ("gpu",)),  # 32 of which are too much for a TPU at once
        ((1, 2**31), (1, 2**24), ()),
    ],
    ids=str,
)
def test_which_devices_have_a_kernel_for_a_leaf(shape, scales, wanted):
    assert kernels(shape, scales, np.dtype(np.float32)) == wanted
    half = kernels(shape, scales, np.dtype(np.float16))  # which Mosaic has not
    assert half == tuple(name for name in wanted if name != "tpu")


@pytest.mark.parametrize("blocks", [1, 2, 31, 33, 128, 129, 250, 255, 256, 393, 2**16])
@pytest.mark.parametrize("length", [128, 256, 1024, 4096])
def test_a_tile_fits_into_the_memory_of_a_tpu(length, blocks):
    found = tiles((4096, blocks * length), (4096, blocks))
    rows, wide, across = tpu._tile(found)
    # A float32 update reads 10 bytes an element and writes 6, each twice, as one tile is computed
    # while the next one is on its way. By default a kernel has 16 MiB, for what it computes too.
    assert rows * wide * length * 2 * (10 + 6) <= 2**22
    assert rows % 32 == 0  # tiles of 8-bit numbers
    assert across == blocks or across % 128 == 0 == across % wide
    assert wide * math.ceil(across / wide) < across + wide
