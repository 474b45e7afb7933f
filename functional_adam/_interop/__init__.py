"""Conversions of states and settings: Optax, PyTorch, files, moment formats, new parameters."""
