"""How moments and 16-bit parameters are stored between steps."""
