"""A tiny model on disk, with a processor whose tokenizer is made here: what the command line loads in tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tiny_models import IMAGE_TOKEN, PATCH, SIDE, VOCABULARY, tiny_llava

TEMPLATE = (
    "{% for message in messages %}<user> {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_processor(chat_template: str | None = TEMPLATE) -> Any:
    """A LlavaProcessor for `tiny_llava`, with words as tokens."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<image>", "<assistant>"]
    assert words[IMAGE_TOKEN] == "<image>"
    words += [f"w{index}" for index in range(len(words), VOCABULARY)]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<image>", "<assistant>"],
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )
    size = {"height": SIDE * PATCH, "width": SIDE * PATCH}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False),
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
        image_token="<image>",
    )


@pytest.fixture(scope="session")
def _saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tiny_llava().save_pretrained(directory)
    tiny_processor().save_pretrained(directory)
    return directory


@pytest.fixture
def model_dir(_saved: Path, tmp_path: Path) -> Path:
    """A directory of one's own with a complete saved model."""
    return Path(shutil.copytree(_saved, tmp_path / "tiny"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """The file of a small picture."""
    path = tmp_path / "picture.png"
    image = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    image.save(path)
    return path


@pytest.fixture
def topv(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: arguments to exit code, standard output and standard error."""
    from topv.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
