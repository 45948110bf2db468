import socket
import subprocess
import sys

import pytest
import torch

from topv.mini import MINI_PATH, TILED_PATH, load_mini
from topv.mini.score import answer_all, collect
from topv.mini.statistics import answer_score, gain_interval, mean_interval
from topv.scenes import SHIPPED, TASKS, draw_scene, scenes


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **keywords):
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_import_is_cheap():
    code = "import sys, topv.mini, topv.scenes; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_load_without_network(no_network):
    model, processor = load_mini()
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(processor).__name__ == "LlavaProcessor"
    assert model.dtype == torch.float32
    assert not model.training
    assert model.config.vision_config.image_size == SHIPPED.size
    assert model.config.text_config.num_hidden_layers == 12


@pytest.mark.parametrize("folder", [MINI_PATH, TILED_PATH])
def test_weights_fit_the_package(folder):
    sizes = [file.stat().st_size for file in folder.iterdir()]
    assert max(sizes) <= 15_000_000
    assert sum(sizes) <= 32_000_000


def test_missing_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("topv.mini.MINI_PATH", tmp_path)
    with pytest.raises(FileNotFoundError, match="Reinstall topv"):
        load_mini()


@pytest.mark.slow
def test_bundled_model_sees(no_network):
    """A small sample of the claim in the model card: it beats its own guesses."""
    model, processor = load_mini()
    asked = collect("test", 40, SHIPPED)["recognition"]
    seen = answer_all(model, processor, [(a.image, a.question.prompt) for a in asked], 8, 16)
    blind = answer_all(model, processor, [(a.other, a.question.prompt) for a in asked], 8, 16)
    right = sum(answer == a.question.answer for answer, a in zip(seen, asked, strict=True))
    guessed = sum(answer == a.question.answer for answer, a in zip(blind, asked, strict=True))
    assert right > guessed + 0.5 * len(asked)


def test_batched_answers_equal_single_ones(no_network):
    model, processor = load_mini()
    scene = next(scenes("test", 1))
    pairs = [(scene.image, q.prompt) for q in scene.questions[:4]]
    together = answer_all(model, processor, pairs, 6, 4)
    assert together == [answer_all(model, processor, [pair], 6, 1)[0] for pair in pairs]


def test_collect_is_deterministic_and_even():
    found = collect("test", 6, SHIPPED)
    assert {task: len(asked) for task, asked in found.items()} == dict.fromkeys(TASKS, 6)
    again = collect("test", 6, SHIPPED)
    assert all(
        [(a.scene, a.question.prompt) for a in found[t]] == [(a.scene, a.question.prompt) for a in again[t]]
        for t in TASKS
    )
    assert all(a.other.tobytes() == draw_scene(a.scene + 1, "test").image.tobytes() for a in found["ocr"])


def test_statistics():
    assert answer_score("ocr", " CAT ", "CAT") == 1.0
    assert answer_score("caption", "a red star", "a red star and a ring") == pytest.approx(2 / 3)
    low, gain, high = gain_interval([1.0] * 50, [0.0] * 50, list(range(50)))
    assert (low, gain, high) == (1.0, 1.0, 1.0)
    low, gain, high = gain_interval([1.0, 0.0] * 50, [0.0] * 100, [i // 2 for i in range(100)])
    assert low <= gain == 0.5 <= high
    with pytest.raises(ValueError, match="No scores"):
        mean_interval([])
    with pytest.raises(ValueError, match="equal, non-zero counts"):
        gain_interval([1.0], [], [1])
