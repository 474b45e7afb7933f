"""Flax Linen: handwritten digits, with parameters, optimizer and state in one `TrainState`.

No trick: `TrainState.create` calls `tx.init`, and `apply_gradients` calls `tx.update` and adds what
that returns. Adam's state is `state.opt_state`, its moments `state.opt_state.mu` and `.nu`.
"""

import sys

import jax
import numpy as np

import functional_adam as fa

try:
    from flax import linen as nn
    from flax.training.train_state import TrainState
    from sklearn.datasets import load_digits
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}. Install what this example needs: pip install flax scikit-learn")


def load():
    """512 images with 64 pixels in [0, 1], and their labels."""
    digits = load_digits()
    return np.float32(digits.data[:512] / 16), np.int32(digits.target[:512])


def create(tx):
    model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)])
    params = model.init(jax.random.key(0), load()[0])["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@jax.jit
def step(state, images, labels):
    def loss_of(params):
        log_p = jax.nn.log_softmax(state.apply_fn({"params": params}, images))
        return -(jax.nn.one_hot(labels, 10) * log_p).sum(axis=1).mean()

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), loss


def train(tx, steps):
    """The loss before every step, and the `TrainState` at the end."""
    state, data, losses = create(tx), load(), []
    for _ in range(steps):
        state, loss = step(state, *data)
        losses.append(loss)
    return losses, state


if __name__ == "__main__":
    from command import begin

    begin(__doc__)
    losses, _ = train(fa.adamw(1e-2, weight_decay=1e-2), steps=200)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
