"""`topv serve` on loopback, in processes of its own: answers, bad requests, a load of both, and its own refusals."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from PIL import Image

import topv
from topv.evaluate import Example, answer_examples, bundled_examples
from topv.evaluate.scoring import answer_score

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test-vllm` runs these", allow_module_level=True)

OPTIONS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--block-size", "32"]
OPTIONS += ["--max-num-seqs", "32", "--kv-cache-memory-bytes", str(1 << 28), "--trust-request-mm-kwargs"]
OPTIONS += ["--limit-mm-per-prompt", '{"image": 2}', "--max-num-batched-tokens", "512", "--max-keep", "0.75"]


def environment(cache: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    return own | {"XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"}


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.process, self.address = process, address

    def post(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.address}/v1/chat/completions", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def memory(self) -> int:
        """Resident bytes of the server and the processes that it started."""
        pages = 0
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == os.getpgid(self.process.pid):
                pages += int(fields[21])
        return pages * os.sysconf("SC_PAGE_SIZE")


def body(image: bytes, prompt: str, tokens: int = 12, **more: Any) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
    message = [{"role": "user", "content": content}]
    return {"model": "mini", "messages": message, "max_tokens": tokens, "temperature": 0, **more}


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "topv", "serve", "mini", "--keep", "0.5", *OPTIONS]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(folder),
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield Server(process, address)
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [example for own in bundled_examples("test", 25).values() for example in own]


def test_the_engine_is_a_process_of_its_own(server: Server) -> None:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    names = [Path(f"/proc/{child}/comm").read_text().strip() for child in children]
    assert any(name.startswith("VLLM::EngineCor") for name in names)


def test_accuracy_is_that_of_the_evaluation(server: Server, examples: list[Example]) -> None:
    model, processor = topv.load_mini()
    expected = answer_examples(model, processor, examples, topv.TopV(stage="encoder", keep=0.5))
    lengths = {"caption": 64, "description": 160}

    def ask(example: Example) -> tuple[str, int]:
        status, reply = server.post(body(png(example.image), example.prompt, lengths.get(example.task, 12)))
        assert status == 200
        return reply["choices"][0]["message"]["content"].strip(), reply["usage"]["prompt_tokens"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, examples))
    scores = [
        answer_score(example.task, found, example.answer) for example, (found, _) in zip(examples, answers, strict=True)
    ]
    # Greedy choices between two tokens that are all but equally likely may fall either way in a batch.
    assert abs(mean(scores) - mean(answer.score for answer in expected)) <= 0.005
    assert sum(found == answer.answer for (found, _), answer in zip(answers, expected, strict=True)) >= 195
    tokens = {
        prompt - len(processor.tokenizer(example.prompt)["input_ids"])
        for (_, prompt), example in zip(answers, examples, strict=True)
    }
    assert tokens == {72 + 2}


def bad_bodies(image: bytes) -> list[tuple[dict[str, Any], str]]:
    def ratio(keep: Any) -> dict[str, Any]:
        return body(image, "what?", mm_processor_kwargs={"topv_keep": keep})

    return [
        (ratio(0.0), "keep=0.0"),
        (ratio(1.5), "keep=1.5"),
        (ratio(0.8), "max_keep=0.75"),
        (ratio("half"), "'half'"),
        (ratio([0.5]), "[0.5]"),
        (ratio(200), "n=144"),
        (body(b"not an image", "what?"), "cannot identify image file"),
        (body(image[: len(image) // 2], "what?"), "truncated"),
        (body(png(Image.new("L", (9000, 8000))), "what?"), "72000000 pixels"),
        (body(png(Image.new("L", (3000, 2))), "what?"), "3000 x 2"),
        (body(image, "what <image>?"), "image placeholder tokens"),
    ]


def test_bad_requests_are_told_why(server: Server, examples: list[Example]) -> None:
    image = png(examples[0].image)
    _, before = server.post(body(image, examples[0].prompt))
    for bad, reason in bad_bodies(image):
        status, reply = server.post(bad)
        assert status == 400, reason
        assert reason in reply["error"]["message"]
    video = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    status, reply = server.post(body(image, "what?") | {"messages": [{"role": "user", "content": [video]}]})
    assert status == 400
    assert "takes no video" in reply["error"]["message"]
    status, after = server.post(body(image, examples[0].prompt))
    assert status == 200
    assert after["choices"][0]["message"]["content"] == before["choices"][0]["message"]["content"]


def test_a_load_of_good_and_bad_requests(server: Server, examples: list[Example]) -> None:
    images = [png(example.image) for example in examples]
    bad = [own for own, _ in bad_bodies(images[0])][:9]
    good = [body(image, example.prompt, 8) for image, example in zip(images, examples, strict=True)]
    ratios = (None, 0.25, 0.1, 0.75)

    def request(number: int) -> tuple[bool, int]:
        if number % 10 == 9:
            return False, server.post(bad[number // 10 % len(bad)])[0]
        own = good[number % len(good)]
        keep = ratios[number % len(ratios)]
        if keep is not None:
            own = own | {"mm_processor_kwargs": {"topv_keep": keep}}
        return True, server.post(own)[0]

    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(request, range(250)))
        between = server.memory()
        results += pool.map(request, range(250, 500))
    assert [status for is_good, status in results if is_good] == [200] * 450
    assert [status for is_good, status in results if not is_good] == [400] * 50
    assert server.memory() < 1.05 * between
    assert server.process.poll() is None


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["mini", "--enable-mm-embeds", *OPTIONS], "--enable-mm-embeds cannot be combined"),
        (["mini", "--method", "fastv"], "'fastv' cannot be served"),
        (["mini", "--keep", "0.9", "--max-keep", "0.5"], "keep=0.9 is above max_keep=0.5"),
        (["mini", "--keep", "0.5", "--method", "topv:keep=0.3"], "each set keep"),
        (["mini", "--method", "uniform,random"], "names 2 methods"),
        (["./nowhere"], "cannot be read"),
    ],
)
def test_refused_before_anything_starts(arguments: list[str], part: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "topv", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), timeout=300)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("topv serve: error: ")
    assert part in done.stderr.splitlines()[-1]
    assert "EngineCore" not in done.stderr
