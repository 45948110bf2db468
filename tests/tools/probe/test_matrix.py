"""The shipped matrix is what running the probes gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tools.probe.architectures import architectures, probe_architecture
from tools.probe.probe import probe
from tools.probe.recipe import Recipe
from tools.probe.recipes import recipes
from topv.models.matrix import COLUMNS, load_matrix, markdown, summary
from topv.models.reasons import REASONS
from topv.models.registry import FAMILIES

DOCS = Path(__file__).parents[3] / "docs" / "models.md"
SAMPLED = ["llava", "qwen2_5_vl", "gemma3", "smolvlm", "lfm2_vl", "blip", "t5gemma2"]


def test_every_architecture_of_transformers_has_a_row() -> None:
    outcomes, versions = load_matrix()
    transformers = pytest.importorskip("transformers")
    if versions["transformers"] != transformers.__version__:
        pytest.skip(f"the matrix was made with transformers {versions['transformers']}")
    assert [outcome.model_type for outcome in outcomes] == architectures()


@pytest.mark.parametrize("model_type", SAMPLED)
def test_sampled_rows_have_not_drifted(model_type: str) -> None:
    shipped = {outcome.model_type: outcome for outcome in load_matrix()[0]}[model_type]
    now = probe_architecture(model_type)
    assert (now.cells, now.family, now.reason) == (shipped.cells, shipped.family, shipped.reason), now.notes


def test_first_class_families_are_exact_in_every_column_that_applies() -> None:
    rows = {outcome.model_type: outcome for outcome in load_matrix()[0]}
    failing = [
        (name, column)
        for name in rows.keys() & FAMILIES.keys()
        for column in COLUMNS
        if rows[name].reason is None and rows[name].cells[column] not in ("yes", "-")
    ]
    assert not failing


def test_most_architectures_are_exact() -> None:
    share = re.search(r"\((\d+)%\)", summary(load_matrix()[0]))
    assert share is not None
    assert int(share[1]) >= 95


def test_reasons_are_from_the_closed_list() -> None:
    for outcome in load_matrix()[0]:
        if outcome.reason is not None:
            assert outcome.reason.split(":")[0] in REASONS, outcome


def test_page_is_made_from_the_matrix() -> None:
    outcomes, versions = load_matrix()
    assert DOCS.read_text(encoding="utf-8") == markdown(outcomes, versions)


def test_a_wrong_runtime_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that could not fail would prove nothing: shift what is kept by one column."""
    from topv.runtime import stage

    whole = stage.compact

    def shifted(plan, kept, device, **which):  # type: ignore[no-untyped-def]
        return whole(plan, [(columns + 1).clamp(max=plan.real.numel() - 1) for columns in kept], device, **which)

    monkeypatch.setattr(stage, "compact", shifted)
    outcome = probe(recipes()["llava"], ("eager", "generate"))
    assert set(outcome.cells.values()) == {"no"}


def test_recipes_give_what_they_promise() -> None:
    for recipe in recipes().values():
        assert isinstance(recipe, Recipe)
        assert recipe.model_type in architectures()


def test_unknown_architecture_is_named() -> None:
    with pytest.raises(ValueError, match="qwen2_vl"):
        probe_architecture("qwen2vl")


def test_prompts_are_padded_on_the_left_and_repeatable() -> None:
    recipe = recipes()["llava"]
    torch.manual_seed(0)
    model = recipe.build()
    first, again = (recipe.prompt(model, [[3, "image", 2], [4]], seed=3) for _ in range(2))
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert first["attention_mask"][1].tolist() == [0] * (first["input_ids"].shape[1] - 4) + [1] * 4
    with pytest.raises(ValueError, match="sound"):
        recipe.prompt(model, [["sound"]])
