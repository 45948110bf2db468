"""The trainer: tower first on dense labels, then everything together, resumable at any checkpoint."""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import crew
from .attention import TRAINING_ATTENTION, register
from .batches import Batch, draw_batch, stream_batches
from .build import build_model, get_architecture, prepare_processor
from .checkpoints import load_checkpoint, read_state, save_checkpoint
from .log import Log
from .objective import DenseHeads, answer_loss, decode, dense_loss, mention_loss, rank_loss, to_tensors
from .presets import Preset
from .validation import validate

__all__ = ["Trainer"]

_VALIDATION_SCENES = 96
_EARLY_READING = 0.25
_STAGES = ("tower", "objects", "all")


def autocast_dtype(device: str) -> torch.dtype:
    """bfloat16 where the machine multiplies it natively, else float32."""
    if device != "cpu":
        return torch.bfloat16
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32


def _compile_layers(model: Any) -> None:
    """Compile the forward of every layer of tower and decoder: alike layers share their code."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.forward = torch.compile(module.forward, dynamic=False)


class Trainer:
    """Trains one preset into a folder for a given number of minutes, over as many runs as it takes.

    Args:
        preset: sizes and schedule.
        out: folder for tokenizer, checkpoints, the log and the best weights.
        minutes: length of the whole training; the learning rate falls to a fiftieth at its end.
        seed: of the initial weights.
        start: folder of a trained model whose weights to begin with, of the same preset or one that
            ``Architecture.begin`` can take over from; the schedule is then ``Preset.continued``.

    Raises:
        ValueError: the minutes are not above 0, ``out`` or ``start`` holds another preset's model, or ``out`` a
            training that began with ``start`` when this one does not, or the other way round.
    """

    def __init__(self, preset: Preset, out: Path, minutes: float, seed: int = 0, start: Path | None = None) -> None:
        if minutes <= 0:
            raise ValueError(f"Training for {minutes} minutes; expected a number above 0.")
        self.preset = preset = preset if start is None else preset.continued()
        self.out, self.minutes = out, minutes
        self.log = Log(out / "log.csv")
        self.processor = prepare_processor(preset, out, start)
        tokenizer = self.processor.tokenizer
        self.architecture = get_architecture(preset)
        self.frame = self.architecture.frame(tokenizer)
        torch.manual_seed(seed)
        self.device, self.dtype = preset.device, autocast_dtype(preset.device)
        self.model = build_model(preset, tokenizer)
        if start is not None and read_state(out) is None:
            self.architecture.begin(self.model, tokenizer, start)
        self.model.to(self.device).train()
        if self.device == "cpu":
            register()
            self.model.set_attn_implementation(TRAINING_ATTENTION)
        if preset.compiled and any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
            _compile_layers(self.model)
        self.heads = DenseHeads(preset, tokenizer).to(self.device)
        self.clock, self.run_ends = 0.0, math.inf
        self.average = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.optimizers = self._optimizers()
        self.state: dict[str, Any] = {
            "step": 0, "joint_step": 0, "scene": 0, "seconds": 0.0, "best": -1.0, "seed": seed, "preset": preset.name,
            "stage": "tower", "continued": start is not None,
        }  # fmt: skip
        held = read_state(out)
        if held is not None and not held.keys() >= self.state.keys():
            raise ValueError(
                f"{out} holds a training of another version; --start from its exported weights in another --out."
            )
        if held is not None and held["preset"] != preset.name:
            raise ValueError(
                f"{out} holds a training of preset {held['preset']!r}, not {preset.name!r}; use another --out."
            )
        if held is not None and held["continued"] != (start is not None):
            raise ValueError(
                f"{out} holds a training that began {'with' if held['continued'] else 'without'} --start; go on with"
                " the same command, or use another --out."
            )
        if held is not None and held["seed"] != seed:
            raise ValueError(f"{out} holds a training of seed {held['seed']}, not {seed}; use another --out.")
        self.state = load_checkpoint(out, self._modules(), self.average, self.optimizers) or self.state
        if held is not None and _STAGES.index(self.stage) < _STAGES.index(held["stage"]):
            raise ValueError(
                f"{out} holds a training in stage {held['stage']!r}, which {minutes:g} minutes would take back to"
                f" {self.stage!r}; give fewer --minutes, or use another --out."
            )

    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"model": self.model, "heads": self.heads}

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices inside the layers, AdamW for everything else."""
        layers: dict[str, list[Tensor]] = {"tower": [], "text": []}
        rest: dict[str, list[Tensor]] = {"tower": [], "text": [], "heads": list(self.heads.parameters())}
        for name, parameter in self.model.named_parameters():
            part = "tower" if "vision_tower" in name else "text"
            inside = (".layers." in name or ".layer." in name) and parameter.ndim == 2
            (layers if inside else rest)[part].append(parameter)
        decay = self.preset.weight_decay
        muon = torch.optim.Muon(
            [{"params": p, "part": part, "weight_decay": decay} for part, p in layers.items()],
            adjust_lr_fn="match_rms_adamw",
        )
        adamw = torch.optim.AdamW(
            [{"params": p, "part": part, "weight_decay": 0.0} for part, p in rest.items()],
            betas=(0.9, 0.98),
            fused=True,
        )
        return [muon, adamw]

    @property
    def progress(self) -> float:
        """Share of the training that is done, from 0 to 1."""
        return min(1.0, self.state["seconds"] / (60 * self.minutes))

    @property
    def over(self) -> bool:
        """Whether the training, or this run of it, is at its end."""
        return self.progress >= 1 or self.state["seconds"] >= self.run_ends

    @property
    def stage(self) -> str:
        """First "tower" alone; then "objects", with few questions that need reading; then "all"."""
        if self.progress < self.preset.tower_share:
            return "tower"
        return "objects" if self.progress < self.preset.reading_share else "all"

    @property
    def joint(self) -> bool:
        return self.stage != "tower"

    def _set_rates(self) -> float:
        preset, share = self.preset, self.preset.tower_share
        if self.joint:
            within = (self.progress - share) / (1 - share)
            warm = min(1.0, (self.state["joint_step"] + 1) / preset.warmup_steps)
            factor = warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * within)))
            rates = {"tower": preset.joint_tower_rate, "text": preset.text_rate, "heads": preset.joint_tower_rate}
        else:
            factor = min(1.0, (self.state["step"] + 1) / preset.warmup_steps)
            factor *= 1 - 0.5 * self.progress / share
            rates = dict.fromkeys(("tower", "text", "heads"), preset.tower_rate)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = factor * rates[group["part"]]
        return factor

    def _step(self, batch: Batch) -> dict[str, float]:
        held = to_tensors(batch, self.device)
        joint = held["tokens"].shape[1] > 0
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            features, visual = self.architecture.see(self.model, held["pixels"])
            if joint:
                logits, middle, early = decode(
                    self.model,
                    visual[: len(held["tokens"])],
                    held["tokens"],
                    held["segments"],
                    held["offsets"],
                    self.dtype,
                    self.frame,
                )
        dense, right = dense_loss(self.heads, self.model, features, visual, held["labels"], held["visual_labels"])
        loss = dense
        measured = {"dense_loss": dense.item(), "patch_accuracy": right.item()}
        if joint:
            answers = answer_loss(logits, held["targets"], held["weights"])
            nouns = mention_loss(self.heads, middle, held["mentions"])
            orders = rank_loss(self.heads, early, held["ranks"])
            loss = loss + answers + nouns + orders
            measured |= {"answer_loss": answers.item(), "noun_loss": nouns.item(), "rank_loss": orders.item()}
        if not math.isfinite(sum(measured.values())):
            raise FloatingPointError(
                f"The losses are {measured} at step {self.state['step']}; restart from the last checkpoint with a"
                " lower learning rate in the preset."
            )
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        everything = [*self.model.parameters(), *self.heads.parameters()]
        self.clock = crew.average_gradients(everything, self.clock)
        torch.nn.utils.clip_grad_norm_(everything, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        decay = min(self.preset.average, (1 + self.state["step"]) / (10 + self.state["step"]))
        current = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)
        return measured

    def _swap(self) -> None:
        """Exchange the live weights with their running average."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                held = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name].copy_(held)

    def _validate(self, batches: list[Batch]) -> dict[str, float]:
        self._swap()
        accuracy = validate(self.architecture, self.model, batches, self.frame, self.dtype, self.device)
        if accuracy["mean"] > self.state["best"]:
            self.state["best"] = accuracy["mean"]
            self.model.save_pretrained(self.out / "best")
        self._swap()
        return accuracy

    def save(self) -> None:
        self.state["stage"] = self.stage
        save_checkpoint(self.out, self._modules(), self.average, self.optimizers, self.state)

    def run(self, log_seconds: float = 20.0, validate_seconds: float = 240.0, run_seconds: float = math.inf) -> None:
        """Train until the minutes are used up, or for ``run_seconds`` of them, logging to ``log.csv``.

        The schedule is that of the whole training, however many runs it takes.

        Raises:
            ValueError: ``run_seconds`` is not above 0.
        """
        if run_seconds <= 0:
            raise ValueError(f"A run of {run_seconds} seconds; expected a number above 0.")
        self.run_ends = self.state["seconds"] + run_seconds
        if crew.rank() == 0:
            self.log.forget_after(self.state["step"])
            reached = f"goes on at step {self.state['step']}, minute {self.state['seconds'] / 60:.1f}"
            print(f"training of {self.minutes:g} minutes {reached if self.state['step'] else 'begins'}", flush=True)
        preset, tokenizer_file = self.preset, str(self.out / "processor" / "tokenizer.json")
        held_out = [
            draw_batch(tokenizer_file, "validation", first, 16, preset.view, 320)
            for first in range(0, _VALIDATION_SCENES if crew.rank() == 0 else 0, 16)
        ]
        while not self.over:
            stage, joint = self.stage, self.joint
            size = (preset.joint_batch if joint else preset.tower_batch) // crew.world()
            source = stream_batches(
                tokenizer_file,
                start=self.state["scene"] + crew.rank() * size,
                count=size,
                stride=size * crew.world(),
                view=preset.view,
                room=preset.answer_tokens if joint else 0,
                pages=preset.pages // crew.world(),
                reading=_EARLY_READING if stage == "objects" else 1.0,
                workers=max(1, preset.workers // crew.world()),
            )
            self._run_stage(source, stage, size * crew.world(), held_out, log_seconds, validate_seconds)
            source.close()
        if crew.rank() == 0:
            self._write(self._validate(held_out), self._set_rates())
            self.save()

    def _run_stage(
        self, source: Any, stage: str, size: int, held_out: list[Batch], log_seconds: float, validate_seconds: float
    ) -> None:
        state, recent = self.state, list[dict[str, float]]()
        started = logged = validated = 0.0
        before = state["seconds"]
        for number, batch in enumerate(source):
            if not number:
                started = logged = validated = time.monotonic()
            factor = self._set_rates()
            self.clock = before + time.monotonic() - started
            recent.append(self._step(batch))
            state["step"] += 1
            state["joint_step"] += stage != "tower"
            state["scene"] += size
            state["seconds"] = self.clock
            over = self.over or self.stage != stage
            now = time.monotonic()
            if crew.rank() == 0:
                due = now - validated > validate_seconds
                if now - logged > log_seconds or due or over:
                    row = {name: sum(r[name] for r in recent) / len(recent) for name in recent[0]}
                    recent.clear()
                    logged = now
                    if due and stage != "tower":
                        row |= self._validate(held_out)
                    self._write(row, factor)
                if due or over:
                    self.save()
                    validated = time.monotonic()
            if over:
                return

    def _write(self, row: dict[str, float], factor: float) -> None:
        self.log.write(
            {
                "step": self.state["step"],
                "minutes": self.state["seconds"] / 60,
                "stage": self.stage,
                "rate": factor,
                **row,
            }
        )
