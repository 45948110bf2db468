"""Ask the bundled model one question, unpruned and with half of the visual tokens.

python examples/quick_start.py
"""

from __future__ import annotations

import topv
from topv.scenes import draw_scene


def main() -> None:
    """Print both answers, and what was saved."""
    model, processor = topv.load_mini()  # or any model from AutoModelForImageTextToText, and its processor
    scene = draw_scene(3, "test")
    question = scene.questions[0]
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.prompt}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=[scene.image], text=[text], return_tensors="pt")
    length = inputs["input_ids"].shape[1]

    unpruned = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning:
        pruned = model.generate(**inputs, max_new_tokens=16, do_sample=False)

    print(f"question: {question.prompt}  (right answer: {question.answer})")
    print("unpruned:", processor.decode(unpruned[0, length:], skip_special_tokens=True).strip())
    print("pruned:  ", processor.decode(pruned[0, length:], skip_special_tokens=True).strip())
    print(pruning.report())


if __name__ == "__main__":
    main()
