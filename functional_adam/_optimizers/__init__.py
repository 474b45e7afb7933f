"""The optimizers of the family and the modifiers, one per file."""
