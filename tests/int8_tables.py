"""What the 8-bit codes stand for, from their documented picture, in float64."""

import numpy as np


def root_table(e):
    """w of each code: 32 an octave for 4 octaves below the top, 16 for 6, 8 for the rest."""
    steps = [1 / 32] * 128 + [1 / 16] * 96 + [1 / 8] * 30
    depths = np.concatenate([[0], np.cumsum(steps)])  # of the codes 255, 254, ..., 1
    place = (e + 1 - 127) / 2 - depths
    octave = np.floor(place)
    return np.concatenate([[0], ((1 + place - octave) * 2**octave)[::-1]])


def ratio_table():
    """|r| of the sizes 0 to 127, in their unit."""
    steps = [1 / 256] * 48 + [1 / 128] * 54 + [1 / 64] * 25
    return np.concatenate([[0], np.cumsum(steps)])
