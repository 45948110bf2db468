import pytest
import torch

from topv.evaluate import Example, answer_examples
from topv.scenes import TASKS, draw_scene
from topv.scenes.canvas import HEADS, IGNORED
from training.attention import TRAINING_ATTENTION, register
from training.batches import draw_batch
from training.build import build_model, build_processor, get_architecture
from training.objective import DenseHeads, answer_logits, dense_loss, to_tensors
from training.presets import get_preset
from training.tokenizer import ASSISTANT, IMAGE, USER
from training.validation import exact_matches

PRESET = get_preset("tiny")
TILED = get_preset("tiny-tiled")


@pytest.fixture(scope="module")
def processor():
    return build_processor(PRESET)


@pytest.fixture(scope="module")
def batch(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    processor.save_pretrained(folder)
    return draw_batch(str(folder / "tokenizer.json"), "validation", 0, 2, PRESET.view, 320)


@pytest.fixture(scope="module")
def tiled_processor(processor):
    return build_processor(TILED, processor.tokenizer)


@pytest.fixture(scope="module")
def tiled_batch(tiled_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiled-processor")
    tiled_processor.save_pretrained(folder)
    return draw_batch(str(folder / "tokenizer.json"), "validation", 0, 2, TILED.view, 320)


@pytest.fixture(params=["tiny", "tiny-tiled"])
def preset(request):
    return get_preset(request.param)


@pytest.fixture
def case(preset, processor, batch, tiled_processor, tiled_batch):
    """A processor and a batch for each architecture."""
    return (processor, batch) if preset is PRESET else (tiled_processor, tiled_batch)


def make_model(processor, preset=PRESET):
    torch.manual_seed(0)
    return build_model(preset, processor.tokenizer).eval()


def test_tokenizer_round_trip_and_spelling(processor):
    tokenizer = processor.tokenizer
    for text in ("what colour is the star?", " ZEBRA", " 3", "é ← unseen, Mixed Case 42!"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize(" ZOO") == ["Ġ", "Z", "O", "O"]
    assert len(tokenizer) <= 1024
    assert tokenizer.padding_side == "left"


def test_prompt_is_the_training_format(processor):
    content = [{"type": "image"}, {"type": "text", "text": "what shape?"}]
    messages = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == f"{USER}{IMAGE}what shape?{ASSISTANT}"
    inputs = processor(images=draw_scene(0, "train").image, text=prompt, return_tensors="pt")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == PRESET.geometry.grid**2


@pytest.mark.parametrize("attention", ["sdpa", TRAINING_ATTENTION])
def test_packed_questions_equal_single_ones(preset, case, attention):
    """Every packed question has the logits it gets alone, through the processor, in stock transformers."""
    register()
    processor, batch = case
    model, architecture = make_model(processor, preset), get_architecture(preset)
    held = to_tensors(batch, "cpu")
    frame = architecture.frame(processor.tokenizer)
    front = len(frame.before) + len(preset.view.places) + len(frame.after)
    with torch.no_grad():
        model.set_attn_implementation(attention)
        _, visual = architecture.see(model, held["pixels"])
        packed = answer_logits(model, visual, held["tokens"], held["segments"], held["offsets"], torch.float32, frame)
        model.set_attn_implementation("sdpa")
        for row, tasks in enumerate(batch.tasks):
            image = draw_scene(row, "validation", preset.geometry).image
            for segment in range(1, len(tasks) + 1):
                inside = held["segments"][row] == segment
                text = f"{USER}{IMAGE}" + processor.tokenizer.decode(held["tokens"][row][inside])
                inputs = processor(images=image, text=text, return_tensors="pt")
                alone = model(**inputs).logits[0, front:]
                torch.testing.assert_close(packed[row, inside], alone, rtol=1e-4, atol=1e-5)


def test_exact_match_equals_greedy_generation(preset, case):
    """A model trained on one answer: teacher-forced matching and generation agree on it."""
    processor, batch = case
    model, architecture = make_model(processor, preset).train(), get_architecture(preset)
    held = to_tensors(batch, "cpu")
    frame = architecture.frame(processor.tokenizer)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(25):
        _, visual = architecture.see(model, held["pixels"])
        logits = answer_logits(model, visual, held["tokens"], held["segments"], held["offsets"], torch.float32, frame)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), held["targets"].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        _, visual = architecture.see(model, held["pixels"])
        logits = answer_logits(model, visual, held["tokens"], held["segments"], held["offsets"], torch.float32, frame)
    matches = exact_matches(logits, batch)
    for task in ("recognition", "existence", "relation"):
        generated = []
        for row in range(2):
            scene = draw_scene(row, "validation", preset.geometry)
            asked = [
                Example(task, row, scene.image, q.prompt, q.answer, None) for q in scene.questions if q.task == task
            ]
            generated += [bool(answer.score) for answer in answer_examples(model, processor, asked, None)]
        assert generated == matches.get(task, [])


def test_dense_heads_see_every_label(preset, case):
    processor, batch = case
    model = make_model(processor, preset)
    heads = DenseHeads(preset, processor.tokenizer)
    held = to_tensors(batch, "cpu")
    features, visual = get_architecture(preset).see(model, held["pixels"])
    loss, right = dense_loss(heads, model, features, visual, held["labels"], held["visual_labels"])
    loss.backward()
    assert torch.isfinite(loss)
    assert 0 <= right <= 1
    grown = heads.read.weight.grad.abs().sum(dim=1).split(list(HEADS.values()))
    for index, rows in enumerate(grown):
        assert bool(rows.any()) == bool((held["labels"][..., index] != IGNORED).any())


def test_training_attention_refuses_causal_layers_without_a_mask(processor):
    register()
    model = make_model(processor)
    model.set_attn_implementation(TRAINING_ATTENTION)
    with pytest.raises(ValueError, match="4-D additive"):
        model.model.language_model(inputs_embeds=torch.zeros(1, 4, PRESET.text_width))


def test_batch_rows_hold_only_whole_questions(batch):
    for row, tasks in enumerate(batch.tasks):
        assert batch.segments[row].max() == len(tasks)
        for segment in range(1, len(tasks) + 1):
            inside = batch.segments[row] == segment
            assert (batch.targets[row][inside] >= 0).any()
            assert batch.offsets[row][inside].tolist() == list(range(inside.sum()))
    assert max(max(tasks) for tasks in batch.tasks) < len(TASKS)
