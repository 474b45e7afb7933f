"""Forms of a leaf's step for GPUs, TPUs and CPUs, and the choice between them."""
