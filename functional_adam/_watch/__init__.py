"""To see what a run does: its scalars, its memory, and whether this machine computes right."""
