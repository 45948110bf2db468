"""The tiled sibling: what the trainer shows, labels and copies is what the shipped files show."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import topv
from topv.cli.main import main
from topv.evaluate import Example, answer_examples
from topv.mini import load_mini
from topv.scenes import Geometry, Tiles, View, draw_scene, read_view
from topv.scenes.canvas import IGNORED, Item
from topv.scenes.randomness import Stream
from training.build import build_model, build_processor, get_architecture
from training.drills import ranks
from training.export import export
from training.internvl import CONTEXT, START, STOP
from training.presets import get_preset
from training.tokenizer import ASSISTANT, USER
from training.trainer import Trainer
from training.transplant import copied_name, positions, transplant

LLAVA, TILED = get_preset("tiny"), get_preset("tiny-tiled")
VIEW = Tiles(Geometry(224, 14), 2)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A LLaVA folder, untrained, with nothing left at its neutral initial value."""
    folder = tmp_path_factory.mktemp("llava")
    processor = build_processor(LLAVA)
    torch.manual_seed(0)
    model = build_model(LLAVA, processor.tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(start, tmp_path_factory):
    """A tiled folder as a training leaves it."""
    run = tmp_path_factory.mktemp("run")
    trainer = Trainer(TILED, run, 1.0, start=start)
    trainer.model.save_pretrained(run / "best")
    export(run, run / "weights")
    return run / "weights"


@pytest.mark.parametrize("preset", [TILED, get_preset("tiled")], ids=lambda preset: preset.name)
def test_processor_shows_what_the_trainer_shows(preset):
    processor = build_processor(preset)
    side = preset.image_size
    noise = Image.fromarray(Stream(3, 0).bytes(side * side * 3).reshape(side, side, 3))
    for image in (draw_scene(5, "train", preset.geometry).image, noise):
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what shape?"}]}],
            add_generation_prompt=True,
        )
        inputs = processor(images=image, text=text, return_tensors="pt")
        shown = torch.from_numpy(preset.view.pixels(image)).permute(0, 3, 1, 2).float() / 127.5 - 1
        torch.testing.assert_close(inputs["pixel_values"].float(), shown, rtol=0, atol=1e-6)
        marks = [CONTEXT] * len(preset.view.places)
        question = processor.tokenizer.tokenize("what shape?")
        tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
        assert tokens == [USER, START, *marks, STOP, *question, ASSISTANT]


def test_parts_are_the_order_of_the_pixel_shuffle():
    model = build_model(TILED, build_processor(TILED).tokenizer)
    view = TILED.view
    grids, grid = 5, view.tile.grid
    patches = torch.arange(grids * grid**2).view(grids, grid, grid, 1).expand(-1, -1, -1, 2).float()
    shuffled = model.model.pixel_shuffle(patches, scale_factor=0.5).flatten(0, 2)[:, ::2]
    np.testing.assert_array_equal(shuffled.numpy(), view.parts)


def test_labels_stand_where_the_model_sees_what_they_name():
    """Every patch of the tiles has the labels of its place, and every cell those of the largest thing in it."""
    scene = draw_scene(3, "train", VIEW.geometry)
    patches, tokens = VIEW.labels(scene.canvas, scene.labels)
    assert patches.shape[0] == 5 * 64
    assert tokens.shape[0] == 80
    coarse, tiny = (scene.canvas.measure(Geometry(224, size))[1] for size in (28, 56))
    for token, (row, column) in enumerate(VIEW.places):
        if token >= 64:
            np.testing.assert_array_equal(tokens[token], tiny[row - 8, column - 8])
            continue
        np.testing.assert_array_equal(tokens[token], coarse[row, column])
        for part, patch in enumerate(VIEW.parts[token]):
            place = 2 * row + part // 2, 2 * column + part % 2
            np.testing.assert_array_equal(patches[patch], scene.labels[place])
    np.testing.assert_array_equal(patches[256:].reshape(8, 8, -1), coarse)


