"""A pruned server against the unpruned one, under load on loopback.

    python benchmarks/serve.py --out docs/results/serve.csv --table docs/results/serve.md

Both servers are up all the time and take turns: in every round, and at every concurrency, each is sent the same
requests by as many clients, each of which asks again as soon as it is answered (a closed loop). Every request brings a
picture that no server has seen, of one of several sizes, so that no cache helps. Requires vLLM.

Without --model a random LLaVA is served whose decoder dominates: 576 visual tokens of a small CLIP tower.

Columns: requests and output tokens per second; time to the first token and between tokens (percentiles over all of a
server's requests, in milliseconds); prompt tokens; the largest share of the KV cache in use. `ratio` is the median over
rounds of requests per second against the unpruned server in the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import datetime
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common

SIZES = ((336, 336), (640, 480), (480, 640), (800, 300), (1024, 768))
QUESTION = "What is in this picture, and where?"
FIELDS = (
    "server",
    "keep",
    "concurrency",
    "round",
    "requests",
    "requests_per_s",
    "tokens_per_s",
    "ttft_p50_ms",
    "ttft_p90_ms",
    "ttft_p99_ms",
    "itl_p50_ms",
    "itl_p90_ms",
    "itl_p99_ms",
    "prompt_tokens",
    "kv_cache_peak",
    "model",
    "device",
    "vllm",
    "torch",
    "date",
)


@dataclass
class Server:
    """A running server."""

    name: str
    keep: float | None
    port: int
    process: subprocess.Popen[bytes]
    log: Path


@dataclass
class Run:
    """What one server answered in one run of the load; times in seconds."""

    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    prompts: list[int] = field(default_factory=list)
    kv_peak: float = 0.0


def save_random_llava(folder: Path, width: int, layers: int) -> None:
    """A LLaVA of random weights with 576 visual tokens, most of whose work is the decoder's."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    from topv.mini import load_mini
    from topv.serve import export_for_vllm

    tokenizer = load_mini()[1].tokenizer
    tower = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=4096,
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=image_token)
    side = {"height": 336, "width": 336}
    processor = LlavaProcessor(
        CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template or load_mini()[1].chat_template,
        image_token="<image>",
    )
    torch.manual_seed(0)
    export_for_vllm(LlavaForConditionalGeneration(config).float(), processor, folder)


@contextlib.contextmanager
def serving(model: str, keep: float | None, options: Sequence[str], folder: Path) -> Iterator[Server]:
    """A server, ready; unpruned, by vLLM alone, where `keep` is None."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "served", *options]
    name = "unpruned" if keep is None else f"topv keep={keep}"
    if keep is None:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *common]
    else:
        command = [sys.executable, "-m", "topv", "serve", model, "--keep", str(keep), *common]
    log = folder / f"{name.replace(' ', '-')}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_ready(process, port, log)
        yield Server(name, keep, port, process, log)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return once the server answers.

    Raises:
        RuntimeError: with the end of its log, when it does not.
    """
    for _ in range(900):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return
        time.sleep(1)
    raise RuntimeError(f"the server did not start: {log.read_text()[-3000:]}")


def picture(number: int) -> str:
    """A picture as a data URL; every number gives another one."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(number)
    width, height = SIZES[number % len(SIZES)]
    coarse = generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


async def load(server: Server, bodies: Sequence[dict[str, Any]], concurrency: int) -> Run:
    """Send all bodies to a server, `concurrency` at a time."""
    import aiohttp

    run, waiting = Run(), list(reversed(bodies))
    address = f"http://127.0.0.1:{server.port}"
    timeout = aiohttp.ClientTimeout(total=1800)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            while waiting:
                await ask(session, address, waiting.pop(), run)

        watcher = asyncio.create_task(watch(session, address, run))
        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        run.seconds = time.perf_counter() - start
        watcher.cancel()
    return run


async def ask(session: Any, address: str, body: dict[str, Any], run: Run) -> None:
    """One streamed request."""
    start = last = time.perf_counter()
    is_first = True
    async with session.post(f"{address}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {(await response.text())[:500]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                run.tokens += event["usage"]["completion_tokens"]
                run.prompts.append(event["usage"]["prompt_tokens"])
            if not event["choices"] or event["choices"][0]["delta"].get("role"):
                continue
            now = time.perf_counter()
            (run.first if is_first else run.between).append(now - (start if is_first else last))
            is_first, last = False, now


async def watch(session: Any, address: str, run: Run) -> None:
    """Note the largest share of the KV cache in use."""
    while True:
        async with session.get(f"{address}/metrics") as response:
            for line in (await response.text()).splitlines():
                if line.startswith("vllm:kv_cache_usage_perc"):
                    run.kv_peak = max(run.kv_peak, float(line.rsplit(" ", 1)[1]))
        await asyncio.sleep(0.25)


def percentile(values: Sequence[float], share: float) -> float | None:
    """In milliseconds, by the nearest rank; None where there are no values."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3, 1) if ordered else None


def row(server: Server, run: Run, concurrency: int, number: int, provenance: dict[str, Any]) -> dict[str, Any]:
    """One line of the csv."""
    times = {
        f"{name}_p{share}_ms": percentile(values, share / 100)
        for name, values in (("ttft", run.first), ("itl", run.between))
        for share in (50, 90, 99)
    }
    return {
        "server": server.name,
        "keep": "" if server.keep is None else server.keep,
        "concurrency": concurrency,
        "round": number,
        "requests": len(run.prompts),
        "requests_per_s": round(len(run.prompts) / run.seconds, 4),
        "tokens_per_s": round(run.tokens / run.seconds, 3),
        **times,
        "prompt_tokens": round(statistics.mean(run.prompts), 1),
        "kv_cache_peak": round(run.kv_peak, 4),
        **provenance,
    }


