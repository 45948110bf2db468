import socket
import subprocess
import sys

import pytest
import torch

from topv.evaluate import Example, answer_examples, blind_examples, bundled_examples
from topv.mini import MINI_PATH, TILED_PATH, load_mini
from topv.scenes import SHIPPED, scenes


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
    asked = bundled_examples("test", 40, ["recognition"])["recognition"]
    seen = answer_examples(model, processor, asked, None)
    blind = answer_examples(model, processor, blind_examples(asked, "test", SHIPPED), None)
    assert sum(answer.score for answer in seen) > sum(answer.score for answer in blind) + 0.5 * len(asked)


def test_batched_answers_equal_single_ones(no_network):
    model, processor = load_mini()
    scene = next(scenes("test", 1))
    asked = [Example(q.task, 0, scene.image, q.prompt, q.answer, None) for q in scene.questions[:4]]
    together = answer_examples(model, processor, asked, None)
    assert together == [answer_examples(model, processor, [one], None)[0] for one in asked]
