"""Habits from PyTorch, with stand-ins for its tensors and modules.

A row is the code as a newcomer writes it, the error, and parts of its message in their order, what
is between them being free.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from newcomer import GRADS, NOT_PARAMS, PARAMS, RATE, RETURNED, STATE, TX, scheduled

import functional_adam as fa


class TorchSize(tuple):
    pass


class Tensor:
    """What PyTorch's tensor is to others: `size` a method, `shape` a tuple of its own, a dtype
    that NumPy does not know, no numbers for NumPy while it needs a gradient."""

    __module__ = "torch"

    def __init__(self, values):
        self.values, self.dtype = np.float32(values), object()
        self.shape, self.size = TorchSize(self.values.shape), self.values.copy

    def __repr__(self):
        return f"tensor({self.values})"

    def __float__(self):
        return float(self.values)

    def __array__(self, *_, **__):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

    def detach(self):
        return self.values


class TorchModule:
    """PyTorch's module: like a schedule, it can be called."""

    def __call__(self, x):
        return x

    def parameters(self):
        return iter([Tensor(np.ones((3, 2))), Tensor(np.ones(2))])

    def state_dict(self):
        return {"weight": Tensor(np.ones((3, 2))), "bias": Tensor(np.ones(2))}


FROM_TORCH = {
    # Habits from PyTorch.
    "adam(params)": (
        lambda: fa.adam(PARAMS),
        TypeError,
        [f"{RATE}{NOT_PARAMS}", " of type dict."],
    ),
    "adam(list of params, 1e-3)": (
        lambda: fa.adam(jax.tree.leaves(PARAMS), 1e-3),
        TypeError,
        [f"{RATE}{NOT_PARAMS}", " of type list."],
    ),
    "adam(one array, 1e-3)": (
        lambda: fa.adam(jnp.ones((3, 2)), 1e-3),
        ValueError,
        [f"{RATE}{NOT_PARAMS}an array of shape (3, 2)."],
    ),
    "adam(model.parameters())": (
        lambda: fa.adam(TorchModule().parameters()),
        TypeError,
        [f"{RATE}{NOT_PARAMS}", "iterator"],
    ),
    "adam(the values of a dict)": (
        lambda: fa.adam(TorchModule().state_dict().values()),
        TypeError,
        [f"{RATE}{NOT_PARAMS}dict_values([tensor("],
    ),
    "adam(list(model.parameters()))": (
        lambda: fa.adam(list(TorchModule().parameters())),
        TypeError,
        [f"{RATE}{NOT_PARAMS}[tensor(", " of type list."],
    ),
    "adam(model.state_dict())": (
        lambda: fa.adam(TorchModule().state_dict()),
        TypeError,
        [f"{RATE}{NOT_PARAMS}", " of type dict."],
    ),
    "adam(groups of parameters)": (
        lambda: fa.adam([{"params": list(TorchModule().parameters()), "lr": 1e-3}]),
        TypeError,
        [f"{RATE}{NOT_PARAMS}", " of type list."],
    ),
    "adam(model)": (
        lambda: fa.adam(TorchModule()),
        TypeError,
        [f"{RATE}{NOT_PARAMS}<", "TorchModule."],
    ),
    "adam(Linen's model)": (
        lambda: fa.adam(linen.Dense(2)),
        TypeError,
        [f"{RATE}{NOT_PARAMS}Dense(", "linear.Dense."],
    ),
    "a rate in a tensor": (
        lambda: fa.adam(Tensor(1e-3)),
        TypeError,
        [f"{RATE}; got tensor(0.001", " of type torch.Tensor. Write float(value)."],
    ),
    "a rate in a tensor of shape (1,)": (
        lambda: fa.adam(Tensor([1e-3])),
        TypeError,
        [
            f"{RATE}; got tensor(",
            " of type torch.Tensor. Take its only element: value.reshape(()).",
        ],
    ),
    "a schedule of tensors": (
        lambda: scheduled(Tensor(1e-3)),
        TypeError,
        [f"{RETURNED}tensor(0.001", " of type torch.Tensor. Write float(value)."],
    ),
    "tensors to init": (
        lambda: fa.init(TorchModule().state_dict()),
        TypeError,
        [
            "params['bias'] must be an array; got tensor(",
            "PyTorch's tensors: jnp.asarray(x.detach()",
        ],
    ),
    "tensors as gradients": (
        lambda: TX.update({"w": Tensor(GRADS["w"]), "b": Tensor(GRADS["b"])}, STATE, PARAMS),
        TypeError,
        ["grads['b'] must be an array; got tensor(", "PyTorch's tensors: jnp.asarray(x.detach()."],
    ),
    "PyTorch's model to init": (
        lambda: fa.init(TorchModule()),
        TypeError,
        ["params must be an array; got <", "PyTorch's tensors: jnp.asarray(x.detach().cpu().nump"],
    ),
}
