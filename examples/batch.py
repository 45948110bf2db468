"""Ask about a batch of pictures at once; every sample keeps what it would keep alone.

python examples/batch.py --size 8 --keep 0.25
"""

from __future__ import annotations

import argparse

import topv
from topv.scenes import draw_scene


def main() -> None:
    """Print an answer for each picture, and what the whole batch saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4, help="pictures in the batch")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the visual tokens to keep")
    options = parser.parse_args()

    model, processor = topv.load_mini()
    scenes = [draw_scene(seed, "test") for seed in range(options.size)]
    questions = [scene.questions[0] for scene in scenes]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.prompt}]}],
            add_generation_prompt=True,
        )
        for question in questions
    ]
    # Questions differ in length. For generation, the padding belongs on the left.
    inputs = processor(
        images=[scene.image for scene in scenes], text=texts, padding=True, padding_side="left", return_tensors="pt"
    )
    with topv.prune(model, topv.TopV(keep=options.keep)) as pruning:
        ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)

    answers = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    for question, answer, kept in zip(questions, answers, pruning.kept_positions, strict=True):
        print(f"{question.prompt}  {answer.strip()}  (right: {question.answer}; {len(kept)} tokens kept)")
    print(pruning.report())


if __name__ == "__main__":
    main()
