"""Build the untrained LLaVA of a preset, its tokenizer and its processor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from topv.mini.presets import Preset
from topv.mini.scenes import scenes

__all__ = ["CHAT_TEMPLATE", "build_model", "build_processor", "build_tokenizer"]

USER, ASSISTANT, END, IMAGE, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<image>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + USER + "{% else %}" + ASSISTANT + " {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] != 'user' %}" + END + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)
_VOCABULARY = 768
_TOKENIZER_SCENES = 400


def _corpus(preset: Preset) -> Iterable[str]:
    for scene in scenes("train", _TOKENIZER_SCENES, geometry=preset.geometry):
        for question in scene.questions:
            yield question.prompt
            yield " " + question.answer


def build_tokenizer(corpus: Iterable[str]) -> Any:
    """Train a byte-level BPE in which capitals and digits always stay single tokens.

    Lower-case words, with the space before them, are merged; every other character is a token of its own, so a
    word in capitals is spelt letter by letter, the same at its start as inside. Any text round-trips.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[a-z]+|[^a-z]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        min_frequency=2,
        special_tokens=[PAD, END, USER, ASSISTANT, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE},
        additional_special_tokens=[USER, ASSISTANT],
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_processor(preset: Preset, tokenizer: Any = None) -> Any:
    """A ``LlavaProcessor`` for a preset; trains a tokenizer on the training questions when none is given."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = {"height": preset.image_size, "width": preset.image_size}
    images = CLIPImageProcessorPil(
        size=side,
        crop_size=side,
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer if tokenizer is not None else build_tokenizer(_corpus(preset)),
        patch_size=preset.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )


def build_model(preset: Preset, tokenizer: Any) -> Any:
    """A randomly initialised ``LlavaForConditionalGeneration``; seed torch before calling."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        image_size=preset.image_size,
        patch_size=preset.patch_size,
        hidden_size=preset.vision_width,
        intermediate_size=preset.vision_mlp,
        num_hidden_layers=preset.vision_layers,
        num_attention_heads=preset.vision_heads,
        projection_dim=preset.vision_width,
    )
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=preset.text_width,
        intermediate_size=preset.text_mlp,
        num_hidden_layers=preset.text_layers,
        num_attention_heads=preset.text_heads,
        num_key_value_heads=preset.text_kv_heads,
        head_dim=preset.text_width // preset.text_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **ids,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=preset.geometry.grid**2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
