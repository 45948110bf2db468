"""The tokens of the bundled models, their chat format and their tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from topv.scenes import scenes

from .presets import Preset

__all__ = ["ASSISTANT", "CHAT_TEMPLATE", "END", "IMAGE", "PAD", "USER", "build_tokenizer", "corpus"]

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


def corpus(preset: Preset) -> Iterable[str]:
    """The text that a preset's tokenizer is trained on."""
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
