import csv
import json
from dataclasses import replace

import pytest
import torch

from topv.cli.main import main as topv_main
from training.build import build_model, prepare_processor
from training.checkpoints import load_checkpoint, save_checkpoint
from training.export import export
from training.presets import PRESETS, get_preset
from training.train import main
from training.trainer import Trainer


def test_checkpoint_restores_everything(tmp_path):
    def make():
        torch.manual_seed(1)
        module = torch.nn.Linear(3, 2)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1), {"weight": torch.zeros(2, 3)}

    module, optimizer, average = make()
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    average["weight"].fill_(3.0)
    save_checkpoint(tmp_path, {"model": module}, average, [optimizer], {"step": 1})
    other, fresh, empty = make()
    assert load_checkpoint(tmp_path, {"model": other}, empty, [fresh]) == {"step": 1}
    torch.testing.assert_close(other.weight, module.weight, rtol=0, atol=0)
    torch.testing.assert_close(empty, average, rtol=0, atol=0)
    for net, steps in ((module, optimizer), (other, fresh)):
        net.zero_grad()
        net(torch.ones(1, 3)).sum().backward()
        steps.step()
    torch.testing.assert_close(other.weight, module.weight, rtol=0, atol=0)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    kept = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    save_checkpoint(tmp_path, {"model": kept}, {}, [], {"step": 1})
    for other in (
        torch.nn.Sequential(*kept, torch.nn.Linear(2, 2)),
        kept[:1],
        torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3)),
    ):
        before = [parameter.clone() for parameter in other.parameters()]
        with pytest.raises(ValueError, match=r"another version: model\.[12]\.bias"):
            load_checkpoint(tmp_path, {"model": other}, {}, [])
        assert all(map(torch.equal, before, other.parameters()))


def test_nothing_to_resume(tmp_path):
    module = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(module.parameters())
    assert load_checkpoint(tmp_path, {"model": module}, {}, [optimizer]) is None


@pytest.mark.slow
def test_train_resume_export_plot(tmp_path):
    run = tmp_path / "run"
    command = ["--preset", "tiny", "--out", str(run), "--minutes", "0.25", "--run-minutes", "0.15"]
    main(command)
    first = json.loads((run / "last.json").read_text())
    assert first["joint_step"] > 0
    assert 0.15 * 60 <= first["seconds"] < 0.25 * 60
    main(command)
    second = json.loads((run / "last.json").read_text())
    assert second["step"] > first["step"]
    assert second["seconds"] >= 0.25 * 60
    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps)
    # One schedule over both runs: the cosine of the whole training, low only at its end.
    rates = {int(row["step"]): float(row["rate"]) for row in rows if row["dense_loss"]}
    assert rates[first["step"]] > 0.2
    assert rates[second["step"]] < 0.03
    with pytest.raises(ValueError, match="preset 'tiny', not 'cpu'"):
        Trainer(get_preset("cpu"), run, 1.0)
    with pytest.raises(ValueError, match="began without --start"):
        Trainer(get_preset("tiny"), run, 1.0, start=run / "best")
    with pytest.raises(ValueError, match="training of seed 0, not 1"):
        Trainer(get_preset("tiny"), run, 1.0, seed=1)
    with pytest.raises(ValueError, match="stage 'all', which 60 minutes would take back to 'tower'"):
        Trainer(get_preset("tiny"), run, 60.0)
    # What a killed run wrote behind its last checkpoint comes again, and stands in the log once.
    with (run / "log.csv").open("a") as file:
        file.write(f"{second['step'] + 1},0.2,all\n")
    Trainer(get_preset("tiny"), run, 0.25).run()
    with (run / "log.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [*steps, second["step"]]
    export(run, tmp_path / "weights")
    assert (tmp_path / "weights" / "tokenizer.json").is_file()
    assert max(file.stat().st_size for file in (tmp_path / "weights").iterdir()) <= 15e6
    main(["--out", str(run), "--plot"])
    assert (run / "curves.png").stat().st_size > 1000


def test_accelerator_preset_keeps_its_budget(tmp_path):
    preset = PRESETS["accelerator"]
    assert preset.geometry.grid**2 == 576
    assert preset.text_layers == 24
    with torch.device("meta"):
        model = build_model(preset, prepare_processor(PRESETS["tiny"], tmp_path).tokenizer)
    # bfloat16: two bytes a parameter, each shared one once.
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) <= 32e6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accelerator", "tiled-accelerator"])
def test_accelerator_presets_train_and_ship(name, tmp_path, monkeypatch):
    """Their real shapes, in the smallest batches, on a processor, under the attention that an accelerator uses."""
    monkeypatch.setattr("training.trainer._VALIDATION_SCENES", 16)
    few = {"tower_batch": 1, "joint_batch": 2, "pages": 1, "answer_tokens": 96, "workers": 1}
    preset = replace(get_preset(name), device="cpu", tower_share=0.05, reading_share=0.05, **few)
    trainer = Trainer(preset, tmp_path / "run", 0.1)
    trainer.model.set_attn_implementation("sdpa")
    trainer.run()
    assert trainer.state["joint_step"] > 0
    export(tmp_path / "run", tmp_path / "weights")
    sizes = [file.stat().st_size for file in (tmp_path / "weights").iterdir()]
    assert max(sizes) <= 15e6
    assert sum(sizes) <= 32e6
    command = ["eval", "--methods", "none", "--blind", "--model", str(tmp_path / "weights")]
    assert topv_main([*command, "--questions", "1", "--tasks", "recognition"]) == 0


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="'gpu'; expected one of cpu, accelerator"):
        get_preset("gpu")
    with pytest.raises(ValueError, match="for 0 minutes"):
        Trainer(get_preset("tiny"), tmp_path, 0)
    with pytest.raises(ValueError, match="run of 0 seconds"):
        Trainer(get_preset("tiny"), tmp_path, 1.0).run(run_seconds=0)
    with pytest.raises(FileNotFoundError, match="train past the first validation"):
        export(tmp_path, tmp_path / "weights")
