"""Adam for JAX as pure functions: exact to a few roundings, Optax-compatible."""

from functional_adam._apply import apply_updates, master_params
from functional_adam._devices.offload import offload
from functional_adam._devices.sharding import state_shardings
from functional_adam._interop.convert import convert_moments
from functional_adam._interop.extend import extend_state
from functional_adam._interop.optax import from_optax, to_optax
from functional_adam._interop.state_dict import from_state_dict, to_state_dict
from functional_adam._interop.torch import from_torch, to_torch
from functional_adam._interop.torch_groups import overrides_from_torch
from functional_adam._optimizers.adabelief import adabelief, scale_by_belief
from functional_adam._optimizers.adam import adam, adamw, scale_by_adam
from functional_adam._optimizers.adam_atan2 import adam_atan2
from functional_adam._optimizers.adamax import adamax, adamaxw, scale_by_adamax
from functional_adam._optimizers.ademamix import ademamix, scale_by_ademamix
from functional_adam._optimizers.adopt import adopt, scale_by_adopt
from functional_adam._optimizers.amsgrad import amsgrad, scale_by_amsgrad
from functional_adam._optimizers.cautious import cautious
from functional_adam._optimizers.cautious_weight_decay import cautious_weight_decay
from functional_adam._optimizers.clip_update_rms import clip_update_rms
from functional_adam._optimizers.hyperball import hyperball
from functional_adam._optimizers.lamb import lamb
from functional_adam._optimizers.laprop import laprop
from functional_adam._optimizers.nadam import nadam, nadamw
from functional_adam._optimizers.radam import radam, scale_by_radam
from functional_adam._optimizers.simplified_ademamix import (
    scale_by_simplified_ademamix,
    simplified_ademamix,
)
from functional_adam._optimizers.skip_spikes import skip_spikes
from functional_adam._optimizers.spike_state import SkipSpikesState
from functional_adam._optimizers.yogi import scale_by_yogi, yogi
from functional_adam._rows.init_rows import init_rows
from functional_adam._rows.update_rows import flush_rows, update_rows
from functional_adam._state import AdamState, init
from functional_adam._storage.float_formats import BFloat16, Full
from functional_adam._storage.formats import Int8
from functional_adam._take_step import step
from functional_adam._types import GradientTransformation
from functional_adam._update import update
from functional_adam._watch.diagnostics import diagnostics
from functional_adam._watch.report import memory_report

__version__ = "0.1.0"

__all__ = [
    "AdamState",
    "BFloat16",
    "Full",
    "GradientTransformation",
    "Int8",
    "SkipSpikesState",
    "__version__",
    "adabelief",
    "adam",
    "adam_atan2",
    "adamax",
    "adamaxw",
    "adamw",
    "ademamix",
    "adopt",
    "amsgrad",
    "apply_updates",
    "cautious",
    "cautious_weight_decay",
    "clip_update_rms",
    "convert_moments",
    "diagnostics",
    "extend_state",
    "flush_rows",
    "from_optax",
    "from_state_dict",
    "from_torch",
    "hyperball",
    "init",
    "init_rows",
    "lamb",
    "laprop",
    "master_params",
    "memory_report",
    "nadam",
    "nadamw",
    "offload",
    "overrides_from_torch",
    "radam",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_amsgrad",
    "scale_by_belief",
    "scale_by_radam",
    "scale_by_simplified_ademamix",
    "scale_by_yogi",
    "simplified_ademamix",
    "skip_spikes",
    "state_shardings",
    "step",
    "to_optax",
    "to_state_dict",
    "to_torch",
    "update",
    "update_rows",
    "yogi",
]
