"""Two images in one prompt, and then a second turn with a third image on the same KV cache.

python examples/images_and_turns.py

The bundled model was trained on one image at a time: look at what is kept and cached rather than at its answers.
Before transformers 5.24 the argument `cache` is called `past_key_values`.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache

import topv
from topv.scenes import draw_scene


def main() -> None:
    """Print the answers of both turns, and which columns of the conversation were kept."""
    model, processor = topv.load_mini()
    first, second, third = (draw_scene(seed, "test") for seed in (5, 3, 4))

    def read(images: list[object], question: str) -> dict[str, torch.Tensor]:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return processor(images=images, text=[text], return_tensors="pt")

    turn = read([first.image, second.image], first.questions[0].prompt)
    cache = DynamicCache(config=model.config.text_config)
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning:
        said = model.generate(**turn, cache=cache, max_new_tokens=16, do_sample=False)
        length = turn["input_ids"].shape[1]
        print(first.questions[0].prompt, processor.decode(said[0, length:], skip_special_tokens=True).strip())
        print(f"first turn: {len(pruning.kept_positions[0])} of {pruning.report().visual_tokens} visual tokens kept")

        # The next call takes the whole conversation as ids, but only the images that are new. Layers of the cache
        # hold what each of them kept; nothing of the first turn is computed again.
        turn = read([third.image], third.questions[1].prompt)
        whole = torch.cat([said, turn["input_ids"]], dim=1)
        answered = model.generate(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            pixel_values=turn["pixel_values"],
            cache=cache,
            max_new_tokens=16,
            do_sample=False,
        )
        answer = processor.decode(answered[0, whole.shape[1] :], skip_special_tokens=True).strip()
        print(third.questions[1].prompt, answer, f"(right: {third.questions[1].answer})")
        kept = pruning.kept_positions[0]
        print(f"second turn: {len(kept)} kept, in columns {int(kept[0])} to {int(kept[-1])} of the conversation")


if __name__ == "__main__":
    main()