def test_tokens_show_the_pixels_of_their_place():
    rows, columns = np.mgrid[:224, :224]
    image = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
    tiles = VIEW.pixels(Image.fromarray(image))
    for token, (row, column) in enumerate(VIEW.places[:64]):
        tile, (inner_row, inner_column) = token // 16, divmod(token % 16, 4)
        assert tuple(tiles[tile, 28 * inner_row, 28 * inner_column, :2]) == (28 * row, 28 * column)
        assert VIEW.token_at((28 * column + 13.0, 28 * row + 13.0)) == token


def test_ranks_follow_the_decoder_from_tile_to_tile():
    def star(x, y):
        return Item("shape", "star", "red", "small", (x - 5, y - 5, x + 5, y + 5), (1,))

    # The lower star of the left tile comes before the upper one of the right tile.
    left, right = star(20, 100), star(200, 10)
    found = ranks([right, left], VIEW)
    assert found.shape == (80, 3)
    assert found[VIEW.token_at(left.centre)].tolist() == [1, 1, 1]
    assert found[VIEW.token_at(right.centre)].tolist() == [2, 2, 2]
    assert (found != IGNORED).sum() == 6
    whole = ranks([right, left], View(VIEW.geometry))
    assert whole[View(VIEW.geometry).token_at(right.centre)].tolist() == [1, 1, 1]


def test_transplant_copies_tower_decoder_and_words(start):
    processor = build_processor(TILED, AutoProcessor.from_pretrained(start).tokenizer)
    torch.manual_seed(1)
    model = build_model(TILED, processor.tokenizer)
    llava = AutoModelForImageTextToText.from_pretrained(start)
    held, old = llava.state_dict(), AutoProcessor.from_pretrained(start).tokenizer.get_vocab()
    copied = transplant(start, model, processor.tokenizer)
    ours = model.state_dict()
    for name in held:
        if (copy := copied_name(name)) is not None:
            assert copy in copied
            torch.testing.assert_close(ours[copy], held[name], rtol=0, atol=0)
    derived = {name for name in ours if name not in copied}
    tower, projector = "model.vision_tower.", "model.multi_modal_projector."
    assert derived == {
        f"{tower}embeddings.cls_token",
        f"{tower}embeddings.position_embeddings",
        f"{tower}embeddings.patch_embeddings.projection.weight",
        f"{tower}embeddings.patch_embeddings.projection.bias",
        f"{tower}encoder.layer.0.lambda_1",
        f"{tower}encoder.layer.0.lambda_2",
        f"{projector}layer_norm.weight",
        f"{projector}layer_norm.bias",
        f"{projector}linear_1.weight",
        f"{projector}linear_1.bias",
        "model.language_model.embed_tokens.weight",
        "lm_head.weight",
    }
    assert (ours[f"{tower}encoder.layer.0.lambda_1"] == 1).all()
    words, theirs = ours["lm_head.weight"], held["lm_head.weight"]
    new = processor.tokenizer.get_vocab()
    assert set(new) - set(old) == {START, STOP, CONTEXT}
    torch.testing.assert_close(words[[new[t] for t in old]], theirs[[old[t] for t in old]], rtol=0, atol=0)


