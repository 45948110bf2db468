"""vLLM's processors, told to leave out the placeholders of tokens that will be pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

from ..errors import TopVError, UnsupportedError
from ..images import MAX_ASPECT, MAX_PIXELS
from .checks import adapter_of, settings_of
from .choosing import kept_tokens
from .settings import COUNTS, KEEP_ARGUMENT, TOKENS

__all__ = ["PrunedInfo", "PrunedProcessor"]


class PrunedInfo:
    """What a pruned model takes: images. Stands before a processing info of vLLM."""

    ctx: Any

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of images, and nothing else."""
        limits: Mapping[str, int | None] = super().get_supported_mm_limits()  # type: ignore[misc]
        return {"image": limits["image"]}

    def validate_num_items(self, modality: str, num_items: int) -> None:
        """Refuse videos with a reason of their own."""
        if modality != "image" and num_items:
            raise VLLMValidationError(
                f"this server prunes images and takes no {modality}: their tokens would be placed wrongly. Send "
                "frames as images, or use a server without pruning.",
                parameter=modality,
            )
        super().validate_num_items(modality, num_items)  # type: ignore[misc]


class PrunedProcessor:
    """Counts what stays of each image. Stands before a multi-modal processor of vLLM.

    The counts travel with the image, so that the model keeps no state and one batch may mix ratios; the image's
    identity in every cache is salted with the method and the ratio.
    """

    info: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._config = self.info.get_hf_config()
        self._settings = settings_of(self._config)
        self._adapter = adapter_of(self.info.ctx.model_config.architecture)

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """The inputs of the memory profile, at the largest ratio that a request may set."""
        inputs = super().get_dummy_inputs(*args, **kwargs)  # type: ignore[misc]
        inputs.hf_processor_mm_kwargs = {**inputs.hf_processor_mm_kwargs, KEEP_ARGUMENT: self._settings.max_keep}
        return inputs

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Process a prompt.

        Raises:
            VLLMValidationError: when it asks for a ratio that cannot be, or an image cannot be pruned; the server
                answers with status 400.
        """
        try:
            self._check_images(inputs.mm_data_items)
            self._keep(inputs.hf_processor_mm_kwargs)
            return super().apply(inputs, *args, **kwargs)  # type: ignore[misc]
        except TopVError as error:
            raise VLLMValidationError(str(error)) from error

    def _keep(self, arguments: Mapping[str, object]) -> float | int:
        return self._settings.keep_of(arguments.get(KEEP_ARGUMENT))

    def _check_images(self, items: Any) -> None:
        images = items.get("image")
        if images is None or not hasattr(images, "get_image_size"):
            return
        for number in range(len(images)):
            if images.get(number) is None:
                continue
            width, height = images.get_image_size(number)
            if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
                raise VLLMValidationError(
                    f"image {number} is {width} x {height}. Expected at most {MAX_PIXELS:,} pixels, and no side more "
                    f"than {MAX_ASPECT} times the other. Scale it down or crop it.",
                    parameter="image",
                )

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
        """Put the placeholders in, and see that the model knows the places of all tokens in the unpruned prompt."""
        prompt, placeholders = super()._maybe_apply_prompt_updates(mm_items, mm_res)  # type: ignore[misc]
        kept = sum(int(torch.as_tensor(place.to_range().get_num_embeds())) for place in placeholders.get("image", ()))
        token = self._adapter.image_token(self._config)
        if token is not None and (found := prompt.count(token)) != kept:
            raise VLLMValidationError(
                f"the prompt has {found} image placeholder tokens, and its images need {kept}. Send one image for each "
                "placeholder, and no placeholder in the text itself.",
                parameter="prompt",
            )
        updates = mm_res.prompt_updates.get("image", ())
        whole = len(prompt) + sum(update.content.dropped for own in updates for update in own)
        known = max(self._config.get_text_config().max_position_embeddings, self.info.ctx.model_config.max_model_len)
        if not self._adapter.mrope and whole > known:
            raise VLLMValidationError(
                f"the prompt has {whole} tokens before pruning, more than the {known} positions that the model knows, "
                "and the tokens that stay keep their positions. Send fewer or smaller images.",
                parameter="prompt",
            )
        return prompt, placeholders

    def _get_mm_hashes(self, inputs: Any) -> Any:
        hashes = dict(super()._get_mm_hashes(inputs))  # type: ignore[misc]
        keep = self._keep(inputs.hf_processor_mm_kwargs)
        if "image" in hashes:
            hashes["image"] = [self._settings.salt(digest, keep) for digest in hashes["image"]]
        return hashes

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        data = super()._apply_hf_processor_main(mm_items, _without_keep(hf_kwargs))  # type: ignore[misc]
        keep = self._keep(hf_kwargs)
        pictures = self._adapter.pictures(self._config, data)
        method = self._settings.with_keep(keep)
        counts = [kept_tokens(picture, method, self._settings.max_keep) for picture in pictures]
        if pictures:
            data[COUNTS] = [torch.tensor(own) for own in counts]
            data[TOKENS] = [
                torch.tensor([picture.tokens, picture.tokens - _cells(picture) + sum(own)])
                for picture, own in zip(pictures, counts, strict=True)
            ]
        return data

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        fields = super()._get_mm_fields_config(hf_inputs, _without_keep(hf_processor_mm_kwargs))  # type: ignore[misc]
        own = {name: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for name in (COUNTS, TOKENS)}
        return {**fields, **own}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(  # type: ignore[misc]
            mm_items, _without_keep(hf_processor_mm_kwargs), out_mm_kwargs
        )
        return [
            PromptReplacement(update.modality, update.target, _shortened(update.content, out_mm_kwargs))
            if update.modality == "image"
            else update
            for update in updates
        ]


@dataclass
class _Shortened(PromptUpdateDetails):
    """What replaces an image in the prompt, and how many placeholders were left out of it."""

    dropped: int = 0


def _without_keep(arguments: Mapping[str, object]) -> Mapping[str, object]:
    return {name: value for name, value in arguments.items() if name != KEEP_ARGUMENT}


def _cells(picture: Any) -> int:
    return sum(part.positions.numel() for part in picture.parts)


def _shortened(content: Any, out_mm_kwargs: Any) -> Callable[[int], Any]:
    """What replaces an image in the prompt, without the placeholders of what will be pruned."""

    def replacement(number: int) -> Any:
        details = content(number) if callable(content) else content
        if not isinstance(details, PromptUpdateDetails):
            details = PromptUpdateDetails.from_seq(details)
        before, after = out_mm_kwargs["image"][number][TOKENS].data.tolist()
        tokens = details.full
        embeds = [True] * len(tokens) if details.is_embed is None else details.is_embed(tokens).tolist()
        if sum(embeds) != before:
            raise UnsupportedError(
                f"vLLM counts {sum(embeds)} tokens of an image and topv {before}. This model's processor lays images "
                "out in a way that topv does not know."
            )
        room, short = after, []
        for token, embed in zip(tokens, embeds, strict=True):
            room -= embed
            if not embed or room >= 0:
                short.append(token)
        return _Shortened(short, details.is_embed, before - after)

    return replacement
