"""Questions about another scene's picture, which tell what a model guesses."""

from __future__ import annotations

from topv.evaluate import blind_examples, bundled_clips, bundled_examples
from topv.scenes import SHIPPED, TASKS, Geometry, draw_clip, draw_scene


def test_everything_but_the_picture_stays() -> None:
    found = bundled_examples("test", 6)
    assert {task: len(examples) for task, examples in found.items()} == dict.fromkeys(TASKS, 6)
    examples = [example for task in found.values() for example in task]
    for example, blind in zip(examples, blind_examples(examples, "test", SHIPPED), strict=True):
        assert (blind.task, blind.scene, blind.prompt, blind.answer) == (
            example.task,
            example.scene,
            example.prompt,
            example.answer,
        )
        assert blind.image.tobytes() == draw_scene(example.scene + 1, "test").image.tobytes()


def test_clips_give_way_to_clips() -> None:
    geometry = Geometry(224, 14)
    (example,) = bundled_clips("validation", 1, 3, ["existence"], geometry)["existence"]
    (blind,) = blind_examples([example], "validation", geometry)
    other = draw_clip(example.scene + 1, "validation", 3, geometry)
    assert [frame.tobytes() for frame in blind.shown] == [frame.tobytes() for frame in other.frames]
