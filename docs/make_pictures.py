"""Draw the pictures of README and book: what each method keeps of a built-in scene, and how TopV covers it.

python docs/make_pictures.py --seed 3 --keep 0.25
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

import topv
from topv.methods import Evidence
from topv.models import family_of
from topv.report import draw_token_map, outline_token, seen_image
from topv.scenes import draw_scene
from topv.scenes.fonts import load_font
from topv.transport import coverage

IMAGES = Path(__file__).parent / "images"
SIDE = 336
OPENED = (1, 4, 16, 36)
PAYING = (200, 30, 30)

Panel = tuple[Image.Image, str, str]


@dataclass(frozen=True, kw_only=True)
class Watched(topv.TopV):
    """TopV that also chooses sets of the sizes in `OPENED`, and notes their scores."""

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        source, target = self.problem(evidence)
        for opened in OPENED:
            NOTED[opened] = coverage(
                source,
                target,
                evidence.coordinates,
                opened,
                alpha=self.alpha,
                beta=self.beta,
                gamma=self.gamma,
                sigma=self.sigma,
                normalize=self.normalize,
                scale=self.scale,
            )[0]
        return super().score(evidence, count)


NOTED: dict[int, torch.Tensor] = {}
"""By number of open sources, the scores (N,) of the latest run of `Watched`."""


def main() -> None:
    """Ask one question under several methods, and draw what they kept and how TopV chose."""
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
    seen = seen_image(inputs["pixel_values"][0], processor.image_processor)
    seen = seen.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    IMAGES.mkdir(exist_ok=True)

    title = f"Q: {question.prompt}   (right answer: {question.answer})"
    save_sheet(IMAGES / "kept-tokens.png", title, kept_panels(model, processor, inputs, seen, grid, options.keep))
    with topv.prune(model, Watched(keep=options.keep)), torch.inference_mode():
        model(**inputs)
    save_sheet(
        IMAGES / "coverage.png",
        "What each target still pays (red: most), with the tokens kept so far outlined",
        coverage_panels(seen, grid),
    )


def kept_panels(
    model: Any, processor: Any, inputs: Any, seen: Image.Image, grid: tuple[int, int], keep: float
) -> list[Panel]:
    """What each method keeps of the picture, and what the model then answers."""
    start = int((inputs["input_ids"][0] == model.config.image_token_id).long().argmax())
    methods = {
        "unpruned": topv.TopV(keep=1.0),
        "random": topv.Random(keep=keep),
        "FastV": topv.FastV(keep=keep),
        "TopV": topv.TopV(keep=keep),
    }
    panels = []
    for label, method in methods.items():
        with topv.prune(model, method) as pruning, torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        kept = pruning.kept_positions[0] - start
        report = pruning.report()
        caption = f"{label}: {report.kept_tokens} of {report.visual_tokens} tokens"
        panels.append((draw_token_map(seen, grid, kept.tolist()), caption, f'"{answer}"'))
    return panels


def coverage_panels(seen: Image.Image, grid: tuple[int, int]) -> list[Panel]:
    """What the targets pay after each number of `OPENED` sources, as a share of the dearest after the first."""
    dearest, panels = 0.0, []
    for opened, score in NOTED.items():
        kept = score.topk(opened).indices.tolist()
        paid = score.clone()
        paid[kept] = 0.0
        dearest = dearest or float(paid.max())
        rows = (paid / dearest).view(grid).tolist()
        shares = Image.new("L", (grid[1], grid[0]))
        shares.putdata([round(200 * share) for row in rows for share in row])
        shares = shares.resize(seen.size, Image.Resampling.NEAREST)
        picture = Image.composite(Image.new("RGB", seen.size, PAYING), seen, shares)
        for cell in kept:
            picture = outline_token(picture, grid, cell)
        count = "1 token" if opened == 1 else f"{opened} tokens"
        panels.append((picture, f"{count} kept", f"the dearest target pays {float(paid.max()) / dearest:.2f}"))
    return panels


def save_sheet(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Put pictures with two lines of text below each side by side under a title."""
    gap, head, foot = 16, 44, 60
    sheet = Image.new("RGB", (len(panels) * (SIDE + gap) + gap, head + SIDE + foot), "white")
    pen = ImageDraw.Draw(sheet)
    heading, plain = load_font("sans-bold.ttf", 20), load_font("sans.ttf", 18)
    pen.text((gap, 10), title, "black", heading)
    for index, (picture, caption, detail) in enumerate(panels):
        left = gap + index * (SIDE + gap)
        sheet.paste(picture, (left, head))
        pen.text((left, head + SIDE + 4), caption, "black", plain)
        pen.text((left, head + SIDE + 26), detail, "black", plain)
    sheet.save(path, optimize=True)
    print(path.name, *(f"  {caption}: {detail}" for _, caption, detail in panels), sep="\n")


if __name__ == "__main__":
    main()
