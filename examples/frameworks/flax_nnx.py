"""Flax NNX: handwritten digits, with `nnx.Optimizer` and with the older `nnx.ModelAndOptimizer`.

`wrt=nnx.Param` is needed and must be what the gradient is taken for: the model also counts its
calls in an integer, which is no parameter and which `tx.init` would refuse.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import functional_adam as fa

try:
    from flax import nnx
    from sklearn.datasets import load_digits
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}. Install what this example needs: pip install flax scikit-learn")


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, images):
        self.calls[...] += 1
        return self.out(nnx.relu(self.hidden(images)))


def load():
    """512 images with 64 pixels in [0, 1], and their labels."""
    digits = load_digits()
    return np.float32(digits.data[:512] / 16), np.int32(digits.target[:512])


def loss_of(model, images, labels):
    log_p = nnx.log_softmax(model(images))
    return -(jax.nn.one_hot(labels, 10) * log_p).sum(axis=1).mean()


@nnx.jit
def step(model, optimizer, images, labels):
    loss, grads = nnx.value_and_grad(loss_of)(model, images, labels)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def step_of_both(optimizer, images, labels):
    loss, grads = nnx.value_and_grad(loss_of)(optimizer.model, images, labels)
    optimizer.update(grads)
    return loss


def train(tx, steps, both=False):
    """The loss before every step, the model and the optimizer, which were changed in place."""
    model, data = Model(nnx.Rngs(0)), load()
    if both:
        optimizer = nnx.ModelAndOptimizer(model, tx, wrt=nnx.Param)
        return [step_of_both(optimizer, *data) for _ in range(steps)], model, optimizer
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    return [step(model, optimizer, *data) for _ in range(steps)], model, optimizer


if __name__ == "__main__":
    from command import begin

    begin(__doc__)
    for both in False, True:
        losses, _, optimizer = train(fa.adamw(1e-2, weight_decay=1e-2), steps=200, both=both)
        print(f"{type(optimizer).__name__}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
