"""Tables of which a step sees only some rows, such as an embedding: Adam of these rows alone."""
