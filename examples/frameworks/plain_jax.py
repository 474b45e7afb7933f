"""Plain JAX: handwritten digits with a two-layer network, parameters in a dict, one jitted step.

Nothing but pure functions, so the whole run is one `jax.lax.scan`: parameters and state are its
carry, which works because their shapes and dtypes never change.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import functional_adam as fa

try:
    from sklearn.datasets import load_digits
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}. Install what this example needs: pip install scikit-learn")


def load():
    """512 images with 64 pixels in [0, 1], and their labels."""
    digits = load_digits()
    return np.float32(digits.data[:512] / 16), np.int32(digits.target[:512])


def init_params(key):
    keys = jax.random.split(key)
    return {
        "w1": jax.random.normal(keys[0], (64, 32)) / 8,
        "b1": jnp.zeros(32),
        "w2": jax.random.normal(keys[1], (32, 10)) / 6,
        "b2": jnp.zeros(10),
    }


def loss_of(params, images, labels):
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    log_p = jax.nn.log_softmax(hidden @ params["w2"] + params["b2"])
    return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()


def train(tx, steps):
    """The loss before every step, the parameters at the end, and the optimizer's state."""
    images, labels = load()

    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params, images, labels)
        updates, state = tx.update(grads, state, params)
        return (fa.apply_updates(params, updates), state), loss

    @jax.jit
    def run(params, state):
        return jax.lax.scan(step, (params, state), length=steps)

    params = init_params(jax.random.key(0))
    (params, state), losses = run(params, tx.init(params))
    return losses, params, state


if __name__ == "__main__":
    from command import begin

    begin(__doc__)
    losses, *_ = train(fa.adamw(1e-2, weight_decay=1e-2), steps=200)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
