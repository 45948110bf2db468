"""A method of one's own in a dozen lines, compared with TopV and with chance.

python examples/custom_method.py
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import topv
from topv.methods import Evidence, Method
from topv.scenes import draw_scene


@dataclass(frozen=True, kw_only=True)
class Contrast(Method):
    """Keep the tokens that differ most from the mean of their grid where they enter layer `layer - 1`."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"source"})

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        if evidence.source is None:
            raise ValueError("Contrast needs evidence.source (G, N, D), and got None.")
        source = evidence.source.float()
        return (source - source.mean(dim=1, keepdim=True)).norm(dim=-1)


def main() -> None:
    """Ask six questions under each method, and print how many answers were right."""
    model, processor = topv.load_mini()
    methods = [Contrast(keep=0.25), topv.TopV(keep=0.25), topv.Random(keep=0.25)]
    right = dict.fromkeys(range(len(methods)), 0)
    scenes = [draw_scene(seed, "test") for seed in range(6)]
    for scene in scenes:
        question = scene.questions[0]
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.prompt}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(images=[scene.image], text=[text], return_tensors="pt")
        for index, method in enumerate(methods):
            with topv.prune(model, method):
                ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)
            answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            right[index] += answer.strip() == question.answer
    for index, method in enumerate(methods):
        print(f"{method.name:10} {right[index]} of {len(scenes)} right")


if __name__ == "__main__":
    main()
