"""Equinox: handwritten digits with an MLP, whose activation function is a leaf of its tree.

Adam cannot train a function, so it gets `eqx.filter(model, eqx.is_inexact_array)`: the same tree,
and None for everything else. None passes through `init` and `update`, in the parameters and in the
gradients of `eqx.filter_grad`, so that `fa.apply_updates` fits the updates to the whole model.
"""

import sys

import jax
import numpy as np

import functional_adam as fa

try:
    import equinox as eqx
    from sklearn.datasets import load_digits
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}. Install what this example needs: pip install equinox scikit-learn")


def load():
    """512 images with 64 pixels in [0, 1], and their labels."""
    digits = load_digits()
    return np.float32(digits.data[:512] / 16), np.int32(digits.target[:512])


@eqx.filter_value_and_grad
def loss_and_grads(model, images, labels):
    log_p = jax.nn.log_softmax(jax.vmap(model)(images))
    return -(jax.nn.one_hot(labels, 10) * log_p).sum(axis=1).mean()


def train(tx, steps):
    """The loss before every step, the model at the end, and the optimizer's state."""

    @eqx.filter_jit
    def step(model, state, images, labels):
        loss, grads = loss_and_grads(model, images, labels)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return fa.apply_updates(model, updates), state, loss

    model = eqx.nn.MLP(64, 10, width_size=32, depth=1, key=jax.random.key(0))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    data, losses = load(), []
    for _ in range(steps):
        model, state, loss = step(model, state, *data)
        losses.append(loss)
    return losses, model, state


if __name__ == "__main__":
    from command import begin

    begin(__doc__)
    losses, *_ = train(fa.adamw(1e-2, weight_decay=1e-2), steps=200)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
