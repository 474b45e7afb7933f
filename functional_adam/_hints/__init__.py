"""The last sentence of an error message: what to write instead, guessed from what was given."""
