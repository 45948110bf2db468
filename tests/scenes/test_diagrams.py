import itertools

import numpy as np
import pytest

from topv.scenes import SHIPPED, scenes
from topv.scenes.canvas import HEADS, IGNORED, KINDS
from topv.scenes.diagrams import sector
from topv.scenes.words import LETTERS

LABEL = {name: index for index, name in enumerate(HEADS)}


@pytest.fixture(scope="module")
def diagrams():
    return [scene for scene in scenes("train", 120) if scene.plan.kind == "diagram"]


def test_sectors_go_round():
    around = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))
    assert [sector((5, 5), (5 + 40 * x, 5 + 40 * y)) for x, y in around] == list(range(1, 9))
    assert sector((0, 0), (50, 18)) == 1
    assert sector((0, 0), (50, 24)) == 2


def cell_of(box):
    """The cell of the diagram, 1 to 9, that a box stands in."""
    column, row = (int(3 * middle / SHIPPED.size) for middle in box.centre)
    return 1 + 3 * row + column


def test_a_box_knows_where_its_arrows_go(diagrams):
    seen = 0
    for scene in diagrams:
        boxes = {item.name: item for item in scene.items}
        for (name, box), way in itertools.product(boxes.items(), (1, -1)):
            joined = dict(pair[::way] for pair in scene.plan.arrows)
            found = scene.labels[SHIPPED.cell(box.centre)]
            letter, direction, cell = (
                ("points_to", "leaves", "to_cell") if way == 1 else ("pointed_from", "enters", "from_cell")
            )
            if found[LABEL["kind"]] != KINDS.index(name):
                continue
            seen += 1
            if name not in joined:
                assert found[LABEL[letter]] == found[LABEL[direction]] == found[LABEL[cell]] == 0
                continue
            ends = (box.centre, boxes[joined[name]].centre)[::way]
            assert found[LABEL[letter]] == 1 + LETTERS.index(joined[name])
            assert found[LABEL[direction]] == sector(*ends)
            assert found[LABEL[cell]] == cell_of(boxes[joined[name]])
    assert seen > 100


def test_an_arrow_knows_its_direction_and_both_ends(diagrams):
    seen = set()
    for scene in diagrams:
        boxes = {item.name: item for item in scene.items}
        drawn = {sector(boxes[source].centre, boxes[target].centre) for source, target in scene.plan.arrows}
        arrow = scene.labels[..., LABEL["kind"]] == KINDS.index("arrow")
        leaves, enters = (scene.labels[arrow][:, LABEL[name]] for name in ("leaves", "enters"))
        np.testing.assert_array_equal(leaves, enters)
        assert set(leaves.tolist()) <= drawn
        ends = {(cell_of(boxes[source]), cell_of(boxes[target])) for source, target in scene.plan.arrows}
        assert {tuple(pair) for pair in scene.labels[arrow][:, [LABEL["from_cell"], LABEL["to_cell"]]].tolist()} <= ends
        seen |= set(leaves.tolist())
        elsewhere = scene.labels[scene.labels[..., LABEL["kind"]] == 0]
        assert (elsewhere[:, LABEL["leaves"]] == IGNORED).all()
    assert seen == set(range(1, 9))
