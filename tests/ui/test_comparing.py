"""The run behind the page: streamed, one at a time, stoppable, and drawn from what really ran."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest
from PIL import Image

from topv import load_mini
from topv.ask.case import prepare
from topv.ask.method_spec import MethodSpec, parse_methods
from topv.ask.samples import Subject, subjects_from_scenes
from topv.ask.views import grid_views
from topv.errors import InputError
from topv.ui.comparing import Comparer, Snapshot
from topv.ui.explorer import contribution_panel, token_grid
from topv.ui.markup import answer_cards, outcome_cards
from topv.ui.model_slot import ModelSlot

SUBJECT = subjects_from_scenes(1, [])[0]


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return load_mini()


def run(model: tuple[Any, Any], methods: str, subject: Subject = SUBJECT, **options: Any) -> list[Snapshot]:
    options = {"max_new_tokens": 6, "measure": False, "stop": threading.Event(), **options}
    return list(Comparer(*model, "mini").run(subject, parse_methods([methods]), **options))


@pytest.fixture(scope="module")
def finished(model: tuple[Any, Any]) -> Snapshot:
    return run(model, "none,topv:keep=0.25,fastv:keep=0.25", measure=True)[-1]


def test_what_is_shown_is_what_ran(finished: Snapshot) -> None:
    assert finished.finished
    assert finished.stage == "Done"
    assert [column.state for column in finished.columns] == ["done"] * 3
    none, topv, fastv = (column.outcome for column in finished.columns)
    assert none is not None
    assert topv is not None
    assert fastv is not None
    assert none.result.correct, "the bundled model reads the word of the first picture"
    assert (topv.result.kept_tokens, len(topv.marks[0].kept)) == (36, 36)
    assert [set(outcome.contributions) for outcome in (none, topv, fastv)] == [set(), {0}, set()]
    assert type(topv.result.settings) is dict
    assert topv.result.prefill is not None
    assert topv.result.prefill.ratio is not None
    assert finished.comparison is not None
    assert [result.label for result in finished.comparison.cases[0].results] == [c.label for c in finished.columns]
    assert finished.views[0].grid == (12, 12)


def test_cards_say_it(finished: Snapshot) -> None:
    cards = outcome_cards(finished)
    assert cards.count("<article") == 3
    assert 'aria-label="Visual tokens: 144 → 36, 25 % of the unpruned model"' in cards
    assert cards.count('alt="Heat map') == 2
    assert all(re.search(r'alt="[^"]+"', image) for image in re.findall("<img [^>]*>", cards))
    assert "✓ right" in answer_cards(finished)


def test_a_token_is_explained(finished: Snapshot) -> None:
    view, topv, none = finished.views[0], finished.columns[1].outcome, finished.columns[0].outcome
    assert topv is not None
    assert none is not None
    grid = token_grid(view, topv, 0)
    assert grid.count('role="gridcell"') == 144
    assert grid.count(", pruned") == 2 * (144 - 36)
    cell = topv.marks[0].kept[0]
    panel = contribution_panel(view, topv, 0, cell)
    row, column = divmod(cell, 12)
    assert f"Token at row {row + 1}, column {column + 1}: kept." in panel
    matrix = topv.contributions[0].matrix
    best = int(matrix[cell].argmax())
    share = 100 * float(matrix[cell].max() / matrix[cell].sum())
    assert f"row {best // 12 + 1}, column {best % 12 + 1} ({share:.1f} %)" in panel
    assert "no contribution matrix" in contribution_panel(view, none, 0, cell)
    for outside in (None, -1, 144):
        assert "Click a token" in contribution_panel(view, topv, 0, outside)


def test_answers_stream(model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # A quick processor writes the whole answer between two looks of the usual distance.
    monkeypatch.setattr("topv.ui.comparing._SECONDS_BETWEEN_LOOKS", 0.002)
    comparer, stop = Comparer(*model, "mini"), threading.Event()
    question = Subject(SUBJECT.image, "", "describe the picture in detail.")
    texts = []
    for snapshot in comparer.run(question, parse_methods(["none"]), max_new_tokens=24, measure=False, stop=stop):
        texts.append(snapshot.columns[0].text)
    assert len(set(texts)) > 3
    assert all(texts[-1].startswith(text.strip()) for text in texts)


def test_one_method_that_fails_leaves_the_others(model: tuple[Any, Any]) -> None:
    columns = run(model, "topv:keep=0.5,fastv:layer=99,random:keep=0.5")[-1].columns
    assert [column.state for column in columns] == ["done", "failed", "done"]
    assert "99" in columns[1].reason
    assert "99" in answer_cards(Snapshot(columns))


def test_a_question_that_cannot_be_asked_fails_all(model: tuple[Any, Any]) -> None:
    last = run(model, "none,topv", Subject(SUBJECT.image, "", "<image> <b>"))[-1]
    assert [column.state for column in last.columns] == ["failed", "failed"]
    assert last.stage.startswith("Failed")
    assert last.comparison is None
    assert "<b>" not in answer_cards(last)


def test_what_nobody_foresaw_shows_no_details(
    model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**inputs: Any) -> None:
        raise RuntimeError("/home/someone/secret")

    monkeypatch.setattr(model[0], "generate", broken)
    last = run(model, "none")[-1]
    assert "unexpected RuntimeError" in last.columns[0].reason
    assert "secret" not in answer_cards(last) + last.stage
    assert "/home/someone/secret" in capsys.readouterr().err


def test_it_stops_where_it_is_told_to(model: tuple[Any, Any]) -> None:
    stop = threading.Event()
    question = Subject(SUBJECT.image, "", "describe the picture in detail.")
    specs: list[MethodSpec] = parse_methods(["topv,none"])
    last = None
    for snapshot in Comparer(*model, "mini").run(question, specs, max_new_tokens=200, measure=True, stop=stop):
        last = snapshot
        if len(snapshot.columns[0].text) > 10:
            stop.set()
    assert last is not None
    assert last.stage == "Stopped"
    assert [column.state for column in last.columns] == ["stopped", "stopped"]
    assert len(last.columns[0].text) > 10, "what was answered stays"
    assert run(model, "topv")[-1].stage == "Done", "the model is as it was"


def test_leaving_stops_the_run_and_frees_the_model(model: tuple[Any, Any]) -> None:
    comparer, stop = Comparer(*model, "mini"), threading.Event()
    question = Subject(SUBJECT.image, "", "describe the picture in detail.")
    watching = comparer.run(question, parse_methods(["topv"]), max_new_tokens=256, measure=True, stop=stop)
    while not next(watching).columns[0].text:
        pass
    began = time.monotonic()
    watching.close()
    assert stop.is_set()
    assert time.monotonic() - began < 5
    assert not any(layer._forward_pre_hooks for layer in model[0].model.language_model.layers)


def test_two_at_once_wait_for_one_another(model: tuple[Any, Any]) -> None:
    comparer, results = Comparer(*model, "mini"), {}
    pictures = {"red": Image.new("RGB", (50, 50), "red"), "word": SUBJECT.image}

    def one(name: str) -> None:
        subject, stop = Subject(pictures[name], name, SUBJECT.prompt), threading.Event()
        *_, last = comparer.run(subject, parse_methods(["topv"]), max_new_tokens=4, measure=False, stop=stop)
        results[name] = last

    threads = [threading.Thread(target=one, args=(name,)) for name in pictures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(last.stage == "Done" for last in results.values())
    assert {name: last.comparison.cases[0].image_name for name, last in results.items()} == {
        "red": "red",
        "word": "word",
    }


def test_every_tile_has_its_own_picture() -> None:
    model, processor = load_mini(tiled=True)
    subject = Subject(SUBJECT.image.resize((400, 200)), "", "what is this?")
    asked = prepare(model, processor, subject)
    views = grid_views(asked, processor)
    assert len(views) == len(asked.layout.grids) > 2
    assert [view.name for view in views][-1] == "thumbnail"
    assert len({view.name for view in views}) == len(views)
    assert len({view.picture.tobytes() for view in views if view.picture is not None}) == len(views)
    last = run((model, processor), "topv:keep=0.25", subject, max_new_tokens=2)[-1]
    outcome = last.columns[0].outcome
    assert outcome is not None
    assert set(outcome.contributions) == set(range(len(views)))
    cards = outcome_cards(last)
    assert cards.count("<img") == 2 * len(views)
    assert "thumbnail: kept 4 of 16 tokens" in cards
    for number, view in enumerate(views):
        rows, columns = view.grid
        assert len(outcome.marks[number].kept) == round(rows * columns / 4)
        assert outcome.contributions[number].matrix.shape == (rows * columns,) * 2
        assert "Which targets it serves" in contribution_panel(view, outcome, number, 1)


def test_a_model_that_is_not_there_is_said_so() -> None:
    slot = ModelSlot("some/model")
    assert not slot.wait(0)
    assert slot.status().startswith("Loading the model some/model: 0 s")
    slot.give_up()
    assert slot.wait(0)
    assert slot.status().endswith("not there")
    with pytest.raises(InputError, match="could not be loaded"):
        _ = slot.comparer
