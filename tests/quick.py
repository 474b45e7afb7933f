"""`jax.jit` that compiles several times sooner, for tests in which compiling is most of the time.

The older emitters and no optimization: what users get is compiled otherwise, and may round products
and sums otherwise. Tests that count roundings or read costs take `jax.jit`.
"""

import functools

import jax

OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_llvm_disable_expensive_passes": True,
}


def known():
    """`OPTIONS` as far as this version of XLA has them."""
    options = {}
    for name, value in OPTIONS.items():
        try:
            jax.jit(lambda x: x + 1, compiler_options={name: value})(1.0)
        except Exception:
            continue
        options[name] = value
    return options


JIT, KNOWN = jax.jit, known()
QUICK = {"compiler_options": KNOWN} if KNOWN else {}


@functools.wraps(jax.jit)
def quick_jit(*args, **options):
    return JIT(*args, **QUICK, **options)
