"""The equations, and the members of the family as values that name them."""
