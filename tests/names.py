"""Public functions that are no factories of members."""

# Adam of a table, which take hyperparameters too.
ROWS = {"flush_rows", "init_rows", "update_rows"}

OF_STATES = {
    *ROWS,
    *(
        "convert_moments",
        "diagnostics",
        "extend_state",
        "master_params",
        "memory_report",
        "offload",
        "overrides_from_torch",
        "state_shardings",
        "step",
    ),
    *("from_optax", "from_state_dict", "from_torch", "to_optax", "to_state_dict", "to_torch"),
}

# Of a transformation they make another.
MODIFIERS = {"cautious", "cautious_weight_decay", "clip_update_rms", "hyperball", "skip_spikes"}
