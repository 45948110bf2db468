"""Draw the pictures of the README: what each method keeps of one built-in scene.

python docs/make_pictures.py --seed 3 --keep 0.25
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import topv
from topv.mini.fonts import load_font
from topv.mini.scenes import draw_scene
from topv.models import family_of
from topv.report import draw_token_map, seen_image

OUT = Path(__file__).parent / "images" / "kept-tokens.png"


def main() -> None:
    """Ask one question under four methods and put the pictures of what they kept side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=3, help="test scene")
    parser.add_argument("--question", type=int, default=0, help="which of the scene's questions")
    parser.add_argument("--keep", type=float, default=0.25)
    options = parser.parse_args()

    model, processor = topv.load_mini()
    scene = draw_scene(options.seed, "test")
    question = scene.questions[options.question]
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.prompt}]}],
        add_generation_prompt=True,
    )
    inputs = processor(images=[scene.image], text=[text], return_tensors="pt")
    grid = family_of(model).fixed_grid()
    seen = seen_image(inputs["pixel_values"][0], processor.image_processor).resize((336, 336), Image.Resampling.BICUBIC)
    start = int((inputs["input_ids"][0] == model.config.image_token_id).long().argmax())

    panels = []
    methods = {
        "unpruned": topv.TopV(keep=1.0),
        "random": topv.Random(keep=options.keep),
        "FastV": topv.FastV(keep=options.keep),
        "TopV": topv.TopV(keep=options.keep),
    }
    for label, method in methods.items():
        with topv.prune(model, method) as pruning, torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        kept = pruning.kept_positions[0] - start
        report = pruning.report()
        panels.append(
            (
                draw_token_map(seen, grid, kept.tolist()),
                f"{label}: {report.kept_tokens} of {report.visual_tokens} tokens",
                f'"{answer}"',
            )
        )
    gap, head, foot = 16, 44, 60
    width = len(panels) * 336 + (len(panels) + 1) * gap
    sheet = Image.new("RGB", (width, head + 336 + foot), "white")
    pen = ImageDraw.Draw(sheet)
    heading, plain = load_font("sans-bold.ttf", 20), load_font("sans.ttf", 18)
    pen.text((gap, 10), f"Q: {question.prompt}   (right answer: {question.answer})", "black", heading)
    for index, (picture, caption, answer) in enumerate(panels):
        left = gap + index * (336 + gap)
        sheet.paste(picture, (left, head))
        pen.text((left, head + 340), caption, "black", plain)
        pen.text((left, head + 362), answer, "black", plain)
    OUT.parent.mkdir(exist_ok=True)
    sheet.save(OUT, optimize=True)
    print(f"{OUT}: {question.prompt} -> {question.answer}")
    for _, caption, answer in panels:
        print(f"  {caption}: {answer}")


if __name__ == "__main__":
    main()
