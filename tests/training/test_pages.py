import numpy as np

from topv.scenes import SHIPPED
from topv.scenes.canvas import HEADS, KINDS
from topv.scenes.words import LETTERS
from training.pages import draw_page

KIND = list(HEADS).index("kind")


def test_pages_hold_letters_or_a_diagram():
    for seed in range(6):
        page = draw_page(seed, SHIPPED)
        kinds = page.measure()[1][..., KIND]
        assert bool(page.items) == bool((kinds == KINDS.index("box")).any()) == (seed % 3 == 0)
        assert np.isin(kinds, [KINDS.index(letter) for letter in LETTERS]).any()
        assert page.image.tobytes() == draw_page(seed, SHIPPED).image.tobytes()
