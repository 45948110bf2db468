"""Questions, configurations at equal savings, and tables."""

from __future__ import annotations

import numpy as np
import pytest

import topv
from tiny_models import TOKENS, shared_llava
from topv.errors import InputError
from topv.evaluate import Answer, Configuration, accuracy_tables, at_equal_reductions, bundled_examples, readings
from topv.evaluate.examples import foreground_tokens
from topv.evaluate.tables import accuracy_lines, difference_table, foreground_table, size_table
from topv.models import family_of
from topv.runtime.targets import kept_counts
from topv.scenes import SHIPPED, Geometry, Tiles, View

METHODS = [("fastv", topv.FastV()), ("vtw", topv.VTW()), ("topv", topv.TopV())]


def test_examples_are_the_first_of_each_task() -> None:
    few = bundled_examples("validation", 3, ("counting", "existence"))
    more = bundled_examples("validation", 6, ("counting", "existence"))
    assert {task: len(found) for task, found in few.items()} == {"counting": 3, "existence": 3}
    assert [e.prompt for e in few["counting"]] == [e.prompt for e in more["counting"][:3]]
    assert all(e.task == "existence" and e.answer in ("yes", "no") for e in more["existence"])
    per_scene = [e.scene for e in more["existence"]]
    assert max(per_scene.count(scene) for scene in per_scene) <= 2


def test_foreground_has_one_entry_for_each_visual_token() -> None:
    foreground = foreground_tokens("test", 0, View(SHIPPED))
    assert foreground.dtype == np.bool_
    assert foreground.ndim == 1
    assert 0.05 <= foreground.mean() <= 0.4


def test_unknown_tasks_and_counts() -> None:
    with pytest.raises(InputError, match="Did you mean 'counting'"):
        bundled_examples("test", 3, ("countin",))
    with pytest.raises(InputError, match="at least 1"):
        bundled_examples("test", 0)


@pytest.mark.parametrize("reduction", [0.2, 0.4])
def test_configurations_save_what_was_asked_for(reduction: float) -> None:
    model = shared_llava()
    family = family_of(model)
    configurations = at_equal_reductions(model, METHODS, [reduction], grids=[TOKENS])
    assert configurations[0] == Configuration("unpruned", None, None)
    for configuration in configurations[1:]:
        method = configuration.method
        assert method is not None
        layer = method.pruning_layer(5)
        if configuration.label == "vtw":
            kept = 0
        else:
            assert method.goal == ("visual_flops", reduction)
            ((kept,),) = kept_counts(family, method, (layer,), [TOKENS], TOKENS)
        full = family.visual_flops(0, TOKENS)
        spent = (layer * full + (5 - layer) * family.visual_flops(0, kept)) / (5 * full)
        # VTW can only choose among five layers, the others among 36 budgets.
        assert abs(1 - spent - reduction) <= (0.1 if configuration.label == "vtw" else 0.02)


def test_a_saving_out_of_reach_is_refused() -> None:
    with pytest.raises(InputError, match="out of reach"):
        at_equal_reductions(shared_llava(), METHODS, [0.9], grids=[TOKENS])


def test_a_shared_budget_reaches_what_one_for_each_grid_does_not() -> None:
    grids, reduction = [TOKENS // 9] * 9, 0.56
    with pytest.raises(InputError, match="one for each budget"):
        at_equal_reductions(shared_llava(), [("topv", topv.TopV())], [reduction], grids=grids)
    (_, found) = at_equal_reductions(shared_llava(), [("topv", topv.TopV(budget="sample"))], [reduction], grids=grids)
    assert found.method == topv.TopV(budget="sample", visual_flops=reduction)


def test_readings_are_listed_beside_topv() -> None:
    labels = [label for label, _ in readings(METHODS)]
    assert labels == ["fastv", "vtw", "topv", "topv (relaxed)", "topv (demand)", "topv (potential)"]


def answer(score: float, scene: int, kept: int) -> Answer:
    return Answer("counting", scene, "?", "2", "2", score, None, 36, kept, 0.0 if kept == 36 else 0.3)


def test_tables_pair_answers_with_the_unpruned_model() -> None:
    configurations = [Configuration("unpruned", None, None), Configuration("topv", 0.3, topv.TopV(keep=18))]
    answers = {
        "unpruned": {"counting": [answer(1.0, i, 36) for i in range(10)]},
        "topv@0.3": {"counting": [answer(float(i > 0), i, 18) for i in range(10)]},
    }
    table = accuracy_tables(configurations, answers)
    assert "### 30% of visual FLOPs removed" in table
    assert "| topv | 36 -> 18 from layer 2 | -30.0 % | 90.0 [" in table
    assert "| -10.0 [" in table
    assert "| unpruned | 36 |" in table


def test_foreground_table_says_what_is_above_chance() -> None:
    scenes = list(range(40))
    generator = np.random.default_rng(0)
    shares = {
        "good": {0.5: ((0.8 + 0.1 * generator.random(40)).tolist(), scenes)},
        "blind": {0.5: ((0.5 + 0.2 * (generator.random(40) - 0.5)).tolist(), scenes)},
        "bad": {0.5: ([0.1] * 40, scenes)},
    }
    rows = foreground_table(shares).splitlines()
    assert rows[2].endswith("above |")
    assert rows[3].endswith("not told apart |")
    assert rows[4].endswith("below |")


def test_foreground_of_tiles_and_their_thumbnail() -> None:
    """One marked patch: the token over it in its tile, and the one over it in the thumbnail."""
    view = Tiles(Geometry(112, 14), 2)
    marked = np.zeros((8, 8), dtype=bool)
    marked[5, 2] = True
    shown = view.shows(marked).nonzero()[0].tolist()
    assert len(view.places) == 20
    # Tiles of 2 x 2 tokens: row 5, column 2 is in the third tile, whose tokens start at 8; token row 0, column 1.
    assert shown == [8 + 1, 16 + 2 * 1 + 0]


def test_differences_are_paired_and_bold_where_clear() -> None:
    def answer(score: float, scene: int, size: str | None = None) -> Answer:
        return Answer("ocr", scene, "?", "x", "x", score, size, 4, 2, 0.5)

    configurations = [
        Configuration("unpruned", None, None),
        Configuration("topv", 0.5, topv.TopV()),
        Configuration("random", 0.5, topv.Random()),
    ]
    scenes = range(40)
    answers = {
        "unpruned": {"ocr": [answer(1.0, s, "small") for s in scenes]},
        "topv@0.5": {"ocr": [answer(1.0, s, "small") for s in scenes]},
        "random@0.5": {"ocr": [answer(float(s % 2), s, "large") for s in scenes]},
    }
    table = difference_table(configurations, answers, "topv")
    assert "| random | **+50.0 [" in table
    sizes = size_table(configurations, answers)
    assert "| topv | 50% | 100.0 [91.2, 100.0] (40) |  |  |" in sizes
    lines, unpruned = accuracy_lines(configurations, answers)
    assert unpruned == 1.0
    assert lines["topv"] == [(0.5, 1.0, 1.0, 1.0)]
