"""Ask a server with an OpenAI-compatible interface about a picture, with the standard library alone.

topv serve mini --keep 0.5                                     # elsewhere: needs topv[vllm]
python examples/serving_client.py http://localhost:8000/v1 --prompt "what shape is the orange object?"
python examples/serving_client.py http://localhost:8000/v1 --image photo.jpg --prompt "What is written?" --keep 0.25
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import mimetypes
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TIMEOUT = 300
"""Seconds to wait for an answer."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the answer and how many prompt tokens the server computed; 1 where there is no answer."""
    options = parse(argv)
    server = options.server.rstrip("/")
    try:
        model = options.model or call(f"{server}/models")["data"][0]["id"]
        answer = call(f"{server}/chat/completions", request(model, options))
    except urllib.error.HTTPError as error:
        print(f"{server} refused: {error.code} {error.read().decode(errors='replace')}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"no answer from {server}: {error}. Is the server running?", file=sys.stderr)
        return 1
    print(answer["choices"][0]["message"]["content"].strip())
    print(f"{answer['usage']['prompt_tokens']} prompt tokens were computed and cached", file=sys.stderr)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", type=http_address, help="base address, such as http://localhost:8000/v1")
    parser.add_argument("--prompt", required=True, help="the question")
    parser.add_argument("--image", type=image_file, help="a picture; a built-in one without")
    parser.add_argument("--model", help="a model's name on the server; its first without")
    parser.add_argument("--keep", type=ratio, help="keep ratio of this request; needs --trust-request-mm-kwargs there")
    parser.add_argument("--max-tokens", type=int, default=64)
    return parser.parse_args(argv)


def http_address(text: str) -> str:
    """An address of a server."""
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as http://localhost:8000/v1")
    return text


def image_file(text: str) -> Path:
    """An existing file whose name says that it is an image."""
    path, kind = Path(text), mimetypes.guess_type(text)[0] or ""
    if not path.is_file() or not kind.startswith("image/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an image file")
    return path


def ratio(text: str) -> float:
    """A share in (0, 1]."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a ratio in (0, 1], such as 0.5")
    return share


def request(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """The body of a chat completion about one picture, which travels inside it."""
    if options.image:
        kind, content = mimetypes.guess_type(options.image.name)[0], options.image.read_bytes()
    else:
        from topv.scenes import draw_scene

        buffer = io.BytesIO()
        draw_scene(3, "test").image.save(buffer, "PNG")
        kind, content = "image/png", buffer.getvalue()
    picture = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": options.max_tokens,
        "temperature": 0,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": picture}},
                    {"type": "text", "text": options.prompt},
                ],
            }
        ],
    }
    if options.keep is not None:
        body["mm_processor_kwargs"] = {"topv_keep": options.keep}
    return body


def call(address: str, body: dict[str, Any] | None = None) -> Any:
    """What the server answers, as JSON: to a GET without a body, to a POST with one."""
    data = None if body is None else json.dumps(body).encode()
    question = urllib.request.Request(address, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(question, timeout=TIMEOUT) as response:
        return json.load(response)


if __name__ == "__main__":
    sys.exit(main())
