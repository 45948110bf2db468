"""Functions of the local lmms-eval task: the bundled questions, put and scored as topv's own evaluation does."""

from __future__ import annotations

from typing import Any

from topv.evaluate.scoring import answer_score


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: dict[str, Any]) -> str:
    # Where the mark is part of the text, llava_hf's simple form puts no image and line break of its own in front.
    return f"<image>{doc['prompt']}"


def doc_to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    content = [{"type": "image", "url": doc_to_visual(doc)[0]}, {"type": "text", "text": doc["prompt"]}]
    return [{"role": "user", "content": content}]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"score": answer_score(doc["task"], results[0].strip(), doc["answer"])}
