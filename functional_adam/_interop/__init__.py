"""States and settings to and from elsewhere: Optax, PyTorch, files, formats, other parameters."""
