"""Optax's wrappers around Adam, one function each, all on the same regression of diabetes.

Nothing is special about `fa.adamw` in any of them: with `optax.adamw` in its place they do the
same. What each wrapper wants of its user is in its function.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

import functional_adam as fa

try:
    import optax
    from sklearn.datasets import load_diabetes
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}. Install what this example needs: pip install optax scikit-learn")

STEPS = 200


@functools.cache
def load():
    """Ten standardised findings on 442 patients, and the progress of their disease."""
    x, y = load_diabetes(return_X_y=True)
    return x / x.std(axis=0), (y - y.mean()) / y.std()


def init_params():
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((10, 16)) / 3, rng.standard_normal((16, 1)) / 4
    return {"hidden": {"w": w, "b": np.zeros(16)}, "out": {"w": v, "b": np.zeros(1)}}


def loss_of(params, x, y):
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return jnp.mean(((hidden @ params["out"]["w"] + params["out"]["b"])[:, 0] - y) ** 2)


def fit(tx, extra=lambda loss, grad_fn: {}, batches=1, spoil=None):
    """The loss before every step, then parameters and state; `extra` gives `update` more to see.

    The data are seen in turn in so many `batches`; that of step `spoil` is NaN.
    """
    x, y = (np.array_split(data, batches) for data in load())
    params = jax.tree.map(jnp.asarray, init_params())

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        more = extra(loss, lambda params, _: jax.grad(loss_of)(params, x, y))
        updates, state = tx.update(grads, state, params, **more)
        return fa.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for t in range(STEPS):
        inputs = jnp.asarray(x[t % batches]) * (jnp.nan if t == spoil else 1)
        params, state, loss = step(params, state, inputs, jnp.asarray(y[t % batches]))
        losses.append(float(loss))
    return losses, params, state


def chain():
    """Clipping before Adam changes its moments; clipping after it would bound its steps."""
    return fit(optax.chain(optax.clip_by_global_norm(0.5), fa.adamw(1e-2, weight_decay=0.1)))


def partition():
    """A slower Adam for the first layer: labels for subtrees, one transformation a label."""
    labels = {"hidden": "slow", "out": "fast"}
    return fit(optax.partition({"slow": fa.adamw(3e-3), "fast": fa.adamw(3e-2)}, labels))


def masked():
    """The first layer frozen. `masked` alone would add its bare gradients: set them to zero."""
    moving = {"hidden": False, "out": True}
    still = jax.tree.map(lambda moves: not moves, moving)
    return fit(
        optax.chain(optax.masked(fa.adamw(1e-2), moving), optax.masked(optax.set_to_zero(), still))
    )


def multi_steps():
    """One step of Adam on the mean gradient of four small batches: a quarter as many steps."""
    return fit(optax.MultiSteps(fa.adamw(3e-2), every_k_schedule=4), batches=4)


def apply_if_finite():
    """A batch of NaN is skipped: neither parameters nor moments nor Adam's count change."""
    return fit(optax.apply_if_finite(fa.adamw(1e-2), max_consecutive_errors=3), spoil=50)


def inject_hyperparams():
    """The rate as a part of the state. A mask must be static, or it would pass for a schedule."""
    schedule = optax.cosine_decay_schedule(1e-2, STEPS)
    tx = optax.inject_hyperparams(fa.adamw, static_args=("mask",))
    mask = {"hidden": {"w": True, "b": False}, "out": {"w": True, "b": False}}
    return fit(tx(schedule, weight_decay=0.1, mask=mask))


def schedule_free():
    """Averaging replaces momentum: Adam gets b1=0, the wrapper its own b1 > 0.

    Gradients are taken at one point and the model is evaluated at another.
    """
    rate = optax.warmup_constant_schedule(0.0, 1e-2, 20)
    tx = optax.contrib.schedule_free(fa.adamw(rate, b1=0.0), learning_rate=rate, b1=0.9)
    losses, params, state = fit(tx)
    params = optax.contrib.schedule_free_eval_params(state, params)
    x, y = map(jnp.asarray, load())
    return [*losses, float(loss_of(params, x, y))], params, state


def reduce_on_plateau():
    """The loss is an argument of `update`, which every other member of the chain ignores.

    Smaller steps gain less, which looks like the next plateau: `min_scale` ends that.
    """
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=5, rtol=0.02, min_scale=0.1)
    return fit(optax.chain(fa.adamw(3e-2), plateau), extra=lambda loss, _: {"value": loss})


def sam():
    """Sharpness-aware: climb by 0.05, then take Adam's step from the gradient found there.

    In opaque mode `update` does both and needs a function for the second gradient. In transparent
    mode every second call is the climb, and the parameters between the two are not yours to use.
    """
    climb = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    tx = optax.contrib.sam(fa.adamw(1e-2), climb, opaque_mode=True)
    return fit(tx, extra=lambda _, grad_fn: {"grad_fn": grad_fn})


def sam_transparent():
    climb = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    return fit(optax.contrib.sam(fa.adamw(1e-2), climb))


RECIPES = [
    *(chain, partition, masked, multi_steps, apply_if_finite),
    *(inject_hyperparams, schedule_free, reduce_on_plateau, sam, sam_transparent),
]


def train():
    """{name of the recipe: (losses, parameters, state)}."""
    return {recipe.__name__: recipe() for recipe in RECIPES}


if __name__ == "__main__":
    from command import begin

    begin(__doc__)
    for name, (losses, *_) in train().items():
        print(f"{name:20} loss {losses[0]:.3f} -> {losses[-1]:.3f}")
