"""The training model's forward pass and its losses.

The decoder is trained on answers; the tower on what is drawn in every patch; and the projected visual tokens are
pulled towards the embeddings of the words that name what they show, so that the decoder can look things up from
its first step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topv.scenes.canvas import HEADS, IGNORED, KINDS
from topv.scenes.shapes import COLOURS, SHAPES
from topv.scenes.words import LETTERS

from .architecture import Frame
from .attention import TRAINING_ATTENTION
from .batches import Batch
from .drills import RANKS
from .mentions import MOST_COUNTED
from .presets import Preset

__all__ = [
    "DenseHeads",
    "answer_logits",
    "answer_loss",
    "decode",
    "dense_loss",
    "mention_loss",
    "packed_mask",
    "rank_loss",
    "run_layers",
    "to_tensors",
]

_COMMON = {"kind": (0, 0.2), "colour": (0, 0.3), "centre": (0, 0.1)}
_SHARES = {"kind": 3.0, "points_to": 0.5, "pointed_from": 0.5, "size": 0.4}
_SHARPNESS = 14.0


class DenseHeads(nn.Module):
    """Reads the dense labels off the tower's patches and the projected visual tokens; thrown away after training.

    Args:
        preset: sizes of tower and decoder, and how they are shown an image.
        tokenizer: names the tokens that the alignment pulls towards.
    """

    names: Tensor
    colours: Tensor
    parts: Tensor
    places: Tensor

    def __init__(self, preset: Preset, tokenizer: Any) -> None:
        super().__init__()
        classes_read, view = sum(HEADS.values()), preset.view
        parts = view.parts.shape[1]
        self.norm = nn.LayerNorm(preset.vision_width)
        self.read = nn.Linear(preset.vision_width, classes_read)
        self.visual_norm = nn.LayerNorm(preset.text_width)
        self.visual_read = nn.Linear(preset.text_width, parts * classes_read + 2 * view.lines)
        self.mention_norm = nn.LayerNorm(preset.text_width)
        self.mention_read = nn.Linear(preset.text_width, 1 + MOST_COUNTED + 2 * view.cells.grid)
        self.rank_norm = nn.LayerNorm(preset.text_width)
        self.rank_read = nn.Linear(preset.text_width, len(RANKS) * (1 + MOST_COUNTED))
        self.arrow_read = nn.Linear(preset.text_width, 4 * view.cells.grid)
        for head, classes in HEADS.items():
            weight = torch.ones(classes)
            if head in _COMMON:
                index, value = _COMMON[head]
                weight[index] = value
            self.register_buffer(f"weight_{head}", weight, persistent=False)
        names = [tokenizer.convert_tokens_to_ids(t) for t in (*(f"Ġ{s}" for s in SHAPES), *LETTERS)]
        colours = [tokenizer.convert_tokens_to_ids(f"Ġ{c}") for c in COLOURS]
        if None in names + colours or len(set(names + colours)) < len(names) + len(colours):
            raise ValueError("The tokenizer splits a shape, colour or letter; train it on more questions.")
        self.register_buffer("names", torch.tensor(names), persistent=False)
        self.register_buffer("colours", torch.tensor(colours), persistent=False)
        self.register_buffer("parts", torch.from_numpy(view.parts), persistent=False)
        self.register_buffer("places", torch.from_numpy(view.places), persistent=False)


def _labels_loss(heads: DenseHeads, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of scores (B, P, classes of all heads), and the share of foreground patches whose kind is right."""
    total = scores.new_zeros(())
    split = scores.split(list(HEADS.values()), dim=-1)
    for index, (name, score) in enumerate(zip(HEADS, split, strict=True)):
        weight = getattr(heads, f"weight_{name}")
        target = labels[..., index].reshape(-1)
        lost = F.cross_entropy(
            score.reshape(-1, score.shape[-1]), target, weight=weight, ignore_index=IGNORED, reduction="sum"
        )
        rows = (target != IGNORED).float().mul(weight[target.clamp(min=0)]).sum().clamp(min=1)
        total = total + _SHARES.get(name, 1.0) * lost / rows
    shown = labels[..., 0] > 0
    right = (split[0].argmax(-1) == labels[..., 0])[shown].float().mean()
    return total, right.detach()


