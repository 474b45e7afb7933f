"""Haiku: handwritten digits with `hk.transform`, biases without weight decay.

Parameters are a plain dict of dicts, `{"linear": {"w": ..., "b": ...}}`, so there is no trick to
the training; the decay's mask is a function of them and goes by the names that Haiku gives.
"""

import sys

import jax
import numpy as np

import functional_adam as fa

try:
    import haiku as hk
    from sklearn.datasets import load_digits
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}. Install what this example needs: pip install dm-haiku scikit-learn")


def load():
    """512 images with 64 pixels in [0, 1], and their labels."""
    digits = load_digits()
    return np.float32(digits.data[:512] / 16), np.int32(digits.target[:512])


@hk.without_apply_rng
@hk.transform
def network(images):
    return hk.Sequential([hk.Linear(32), jax.nn.relu, hk.Linear(10)])(images)


def loss_of(params, images, labels):
    log_p = jax.nn.log_softmax(network.apply(params, images))
    return -(jax.nn.one_hot(labels, 10) * log_p).sum(axis=1).mean()


def weights_only(params):
    """A mask for `weight_decay`: True for what Haiku calls "w", False for "b"."""
    return {module: {name: name == "w" for name in leaves} for module, leaves in params.items()}


def train(tx, steps):
    """The loss before every step, the parameters at the end, and the optimizer's state."""

    @jax.jit
    def step(params, state, images, labels):
        loss, grads = jax.value_and_grad(loss_of)(params, images, labels)
        updates, state = tx.update(grads, state, params)
        return fa.apply_updates(params, updates), state, loss

    data, losses = load(), []
    params = network.init(jax.random.key(0), data[0])
    state = tx.init(params)
    for _ in range(steps):
        params, state, loss = step(params, state, *data)
        losses.append(loss)
    return losses, params, state


if __name__ == "__main__":
    from command import begin

    begin(__doc__)
    losses, *_ = train(fa.adamw(1e-2, weight_decay=1e-2, mask=weights_only), steps=200)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
