"""Adam for tables, such as embeddings, in which each step updates only the rows of its batch."""
