"""What a message suggests: the way out, by what the caller most likely meant."""
