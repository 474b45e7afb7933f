"""The installed distribution: what it exports, what it refuses, one step by hand, and its build."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys

import functional_adam_native
import jax
import jax.numpy as jnp
import numpy as np
import pytest

NATIVE = pathlib.Path(__file__).parents[1]
LIBRARY = next(pathlib.Path(functional_adam_native.__file__).parent.glob("kernel.*"))
TARGET = "functional_adam_test_step"

B1, B2, EPS, STEP_SIZE, DECAY = 0.87, 0.993, 3e-7, 0.0021, 0.00013
NEAREST, STOCHASTIC, CODES = 0, 1, 2


@pytest.fixture(autouse=True, scope="module")
def target():
    handler = functional_adam_native.library().functional_adam_step
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler), platform="cpu")


def numbers(size, seed, *, positive=False):
    drawn = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    return np.abs(drawn) if positive else drawn


def step(arrays, results, tiles, *, scalars=None, noise=None, aliases=None, **attributes):
    """One call of the library, as native/src/step.h has it."""
    rates = [B1, 1 - B1, 0, B2, 1 - B2, 0]
    plain = np.array([*rates, EPS, 0, 0, STEP_SIZE, DECAY, 0, 0, 0], np.float32)
    flags = dict(applies=True, decays=True, has_l2=False, has_eps_root=False, looks_ahead=False)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results]
    call = jax.ffi.ffi_call(TARGET, shapes, input_output_aliases=aliases)
    attributes = dict(moments=NEAREST, rounding=0) | flags | attributes
    attributes |= {n: np.int64(attributes[n]) for n in ("moments", "rounding")}
    scalars = plain if scalars is None else scalars
    noise = np.zeros(4 + len(tiles), np.uint32) if noise is None else noise
    return call(scalars, noise, *arrays, tiles=np.array(tiles, np.int64).reshape(-1), **attributes)


def leaf(shape, seed):
    size = int(np.prod(shape))
    arrays = [numbers(size, seed + n, positive=n == 3).reshape(shape) for n in range(4)]
    return arrays, [1, shape[0], shape[1], -(-shape[1] // 128), 128, shape[1], size]


def test_a_step_of_two_leaves_is_adam():
    (first, tiles), (second, others) = leaf((3, 1000), 1), leaf((700, 301), 11)
    new = step([*first, *second], [*first[1:], *second[1:]], [tiles, others])
    for arrays, got in zip((first, second), (new[:3], new[3:]), strict=True):
        g, theta, old_m, old_v = (x.astype(np.float64) for x in arrays)
        m, v = B1 * old_m + (1 - B1) * g, B2 * old_v + (1 - B2) * g * g
        after = theta - STEP_SIZE * m / (np.sqrt(v) + EPS) - DECAY * theta
        for x, expected in zip(got, (after, m, v), strict=True):
            np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6)


def test_one_array_as_several_arguments_in_place():
    size = 4000
    g, zeros = numbers(size, 3), np.zeros(size, np.float32)
    tiles = [1, 1, size, 32, 128, 0, 0]
    aliases = {3: 0, 4: 1, 5: 2}

    @jax.jit
    def once(x):
        y, zero = x * 2, jnp.zeros(size, jnp.float32)
        return step([y, y, zero, zero], [zeros] * 3, [tiles], aliases=aliases)

    theta, mu, nu = once(g)
    m, v = 2 * g * (1 - B1), (2 * g) ** 2 * (1 - B2)
    after = 2 * g - STEP_SIZE * m / (np.sqrt(v) + EPS) - DECAY * 2 * g
    for x, expected in zip((theta, mu, nu), (after, m, v), strict=True):
        np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6)


def test_all_threads_treat_subnormals_alike():
    size = 1 << 20
    arrays = [np.full(size, x, np.float32) for x in (1e-20, 1.3, 1e-39, 1e-39)]
    for x in step(arrays, arrays[1:], [[1, 1, size, size // 128, 128, 0, 0]]):
        assert np.unique(np.asarray(x)).size == 1


ARRAYS, TILES = leaf((3, 1000), 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(arrays=ARRAYS[:3]), r"Argument 6 \(nu\) is missing"),
        (dict(arrays=[*ARRAYS, ARRAYS[0]]), "Arguments are 7, not 6"),
        (dict(arrays=[ARRAYS[0][:2], *ARRAYS[1:]]), r"3 \(gradient\) has 2000 elements, not 3000"),
        (
            dict(arrays=[ARRAYS[0].astype(np.int32), *ARRAYS[1:]]),
            "is of another dtype, not float32",
        ),
        (dict(results=ARRAYS[1:3]), r"Result 3 \(nu\) is missing"),
        (
            dict(results=[ARRAYS[1].astype(jnp.bfloat16), *ARRAYS[2:]]),
            r"1 \(parameter\) is of bfloat16",
        ),
        (dict(tiles=[[1, 3, 1000, 7, 128, 0, 0]]), "leaf 0 has tiles that do not fit together"),
        (dict(tiles=[TILES, TILES]), r"noise\) has 6|Argument 7 \(gradient\) is missing"),
        (dict(scalars=np.zeros(13, np.float32)), r"1 \(scalars\) has 13 elements, not 14"),
        (dict(noise=np.zeros(4, np.uint32)), r"2 \(noise\) has 4 elements, not 5"),
        (dict(moments=3), "no such moments or rounding"),
        (dict(rounding=-1), "no such moments or rounding"),
        (dict(rounding=3), r"4 \(parameter\) is of float32, not bfloat16"),
        (dict(moments=STOCHASTIC), r"5 \(mu\) is of float32, not bfloat16"),
        (dict(moments=CODES), r"5 \(mu\) is of float32, not int8"),
    ],
)
def test_what_is_wrong_is_named(change, said):
    given = dict(arrays=ARRAYS, results=ARRAYS[1:], tiles=[TILES]) | change
    with pytest.raises(Exception, match=f"functional_adam_step: .*{said}"):
        jax.block_until_ready(step(**given))


def test_only_the_step_is_exported():
    options = ["-gU"] if sys.platform == "darwin" else ["-D", "--defined-only"]
    listed = subprocess.run(["nm", *options, LIBRARY], capture_output=True, text=True, check=True)
    names = [line.split()[-1].removeprefix("_") for line in listed.stdout.splitlines()]
    assert names == ["functional_adam_step"]


def test_a_wheel_serves_every_python():
    found = importlib.metadata.distribution("functional-adam-native")
    (tag,) = [n for n in (found.read_text("WHEEL") or "").splitlines() if n.startswith("Tag: ")]
    assert tag.startswith("Tag: py3-none-")
    assert found.version == functional_adam_native.__version__


def test_license_is_that_of_the_repository():
    assert (NATIVE / "LICENSE").read_text() == (NATIVE.parent / "LICENSE").read_text()


@pytest.mark.parametrize(
    ("environment", "options", "said"),
    [
        (dict(CXX="/no/such/compiler"), [], "No C++ compiler was found: install g++ or clang++"),
        (
            {},
            ["-DFFI_HEADERS=/nowhere"],
            "The headers of XLA's calls were not found: install jaxlib",
        ),
    ],
)
def test_a_build_says_what_it_lacks(tmp_path, environment, options, said):
    cmake, ninja = (shutil.which(n, path=f"{sys.prefix}/bin") for n in ("cmake", "ninja"))
    assert cmake is not None
    command = [cmake, "-S", NATIVE, "-B", tmp_path, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    inherited = {**os.environ, **environment}
    ran = subprocess.run(
        [*command, *options], env=inherited, capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0
    words = " ".join(ran.stderr.split())
    assert said in words
    assert "functional_adam works without functional-adam-native" in words
