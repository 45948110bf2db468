"""Asks the bundled model on two tensor-parallel ranks, in processes of their own, and prints what they answer as JSON.

python two_ranks.py FOLDER QUESTIONS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Start an engine, ask, and print the tokens, and the ranks with their processes."""
    from vllm import LLM

    import topv
    from serve.engines import OPTIONS, Engine, ask, rank
    from serve.prompts import prompts_of
    from topv.evaluate import bundled_examples
    from topv.serve import engine_arguments

    examples = bundled_examples("test", int(sys.argv[2]), ("ocr",))["ocr"]
    held = Engine()
    options = OPTIONS | {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    held.llm = LLM(**engine_arguments(Path(sys.argv[1]), {"keep": 0.5}), **options)
    ranks = held.llm.apply_model(rank)
    answers = ask(held, prompts_of(topv.load_mini()[1], examples), [(0.5, 0.25)[i % 2] for i in range(len(examples))])
    print(json.dumps({"tokens": [answer.tokens for answer in answers], "ranks": ranks}))


if __name__ == "__main__":
    main()