def test_transplanted_tower_sees_as_before(start):
    """With its LayerNorm folded in, the tower's embeddings of a window stay close to CLIP's."""
    processor = build_processor(TILED, AutoProcessor.from_pretrained(start).tokenizer)
    model = build_model(TILED, processor.tokenizer).eval()
    transplant(start, model, processor.tokenizer)
    clip = AutoModelForImageTextToText.from_pretrained(start).model.vision_tower
    pixels = torch.from_numpy(np.array(draw_scene(900, "train").image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        before = clip.pre_layrnorm(clip.embeddings(pixels))
        window = model.model.vision_tower.embeddings(pixels[:, :, 42:126, 42:126])
    torch.testing.assert_close(window[:, 0], before[:, 0])
    middle = before[:, 1:].view(12, 12, -1)[3:9, 3:9].reshape(36, -1)
    near = torch.nn.functional.cosine_similarity(window[0, 1:], middle, dim=-1)
    assert near.mean() > 0.95


def test_positions_of_larger_grids_are_interpolated():
    table = torch.arange(4.0)[:, None].repeat_interleave(4, dim=0).expand(16, 3)
    assert positions(table, 2)[:, 0].tolist() == [1, 1, 2, 2]
    larger = positions(table, 8).view(8, 8, 3)
    assert (larger[1:, 0, 0] >= larger[:-1, 0, 0]).all()


def test_transplant_refuses_another_shape(start):
    preset = get_preset("tiled")
    processor = build_processor(preset, AutoProcessor.from_pretrained(start).tokenizer)
    with pytest.raises(ValueError, match="LLaVA of another shape"):
        transplant(start, build_model(preset, processor.tokenizer), processor.tokenizer)


def test_exported_folder_loads_scores_and_prunes(folder, monkeypatch, capsys):
    assert max(file.stat().st_size for file in folder.iterdir()) <= 15e6
    monkeypatch.setattr("topv.mini.TILED_PATH", folder)
    model, processor = load_mini(tiled=True)
    assert type(model).__name__ == "InternVLForConditionalGeneration"
    assert read_view(model.config, processor) == TILED.view
    image = draw_scene(0, "test", TILED.geometry).image
    prompts = ("what is the large object?", "how many stars are there?")
    asked = [Example("counting", 0, image, prompt, "", None) for prompt in prompts]
    assert len(answer_examples(model, processor, asked, None)) == 2
    (answer,) = answer_examples(model, processor, asked[:1], topv.TopV(keep=0.5, layer=1))
    assert answer.kept_tokens < answer.visual_tokens == len(TILED.view.places)
    command = ["eval", "--methods", "none", "--blind", "--model", str(folder), "--questions", "1"]
    assert main([*command, "--tasks", "recognition"]) == 0
    assert "| recognition | 1 |" in capsys.readouterr().out


def test_training_lowers_the_loss_and_goes_on(start, tmp_path):
    trainer = Trainer(TILED, tmp_path, 60.0, start=start)
    from training.batches import draw_batch

    batch = draw_batch(str(tmp_path / "processor" / "tokenizer.json"), "train", 0, 2, TILED.view, 96, pages=2)
    trainer.state["joint_step"] = 2
    losses = []
    for _ in range(12):
        trainer._set_rates()
        measured = trainer._step(batch)
        losses.append(measured["answer_loss"] + measured["dense_loss"])
    assert losses[-1] < 0.9 * losses[0]
    trainer.save()
    again = Trainer(TILED, tmp_path, 60.0, start=start)
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, rtol=0, atol=0)
    # From its own kind of model everything is copied.
    trainer.model.save_pretrained(tmp_path / "own")
    trainer.processor.save_pretrained(tmp_path / "own")
    own = Trainer(TILED, tmp_path / "other", 60.0, start=tmp_path / "own")
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(own.model.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "tokens"), [("tiled", 80), ("tiled-accelerator", 320)])
def test_shipped_sizes_keep_their_budget(name, tokens):
    preset = get_preset(name)
    processor = build_processor(TILED)
    with torch.device("meta"):
        model = build_model(preset, processor.tokenizer)
    assert len(preset.view.places) == tokens
    # Room is left for the tokenizer, the index and the model card.
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) <= 31.7e6


def test_bad_input(monkeypatch, tmp_path):
    monkeypatch.setattr("topv.mini.TILED_PATH", tmp_path)
    with pytest.raises(FileNotFoundError, match="--preset tiled"):
        load_mini(tiled=True)
    with pytest.raises(ValueError, match="at least 2 tiles a side"):
        Tiles(Geometry(224, 14), 3)
    with pytest.raises(ValueError, match="InternVL needs tiles"):
        get_architecture(TILED).model(LLAVA, build_processor(TILED).tokenizer)