def dense_loss(
    heads: DenseHeads, model: Any, features: Tensor, visual: Tensor, labels: Tensor, visual_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss on the dense labels, and the share of foreground patches whose kind is right.

    A visual token has to tell the labels of each patch that it is made of, and its place.

    Args:
        features: (B, patches, vision width).
        visual: (B, tokens, text width).
        labels: int64 (B, patches, heads).
        visual_labels: int64 (B, tokens, heads).
    """
    kinds = heads.read(heads.norm(features.float())).float()
    total, right = _labels_loss(heads, kinds, labels)
    scores = heads.visual_read(heads.visual_norm(visual.float())).float()
    (tokens, parts), classes = heads.parts.shape, kinds.shape[-1]
    lines = (scores.shape[-1] - parts * classes) // 2
    again, row, column = scores.split([parts * classes, lines, lines], dim=-1)
    shown = labels[:, heads.parts.flatten()]
    total = total + _labels_loss(heads, again.reshape(len(scores), tokens * parts, classes), shown)[0]
    for line, place in ((row, heads.places[:, 0]), (column, heads.places[:, 1])):
        total = total + F.cross_entropy(line.flatten(0, 1), place.repeat(len(scores)))
    table = F.normalize(model.get_input_embeddings().weight.float(), dim=-1)
    directions = F.normalize(visual.float(), dim=-1)
    kind, colour = visual_labels[..., 0], visual_labels[..., 1]
    named = (kind > 0) & (kind < KINDS.index("box"))
    for ids, chosen, target in ((heads.names, named, kind - 1), (heads.colours, colour > 0, colour - 1)):
        if bool(chosen.any()):
            near = _SHARPNESS * directions[chosen] @ table[ids].T
            total = total + F.cross_entropy(near, target[chosen])
    return total, right


def packed_mask(segments: Tensor, prefix: int, dtype: torch.dtype) -> Tensor:
    """Additive mask of packed rows: a question sees the prefix and itself.

    Args:
        segments: int64 (B, A), 0 for padding.
        prefix: number of tokens before the questions, causal among themselves.

    Returns:
        (B, 1, prefix + A, prefix + A), 0 where attention is allowed.
    """
    rows, room = segments.shape
    whole = torch.cat([segments.new_full((rows, prefix), -1), segments], dim=1)
    same = whole[:, :, None] == whole[:, None, :]
    same[:, :, :prefix] = True
    allowed = same & torch.ones(prefix + room, prefix + room, dtype=torch.bool, device=segments.device).tril()
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def decode(
    model: Any, visual: Tensor, tokens: Tensor, segments: Tensor, offsets: Tensor, dtype: torch.dtype, frame: Frame
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits behind every packed token, and hidden states on the way there.

    Args:
        visual: (B, visual tokens, text width).
        tokens, segments, offsets: int64 (B, A), see ``Batch``.
        dtype: dtype that attention runs in.
        frame: the tokens around the visual tokens.

    Returns:
        (B, A, vocabulary); (B, A, text width), the packed tokens half-way up the decoder; (B, visual tokens, text
        width), those a third of the way up.
    """
    embed = model.get_input_embeddings()
    rows, patches = visual.shape[:2]
    opening, closing = (
        embed(torch.tensor(ids, device=tokens.device, dtype=torch.long).expand(rows, -1)) for ids in frame
    )
    first = len(frame.before)
    prefix = first + patches + len(frame.after)
    embeds = torch.cat([opening, visual.to(opening.dtype), closing, embed(tokens)], dim=1)
    front = torch.arange(prefix, device=tokens.device).expand(rows, prefix)
    hidden, kept = run_layers(
        model.model.language_model,
        embeds,
        packed_mask(segments, prefix, dtype),
        torch.cat([front, offsets + prefix], dim=1),
        prefix,
    )
    middle, early = kept
    return model.lm_head(hidden[:, prefix:]), middle[:, prefix:], early[:, first : first + patches]


def run_layers(
    decoder: Any, hidden: Tensor, mask: Tensor, positions: Tensor, prefix: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A Llama decoder's layers one after another, without the hooks by which transformers collects hidden states.

    Those hooks cut a compiled layer in four.

    Args:
        hidden: (B, S, text width).
        mask: additive (B, 1, S, S).
        positions: int64 (B, S).
        prefix: leading positions that attend to nothing behind the prefix.

    Returns:
        What leaves the last norm, and what enters the layers half-way and a third of the way up.
    """
    layers = decoder.layers
    rotary = decoder.rotary_emb(hidden, position_ids=positions)
    more = {"prefix": prefix} if decoder.config._attn_implementation == TRAINING_ATTENTION else {}
    entering = []
    for layer in layers:
        entering.append(hidden)
        hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary, **more)
    return decoder.norm(hidden), (entering[len(layers) // 2], entering[max(1, len(layers) // 3)])


def answer_logits(
    model: Any, visual: Tensor, tokens: Tensor, segments: Tensor, offsets: Tensor, dtype: torch.dtype, frame: Frame
) -> Tensor:
    """The logits of ``decode``."""
    return decode(model, visual, tokens, segments, offsets, dtype, frame)[0]


def mention_loss(heads: DenseHeads, middle: Tensor, mentions: Tensor) -> Tensor:
    """Loss on what the nouns of the questions refer to, and where the arrows lead from there.

    Args:
        middle: hidden states half-way up the decoder, (B, A, text width).
        mentions: int64 (B, A, 7), see ``training.mentions.mention_targets``.
    """
    known = (mentions != IGNORED).any(-1)
    hidden, targets = heads.mention_norm(middle[known].float()), mentions[known]
    grid = heads.arrow_read.out_features // 4
    nouns = heads.mention_read(hidden).float().split([1 + MOST_COUNTED, grid, grid], dim=-1)
    arrows = heads.arrow_read(hidden).float().split(grid, dim=-1)
    total = hidden.new_zeros(())
    for score, target in zip((*nouns, *arrows), targets.T, strict=True):
        lost = F.cross_entropy(score, target, ignore_index=IGNORED, reduction="sum")
        total = total + lost / (target != IGNORED).sum().clamp(min=1)
    return total


def rank_loss(heads: DenseHeads, early: Tensor, ranks: Tensor) -> Tensor:
    """Loss on how many objects like it stand up to each object.

    Args:
        early: hidden states of the visual tokens a third of the way up the decoder, (B, tokens, text width).
        ranks: int64 (B, tokens, 3), see ``Batch``.
    """
    centres = ranks[..., 0] != IGNORED
    scores = heads.rank_read(heads.rank_norm(early[centres].float())).float()
    rows = max(1, scores.shape[0]) * len(RANKS)
    lost = F.cross_entropy(scores.view(-1, 1 + MOST_COUNTED), ranks[centres].flatten(), reduction="sum")
    return lost / rows


def answer_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of the answers: logits (B, A, V), targets and weights (B, A)."""
    lost = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return (lost * weights.flatten()).sum() / weights.sum().clamp(min=1e-6)


def to_tensors(batch: Batch, device: str) -> dict[str, Tensor]:
    """A batch's arrays as tensors on a device, labels widened to int64 there."""
    names = (
        "pixels",
        "labels",
        "visual_labels",
        "tokens",
        "segments",
        "offsets",
        "targets",
        "weights",
        "mentions",
        "ranks",
    )
    tensors = {name: torch.from_numpy(getattr(batch, name)).to(device) for name in names}
    return {name: tensor.long() if tensor.dtype == torch.int8 else tensor for name, tensor in tensors.items()}
