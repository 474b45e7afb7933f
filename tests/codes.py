"""8-bit moments in leaves of any size: those of tests are mostly smaller than `min_size`."""

import functional_adam as fa

CODES = fa.Int8(min_size=0)


def format_named(name):
    """What `moments=` takes, where "int8" means codes."""
    return CODES if name == "int8" else name
