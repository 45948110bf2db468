"""An original InternVL2 checkpoint, converted, computes what it computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from topv.errors import InputError, UnsupportedError
from topv.models.convert_internvl2 import convert_internvl2

IMAGE = 5
ORIGINAL: dict[str, Any] = {
    "model_type": "internvl_chat",
    "downsample_ratio": 0.5,
    "force_image_size": 32,
    "select_layer": -1,
    "ps_version": "v2",
    "vision_config": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 8,
        "image_size": 48, "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm",
    },
    "llm_config": {
        "model_type": "internlm2", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 40, "bias": False,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "architectures": ["InternLM2ForCausalLM"], "auto_map": {}, "rope_theta": 1e6,
    },
}  # fmt: skip


def original_weights() -> dict[str, torch.Tensor]:
    """Random weights under the names and in the shapes of a published InternVL2-2B, made small."""
    vision, text = ORIGINAL["vision_config"], ORIGINAL["llm_config"]
    d, m, w, inner = vision["hidden_size"], vision["intermediate_size"], text["hidden_size"], text["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, d),
        "vision_model.embeddings.position_embedding": (1, 17, d),
        "vision_model.embeddings.patch_embedding.weight": (d, 3, 8, 8),
        "vision_model.embeddings.patch_embedding.bias": (d,),
        "mlp1.0.weight": (4 * d,), "mlp1.0.bias": (4 * d,),
        "mlp1.1.weight": (w, 4 * d), "mlp1.1.bias": (w,), "mlp1.3.weight": (w, w), "mlp1.3.bias": (w,),
        "language_model.model.tok_embeddings.weight": (64, w),
        "language_model.model.norm.weight": (w,), "language_model.output.weight": (64, w),
    }  # fmt: skip
    for i in range(vision["num_hidden_layers"]):
        at = f"vision_model.encoder.layers.{i}."
        shapes |= {
            at + "attn.qkv.weight": (3 * d, d), at + "attn.qkv.bias": (3 * d,), at + "attn.proj.weight": (d, d),
            at + "attn.proj.bias": (d,), at + "ls1": (d,), at + "ls2": (d,), at + "norm1.weight": (d,),
            at + "norm1.bias": (d,), at + "norm2.weight": (d,), at + "norm2.bias": (d,),
            at + "mlp.fc1.weight": (m, d), at + "mlp.fc1.bias": (m,), at + "mlp.fc2.weight": (d, m),
            at + "mlp.fc2.bias": (d,),
        }  # fmt: skip
    for i in range(text["num_hidden_layers"]):
        at = f"language_model.model.layers.{i}."
        shapes |= {
            at + "attention.wqkv.weight": (2 * (2 + 2) * 8, w), at + "attention.wo.weight": (w, w),
            at + "feed_forward.w1.weight": (inner, w), at + "feed_forward.w2.weight": (w, inner),
            at + "feed_forward.w3.weight": (inner, w), at + "attention_norm.weight": (w,),
            at + "ffn_norm.weight": (w,),
        }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def checkpoint(folder: Path, weights: dict[str, torch.Tensor], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(ORIGINAL | changes))
    save_file(weights, folder / "model.safetensors")
    return folder


def rotated(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary positions, written out for (heads, T, d)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1])[:, None] * theta ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def internlm2(weights: dict[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
    """InternLM2 as its authors define it, head by head, on embeddings (T, width): logits (T, V)."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weights[name]

    for i in range(3):
        at = f"language_model.model.layers.{i}."
        packed = (norm(states, at + "attention_norm.weight") @ weights[at + "attention.wqkv.weight"].T).view(
            -1, 2, 4, 8
        )
        mixed = []
        for query_head in range(4):
            group = packed[:, query_head // 2]
            q, k = (rotated(group[None, :, j], 1e6)[0] for j in (query_head % 2, 2))
            scores = (q @ k.T / 8**0.5).masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), float("-inf"))
            mixed.append(scores.softmax(-1) @ group[:, 3])
        states = states + torch.cat(mixed, -1) @ weights[at + "attention.wo.weight"].T
        x = norm(states, at + "ffn_norm.weight")
        gate, up = (x @ weights[at + f"feed_forward.{w}.weight"].T for w in ("w1", "w3"))
        states = states + (torch.nn.functional.silu(gate) * up) @ weights[at + "feed_forward.w2.weight"].T
    return norm(states, "language_model.model.norm.weight") @ weights["language_model.output.weight"].T


