"""Forms of the step of a leaf for GPUs, TPUs and CPUs, and what chooses between them."""