def table(rows: Sequence[dict[str, Any]], command: str, notes: Sequence[str]) -> str:
    """The rows as Markdown: medians over rounds."""
    lines = ["# Serving: pruned and unpruned under load", "", f"- Command: `{command}`"]
    lines += [f"- {note}" for note in notes]
    reading = """
Medians over rounds; times in milliseconds. `x` is the median over rounds of requests per second against the unpruned
server in the same round, with the smallest and the largest in brackets. TTFT: time to the first token; ITL: between
tokens.
"""
    columns = ["clients", "server", "prompt tokens", "requests/s", "x"]
    columns += ["TTFT p50", "p90", "p99", "ITL p50", "p90", "p99", "KV cache peak"]
    lines += [reading, f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for concurrency in dict.fromkeys(own["concurrency"] for own in rows):
        for server in dict.fromkeys(own["server"] for own in rows):
            own = [r for r in rows if (r["concurrency"], r["server"]) == (concurrency, server)]
            ratios = sorted(r["requests_per_s"] / unpruned(rows, r)["requests_per_s"] for r in own)
            cells = [f"{statistics.median(r[name] or 0 for r in own):.0f}" for name in FIELDS[7:13]]
            lines.append(
                f"| {concurrency} | {server} | {own[0]['prompt_tokens']:.0f} "
                f"| {statistics.median(r['requests_per_s'] for r in own):.2f} "
                f"| {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] | {' | '.join(cells)} "
                f"| {statistics.median(r['kv_cache_peak'] for r in own):.1%} |"
            )
    return "\n".join(lines) + "\n"


def unpruned(rows: Sequence[dict[str, Any]], own: dict[str, Any]) -> dict[str, Any]:
    """The unpruned server's row of the same round."""
    return next(
        r for r in rows if r["keep"] == "" and (r["concurrency"], r["round"]) == (own["concurrency"], own["round"])
    )


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Run everything, and say what was measured."""
    from topv.measure import describe_environment
    from topv.serve.supported import check_version

    model, name = args.model, args.model
    if model is None:
        model, name = str(folder / "model"), f"random LLaVA, decoder {args.width} wide, {args.layers} layers"
        save_random_llava(Path(model), args.width, args.layers)
    environment = describe_environment()
    device = environment.gpus[0] if environment.gpus else f"{environment.cpu}"
    provenance = {
        "model": name,
        "device": device,
        "vllm": check_version(),
        "torch": environment.versions["torch"],
        "date": datetime.date.today().isoformat(),
    }
    notes = [
        f"Model: {name}",
        f"Load: {args.requests} requests for each client, {args.rounds} rounds, {args.tokens} tokens each, pictures of "
        + ", ".join(f"{w} x {h}" for w, h in SIZES),
        f"Server options: `{' '.join(args.options)}`",
        f"Machine: {device}; vLLM {provenance['vllm']}, torch {provenance['torch']}; {provenance['date']}",
    ]
    rows: list[dict[str, Any]] = []
    number = 0
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serving(model, keep, args.options, folder)) for keep in (None, *args.keep)]
        for server in servers:
            asyncio.run(load(server, [body(number := number + 1, args.tokens) for _ in range(4)], 2))
        for turn in range(args.rounds):
            for concurrency in args.concurrency:
                for server in servers if turn % 2 == 0 else reversed(servers):
                    count = max(args.requests * concurrency, args.least)
                    bodies = [body(number := number + 1, args.tokens) for _ in range(count)]
                    rows.append(
                        row(server, asyncio.run(load(server, bodies, concurrency)), concurrency, turn, provenance)
                    )
                    print(
                        f"round {turn + 1}, {concurrency} clients, {server.name}: {rows[-1]['requests_per_s']:.2f} "
                        f"requests/s, first token after {rows[-1]['ttft_p50_ms']} ms",
                        flush=True,
                    )
    return rows, notes


def body(number: int, tokens: int) -> dict[str, Any]:
    """A request with a picture of its own."""
    content = [{"type": "image_url", "image_url": {"url": picture(number)}}, {"type": "text", "text": QUESTION}]
    return {
        "model": "served",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def main() -> None:
    """Read the command line, measure, and write."""
    parser = common.parser(__doc__)
    parser.add_argument("--model", help="a hub id or a folder; a random LLaVA by default")
    parser.add_argument("--width", type=int, default=768, help="of the random decoder, a multiple of 64 (768)")
    parser.add_argument("--layers", type=int, default=10, help="of the random decoder (10)")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5], help="ratios, a server for each (0.5)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], help="numbers of clients (1 8 32)")
    parser.add_argument("--requests", type=int, default=3, help="requests for each client in a run (3)")
    parser.add_argument("--least", type=int, default=8, help="least number of requests in a run (8)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every server takes its turn (3)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens to generate (16)")
    parser.add_argument("--out", type=Path, help="csv to write")
    parser.add_argument("--table", type=Path, help="Markdown to write")
    parser.add_argument("options", nargs="*", help="options of vLLM, behind --; by default those for a CPU")
    args = parser.parse_args()
    args.options = args.options or [
        *("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "1024"),
        *("--kv-cache-memory-bytes", str(3 << 29), "--max-num-seqs", "32", "--limit-mm-per-prompt", '{"image": 1}'),
    ]
    if args.model is None:
        os.environ["HF_HUB_OFFLINE"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="topv-serve-"))
    try:
        rows, notes = measure(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = table(rows, " ".join(["python", *sys.argv]), notes)
    print(text)
    if args.table is not None:
        args.table.write_text(text)
    common.write_rows(args.out, rows, FIELDS)


if __name__ == "__main__":
    main()
