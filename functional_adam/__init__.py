"""Adam for JAX as pure functions: exact to a few roundings, Optax-compatible."""

from functional_adam._adam import adam, adamw, scale_by_adam, update
from functional_adam._apply import apply_updates
from functional_adam._state import AdamState, init
from functional_adam._types import GradientTransformation

__version__ = "0.1.0"

__all__ = [
    "AdamState",
    "GradientTransformation",
    "__version__",
    "adam",
    "adamw",
    "apply_updates",
    "init",
    "scale_by_adam",
    "update",
]
