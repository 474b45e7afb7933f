"""Tools to watch a run: its scalars, its memory, and a check of this machine's arithmetic."""
