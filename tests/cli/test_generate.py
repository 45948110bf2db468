"""`topv generate` from end to end on a tiny model."""

from __future__ import annotations

import io

import torch
from PIL import Image

from topv.cli.streaming import SafeStreamer
from topv.loading import load_model
from topv.methods import FastV
from topv.runtime import prune


def test_the_answer_is_that_of_the_pruned_model(topv, model_dir, picture):
    code, out, err = topv(
        "generate", "--model", model_dir, "--image", picture, "--prompt", "w8 w9", "--method", "fastv", "--keep", 0.25,
        "--max-new-tokens", 5, "--device", "cpu",
    )  # fmt: skip
    assert (code, err) == (0, "")
    model, processor = load_model(model_dir, device="cpu")
    inputs = processor(text="<user> <image> w8 w9 <assistant>", images=Image.open(picture), return_tensors="pt")
    with prune(model, FastV(keep=0.25)), torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert out == processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip() + "\n"


def test_a_target_decides_what_is_kept(topv, model_dir, picture):
    arguments = (
        "generate", "--model", model_dir, "--image", picture, "--prompt", "w8", "--max-new-tokens", 1,
        "--report-tokens", "--layer", 1,
    )  # fmt: skip
    code, _, err = topv(*arguments, "--visual-flops", 0.25)
    assert code == 0
    assert "visual_flops=0.25, reached 0.2" in err
    assert "kv_share=0.8, reached 0." in topv(*arguments, "--kv-share", 0.8)[2]
    code, _, err = topv(*arguments, "--kv-share", 0.8, "--keep", 9)
    assert code != 0
    assert "not allowed with" in err
    assert "'1.5': expected a share in [0, 1)" in topv(*arguments, "--visual-flops", 1.5)[2]


def test_the_savings_go_to_standard_error(topv, model_dir, picture):
    arguments = (
        "generate", "--model", model_dir, "--image", picture, "--prompt", "w8", "--max-new-tokens", 1,
        "--report-tokens",
    )  # fmt: skip
    code, out, err = topv(*arguments, "--keep", "9")
    assert code == 0
    assert "36 -> 9" in err
    assert "36 -> 9" not in out
    assert "nothing was pruned" in topv(*arguments, "--method", "none")[2]


def test_one_method_at_a_time(topv, picture):
    code, _, err = topv("generate", "--image", picture, "--prompt", "w8", "--method", "topv,fastv")
    assert code == 2
    assert "topv compare" in err


def test_the_image_is_checked_before_the_model_is_loaded(topv, tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    code, _, err = topv("generate", "--image", path, "--prompt", "w8")
    assert code == 2
    assert "empty (0 bytes)" in err


def test_streamed_control_characters_are_harmless():
    class Tokenizer:
        def decode(self, ids, **options):
            return "".join(map(chr, ids))

    file = io.StringIO()
    streamer = SafeStreamer(Tokenizer(), file)
    streamer.put(torch.tensor([[1, 2]]))
    for character in " a\x1b[2J b":
        streamer.put(torch.tensor([ord(character)]))
    streamer.end()
    assert file.getvalue() == "a�[2J b\n"