def converted(tmp_path: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    convert_internvl2(checkpoint(tmp_path / "original", original_weights()), tmp_path / "hf", IMAGE)
    return AutoModelForImageTextToText.from_pretrained(tmp_path / "hf").eval()


def test_decoder_computes_what_internlm2_computes(tmp_path: Path) -> None:
    model, weights = converted(tmp_path), original_weights()
    ids = torch.arange(10, 24)[None]
    with torch.no_grad():
        got = model(input_ids=ids).logits[0]
    want = internlm2(weights, weights["language_model.model.tok_embeddings.weight"][ids[0]])
    assert (got - want).abs().max() / want.abs().max() < 1e-5


def test_tower_and_projector_compute_what_internvit_computes(tmp_path: Path) -> None:
    model, w = converted(tmp_path), original_weights()
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = model.get_image_features(pixel_values=pixels)
        got = getattr(features, "pooler_output", features)
        got = got[0] if not isinstance(got, torch.Tensor) or got.ndim == 3 else got
    x = torch.nn.functional.conv2d(
        pixels,
        w["vision_model.embeddings.patch_embedding.weight"],
        w["vision_model.embeddings.patch_embedding.bias"],
        8,
    )
    x = torch.cat([w["vision_model.embeddings.class_embedding"], x.flatten(2).transpose(1, 2)], 1)[0]
    x = x + w["vision_model.embeddings.position_embedding"][0]
    for i in range(2):
        at = f"vision_model.encoder.layers.{i}."
        y = torch.nn.functional.layer_norm(x, (16,), w[at + "norm1.weight"], w[at + "norm1.bias"], 1e-6)
        q, k, v = (y @ w[at + "attn.qkv.weight"].T + w[at + "attn.qkv.bias"]).view(-1, 3, 2, 8).permute(1, 2, 0, 3)
        y = ((q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + w[at + "ls1"] * (y @ w[at + "attn.proj.weight"].T + w[at + "attn.proj.bias"])
        y = torch.nn.functional.layer_norm(x, (16,), w[at + "norm2.weight"], w[at + "norm2.bias"], 1e-6)
        y = torch.nn.functional.gelu(y @ w[at + "mlp.fc1.weight"].T + w[at + "mlp.fc1.bias"])
        x = x + w[at + "ls2"] * (y @ w[at + "mlp.fc2.weight"].T + w[at + "mlp.fc2.bias"])
    grid = x[1:].view(4, 4, 16)
    cells = torch.stack([grid[r : r + 2, c : c + 2].reshape(-1) for r in (0, 2) for c in (0, 2)])
    y = torch.nn.functional.layer_norm(cells, (64,), w["mlp1.0.weight"], w["mlp1.0.bias"])
    y = torch.nn.functional.gelu(y @ w["mlp1.1.weight"].T + w["mlp1.1.bias"]) @ w["mlp1.3.weight"].T + w["mlp1.3.bias"]
    assert (got - y).abs().max() / y.abs().max() < 1e-5


def test_unknown_and_missing_weights_are_refused(tmp_path: Path) -> None:
    weights = original_weights()
    with pytest.raises(UnsupportedError, match="mlp2"):
        convert_internvl2(checkpoint(tmp_path / "a", weights | {"mlp2.weight": torch.ones(2)}), tmp_path / "x", IMAGE)
    weights.pop("mlp1.1.weight")
    with pytest.raises(InputError, match=r"linear_1\.weight"):
        convert_internvl2(checkpoint(tmp_path / "b", weights), tmp_path / "x", IMAGE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "internvl"}, "needs no conversion"),
        ({"ps_version": "v1"}, "v1"),
        ({"llm_config": ORIGINAL["llm_config"] | {"model_type": "phi3"}}, "phi3"),
    ],
)
def test_other_checkpoints_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        convert_internvl2(checkpoint(tmp_path / "c", original_weights(), **changes), tmp_path / "x", IMAGE)


def test_folders_without_a_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        convert_internvl2(tmp_path, tmp_path / "x", IMAGE)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="safetensors"):
        convert_internvl2(tmp_path, tmp_path / "x", IMAGE)


def test_command_converts_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoConfig

    from topv.cli.main import main

    source = checkpoint(tmp_path / "original", original_weights())
    assert main(["convert", str(source), str(tmp_path / "hf")]) != 0
    assert "IMG_CONTEXT" in capsys.readouterr().err
    (source / "added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": IMAGE}))
    assert main(["convert", str(source), str(tmp_path / "hf")]) == 0
    assert AutoConfig.from_pretrained(tmp_path / "hf").image_token_id == IMAGE
    assert (tmp_path / "hf" / "added_tokens.json").is_file()
    assert main(["convert", str(source), str(source)]) != 0
