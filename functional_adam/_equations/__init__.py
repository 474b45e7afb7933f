"""The equations, and the optimizers of the family as values that name them."""
