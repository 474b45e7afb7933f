"""Adam in a jitted JAX training step: fifty epochs of a small regression with known losses.

The network is Linear(2, 16), ReLU, Linear(16, 1), fitted to one sample by mean squared error.
`single_sample_regression.json` holds its initial weights and the losses to reproduce.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import functional_adam as fa

DATA = Path(__file__).with_name("single_sample_regression.json")
EPOCHS = 50

x = jnp.array([[1.0, 2.0]])
y = jnp.array([[1.0]])
tx = fa.adam(learning_rate=1e-3)


def loss_of(params):
    """Mean squared error of the network on the one sample."""
    # The file's weights are (out, in), hence the transposes.
    hidden = jax.nn.relu(x @ params["0.weight"].T + params["0.bias"])
    prediction = hidden @ params["2.weight"].T + params["2.bias"]
    return jnp.mean((prediction - y) ** 2)


@jax.jit
def train_step(params, state):
    """One step of Adam. The loss returned is the loss before the step."""
    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, state = tx.update(grads, state, params)
    return fa.apply_updates(params, updates), state, loss


def main():
    """Train, print every fifth loss beside its reference, and fail if one differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args()

    data = json.loads(DATA.read_text(encoding="utf-8"))
    params = {name: jnp.array(weights) for name, weights in data["initial"].items()}
    state = tx.init(params)

    losses = {}
    for epoch in range(1, EPOCHS + 1):
        params, state, loss = train_step(params, state)
        losses[epoch] = float(loss)

    print("epoch      loss  reference")
    missed = []
    for epoch, reference in data["reference_loss"].items():
        loss = losses[int(epoch)]
        print(f"{epoch:>5}  {loss:.6f}   {reference:.6f}")
        if not abs(loss - reference) < 1.5e-6:  # one unit of the sixth decimal; NaN fails too
            missed.append(epoch)
    if missed:
        sys.exit(f"These epochs' losses are not the reference's: {', '.join(missed)}.")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C: no traceback
    main()
