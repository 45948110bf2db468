"""What the installed transformers has: architectures, and what `generate` does right."""

from __future__ import annotations

import pytest
import transformers
from transformers import GenerationMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from tools.probe.recipe import Recipe
from tools.probe.recipes import recipes

expands_images = pytest.mark.skipif(
    not hasattr(GenerationMixin, "_expand_multimodal_outputs"),
    reason="this transformers expands several images per sample in the wrong order",
)
"""For beams and several sequences of samples with several images each: before generation encoded images ahead of
expanding, transformers dealt them out wrongly."""


def recipe_of(model_type: str) -> Recipe:
    """The recipe that builds a tiny model of an architecture.

    Skips the test where the installed transformers does not have the architecture; that the newest release has all of
    them is tested with the recipes.

    Raises:
        KeyError: when there is no such recipe.
    """
    recipe = recipes()[model_type]
    if model_type not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"transformers {transformers.__version__} has no architecture {model_type!r}")
    return recipe
