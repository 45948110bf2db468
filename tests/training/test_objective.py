from dataclasses import replace

import pytest
import torch

from training.attention import TRAINING_ATTENTION, register
from training.batches import draw_batch
from training.build import build_model, prepare_processor
from training.objective import packed_mask, run_layers
from training.presets import get_preset
from training.trainer import Trainer


@pytest.mark.parametrize("attention", ["eager", "sdpa", TRAINING_ATTENTION])
def test_layers_are_those_of_transformers(attention, tmp_path):
    """The trainer's own loop gives what the model that is shipped gives, and the hidden states it collects."""
    register()
    preset = replace(get_preset("tiny"), text_layers=7)
    torch.manual_seed(0)
    model = build_model(preset, prepare_processor(preset, tmp_path).tokenizer).eval()
    decoder, prefix = model.model.language_model, 9
    segments = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 2]])
    positions = torch.cat([torch.arange(prefix).expand(2, -1), prefix + torch.arange(6).expand(2, -1)], dim=1)
    embeds = torch.randn(2, prefix + 6, preset.text_width)
    mask = packed_mask(segments, prefix, torch.float32)
    with torch.no_grad():
        model.set_attn_implementation("eager")
        known = decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
        )
        model.set_attn_implementation(attention)
        hidden, (middle, early) = run_layers(decoder, embeds, mask, positions, prefix)
    real = torch.cat([torch.ones(2, prefix, dtype=torch.bool), segments > 0], dim=1)
    for own, theirs in (
        (hidden, known.last_hidden_state),
        (middle, known.hidden_states[3]),
        (early, known.hidden_states[2]),
    ):
        torch.testing.assert_close(own[real], theirs[real], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(middle[real], early[real], atol=1e-3)


@pytest.mark.slow
def test_compiled_layers_train_alike(tmp_path, monkeypatch):
    """Losses and gradients of one joint step, with and without compiled layers."""
    monkeypatch.setattr("training.trainer.autocast_dtype", lambda device: torch.float32)
    losses, gradients = [], []
    for compiled in (False, True):
        preset = replace(get_preset("tiny"), compiled=compiled)
        trainer = Trainer(preset, tmp_path / "run", 1.0)
        layers = [m for m in trainer.model.modules() if hasattr(m, "gradient_checkpointing") and "forward" in vars(m)]
        assert bool(layers) == compiled
        trainer.state["seconds"] = 45.0
        monkeypatch.setattr(torch.optim.Muon, "step", lambda self: None)
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
        tokenizer = str(tmp_path / "run" / "processor" / "tokenizer.json")
        batch = draw_batch(tokenizer, "train", 0, 2, preset.view, preset.answer_tokens, 1)
        losses.append(trainer._step(batch))
        gradients.append({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
    assert losses[0].keys() == losses[1].keys() >= {"answer_loss"}
    for key, value in losses[0].items():
        assert losses[1][key] == pytest.approx(value, rel=1e-4)
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-3, atol=1e-5)
