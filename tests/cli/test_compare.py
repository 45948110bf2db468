"""`topv compare` from end to end on a tiny model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_models import SIDE, TOKENS
from topv.ask.samples import TASKS, subjects_from_scenes
from topv.loading import load_model
from topv.methods import TopV
from topv.runtime import prune

CASE_KEYS = {"image", "prompt", "expected", "grid", "prompt_tokens", "results"}
RESULT_KEYS = {
    "method", "settings", "answer", "correct", "visual_tokens", "kept_tokens", "recovered_tokens",
    "visual_flops_reduction", "kv_bytes", "kv_bytes_unpruned", "foreground_kept", "kept", "recovered", "importance",
    "prefill", "decode",
}  # fmt: skip
KV_BYTES_PER_ENTRY = 2 * 2 * 8 * 4


@pytest.fixture
def compare(topv, model_dir, picture):
    """Compares on the picture and parses what --json prints."""

    def run(*arguments):
        code, out, err = topv(
            "compare", "--model", model_dir, "--image", picture, "--prompt", "w8 w9", "--max-new-tokens", 3,
            "--device", "cpu", "--json", *arguments,
        )  # fmt: skip
        assert code == 0, err
        return json.loads(out)

    return run


def test_json_schema(compare):
    found = compare("--no-timing", "--methods", "none,topv:recovery=0.25,fastv,vtw,random", "--keep", "0.5")
    assert found["schema"] == "topv.compare/1"
    assert set(found) == {
        "schema", "command", "date", "device", "model", "environment", "timing", "summary", "cases",
    }  # fmt: skip
    assert found["command"].startswith("topv compare --model ")
    assert found["model"]["class"] == "LlavaForConditionalGeneration"
    assert found["model"]["layers"] == 5
    assert found["environment"]["versions"]["torch"] == torch.__version__
    assert found["timing"] is None
    (case,) = found["cases"]
    assert set(case) == CASE_KEYS
    assert (case["prompt"], case["grid"], case["expected"]) == ("w8 w9", [SIDE, SIDE], None)
    assert [result["method"] for result in case["results"]] == [row["label"] for row in found["summary"]]
    assert all(set(result) == RESULT_KEYS for result in case["results"])


def test_what_is_reported_is_what_ran(compare):
    found = compare("--no-timing", "--methods", "none,topv:recovery=0.25,fastv,vtw,random", "--keep", "0.5", "0.25")
    results = {result["method"]: result for result in found["cases"][0]["results"]}
    prompt = found["cases"][0]["prompt_tokens"]
    none = results["none"]
    assert none["settings"] is None
    assert none["kept"] == list(range(TOKENS))
    assert none["kv_bytes"] == none["kv_bytes_unpruned"] == 5 * prompt * KV_BYTES_PER_ENTRY
    for keep, kept in ((0.5, TOKENS // 2), (0.25, TOKENS // 4)):
        for name in ("topv", "fastv", "random"):
            label = f"{name} keep={keep}" + (" recovery=0.25" if name == "topv" else "")
            result = results[label]
            assert result["settings"]["keep"] == keep
            assert (result["visual_tokens"], result["kept_tokens"]) == (TOKENS, kept) == (TOKENS, len(result["kept"]))
            assert result["kv_bytes"] == (5 * prompt - 3 * (TOKENS - kept)) * KV_BYTES_PER_ENTRY
            assert result["kv_bytes_unpruned"] == none["kv_bytes"]
            assert 0 < result["visual_flops_reduction"] < 0.6
            assert (result["importance"] is None) == (name == "random")
        recovered = results[f"topv keep={keep} recovery=0.25"]["recovered"]
        assert len(recovered) == kept // 4
        assert set(recovered) <= set(results[f"topv keep={keep} recovery=0.25"]["kept"])
    assert results["vtw"]["kept"] == []


def test_kept_cells_are_those_of_the_runtime(compare, model_dir, picture):
    found = compare("--no-timing", "--methods", "topv", "--keep", "0.25")
    model, processor = load_model(model_dir, device="cpu")
    inputs = processor(text="<user> <image> w8 w9 <assistant>", images=Image.open(picture), return_tensors="pt")
    with prune(model, TopV(keep=0.25)) as pruning, torch.inference_mode():
        model(**inputs)
    first = int((inputs["input_ids"][0] == processor.image_token_id).nonzero()[0])
    (result,) = found["cases"][0]["results"]
    assert result["kept"] == (pruning.kept_positions[0] - first).tolist()
    np.testing.assert_allclose(result["importance"], pruning.importance[0].numpy(), rtol=1e-5)


def test_times_are_ratios_to_the_unpruned_model(compare):
    found = compare("--methods", "topv", "--repetitions", "2", "--decode-steps", "2")
    assert found["timing"] == {"repetitions": 2, "warmup": 1, "decode_steps": 2, "coverage": 0.5}
    (result,) = found["cases"][0]["results"]
    for phase in ("prefill", "decode"):
        assert set(result[phase]) == {"median_seconds", "spread_seconds", "seconds", "ratio"}
        assert len(result[phase]["seconds"]) == 2
        assert set(result[phase]["ratio"]) == {"value", "low", "high", "coverage", "unclear"}
        assert found["summary"][0][phase] == result[phase]["ratio"]
    none = compare("--methods", "none", "--repetitions", "1", "--decode-steps", "1")["cases"][0]["results"][0]
    assert none["prefill"]["ratio"] is None


def test_several_images_and_prompts(topv, model_dir, picture, tmp_path):
    other = tmp_path / "other.png"
    shutil.copy(picture, other)
    code, out, _ = topv(
        "compare", "--model", model_dir, "--image", picture, other, "--prompt", "w8", "--prompt", "w9 w10",
        "--max-new-tokens", 1, "--no-timing", "--json", "--methods", "none",
    )  # fmt: skip
    assert code == 0
    cases = json.loads(out)["cases"]
    assert [(case["image"], case["prompt"]) for case in cases] == [
        (str(image), prompt) for image in (picture, other) for prompt in ("w8", "w9 w10")
    ]


def test_tables_and_files(topv, model_dir, picture, tmp_path):
    report, values = tmp_path / "new" / "report.html", tmp_path / "values.json"
    code, out, err = topv(
        "compare", "--model", model_dir, "--image", picture, "--prompt", "w8", "--max-new-tokens", 2,
        "--repetitions", 1, "--decode-steps", 1, "--report", report, "--json", values,
    )  # fmt: skip
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert any(line.split()[:2] == ["topv", "keep=0.5"] and "36 → 18" in line for line in lines)
    assert "\x1b" not in out
    assert f"Report: {report}" in lines
    assert json.loads(values.read_text())["schema"] == "topv.compare/1"
    assert report.read_text().startswith("<!doctype html>")


def test_control_characters_do_not_reach_the_terminal(topv, model_dir, picture):
    _, out, _ = topv(
        "compare", "--model", model_dir, "--image", picture, "--prompt", "w8 \x1b[31m[bold]w9", "--max-new-tokens", 1,
        "--no-timing", "--methods", "none",
    )  # fmt: skip
    assert "\x1b" not in out
    assert "[bold]w9" in out


def test_built_in_pictures_know_their_answers(topv, model_dir):
    code, out, _ = topv(
        "compare", "--model", model_dir, "--samples", 2, "--max-new-tokens", 1, "--no-timing", "--methods", "none,topv",
        "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert len(found["cases"]) == 2
    assert all(case["expected"] for case in found["cases"])
    # The answers are the bundled model's own; another model may put them in other words.
    assert found["summary"][0]["asked"] == 0


def test_samples_take_the_tasks_in_turns():
    subjects = subjects_from_scenes(len(TASKS), [])
    assert len({subject.image_name for subject in subjects}) == len(TASKS)
    assert all(subject.expected and subject.foreground is not None for subject in subjects)
    again = subjects_from_scenes(2, ["write a caption.", "w8"])
    assert [subject.prompt for subject in again] == ["write a caption.", "w8"] * 2
    assert all(subject.expected is None for subject in again)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--methods", "topw"], "Did you mean 'topv'"),
        (["--layer", "9"], "the decoder has 5 layers"),
        (["--layer", "0"], "at least 1"),
        (["--keep", "1.5"], "(0, 1]"),
        (["--keep", "0"], "at least 1"),
        (["--keep", "half"], "not a number"),
        (["--keep", "37"], "1 .. 36"),
        (["--prompt", " "], "the prompt is empty"),
        (["--prompt", "a <image> b"], "image placeholder '<image>'"),
        (["--samples", "2"], "--samples"),
        (["--image", "nowhere.png"], "does not exist"),
        (["--model", "minni"], "Did you mean 'mini'"),
        (["--report", "."], "is a directory"),
        (["--json", "/dev/null/x.json"], "cannot be written"),
        (["--repetitions", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_clear_message(topv, model_dir, picture, arguments, part):
    code, out, err = topv(
        "compare", "--model", model_dir, "--image", picture, "--no-timing", "--max-new-tokens", 1, *arguments
    )
    assert code == 2
    assert out == ""
    assert part in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_processor_without_chat_template(topv, model_dir, picture):
    (model_dir / "chat_template.jinja").unlink()
    code, out, err = topv(
        "compare", "--model", model_dir, "--image", picture, "--prompt", "w8", "--no-timing", "--max-new-tokens", 1,
        "--json", "--methods", "topv",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["cases"][0]["results"][0]["kept_tokens"] == TOKENS // 2
