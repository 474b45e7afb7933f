"""One pass over the memory of a leaf on GPUs and TPUs, and what chooses it."""
