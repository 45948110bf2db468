from topv.scenes import SHIPPED
from topv.scenes.canvas import IGNORED, Item
from training.batches import ASSISTANT
from training.build import build_processor
from training.mentions import find_mentions, mention_targets
from training.presets import get_preset

ITEMS = [
    Item("shape", "star", "red", "small", (0, 0, 20, 20), (1,)),
    Item("shape", "star", "blue", "large", (100, 30, 150, 80), (2,)),
    Item("shape", "cross", "red", "small", (140, 140, 160, 160), (3,)),
    Item("word", "CAT", "red", "small", (60, 150, 100, 164), (4, 5, 6)),
]
NOWHERE = (IGNORED, IGNORED)


def nouns(prompt):
    return [(prompt[: last + 1].split()[-1], count, (row, column)) for last, count, row, column in
            find_mentions(prompt, ITEMS, SHIPPED)]  # fmt: skip


def test_nouns_find_what_they_fit():
    assert nouns("what colour is the cross?") == [("cross", 1, (10, 10))]
    assert nouns("how many stars are there?") == [("stars", 2, NOWHERE)]
    assert nouns("how many crosses are there?") == [("crosses", 1, (10, 10))]
    assert nouns("how many red objects are there?") == [("objects", 2, NOWHERE)]
    assert nouns("is there a green star?") == [("star", 0, NOWHERE)]
    assert nouns("what is the large object?") == [("object", 1, (3, 8))]
    assert nouns("where is the red star relative to the word?") == [("star", 1, (0, 0)), ("word", 1, (11, 5))]


def test_letters_name_boxes():
    boxes = [Item("box", "K", "", "small", (0, 0, 28, 28), (1,)), Item("box", "T", "", "small", (84, 0, 98, 28), (2,))]
    assert find_mentions("which box points to T?", boxes, SHIPPED) == [(8, 2, *NOWHERE), (20, 1, 1, 6)]


def test_targets_sit_on_the_last_token_of_the_noun():
    tokenizer = build_processor(get_preset("tiny")).tokenizer.backend_tokenizer
    prompt = "where is the red star relative to the word?"
    encoding = tokenizer.encode(prompt + ASSISTANT)
    targets = mention_targets(encoding, prompt, ITEMS, SHIPPED)
    marked = [encoding.tokens[index] for index in (targets[:, 0] != IGNORED).nonzero()[0]]
    assert marked == ["Ġstar", "Ġword"]


def test_questions_about_arrows_know_where_they_lead():
    tokenizer = build_processor(get_preset("tiny")).tokenizer.backend_tokenizer
    boxes = [Item("box", "K", "", "small", (0, 0, 28, 28), (1,)), Item("box", "T", "", "small", (84, 0, 98, 28), (2,))]
    prompt = "which box points to T?"
    encoding = tokenizer.encode(prompt + ASSISTANT)
    targets = mention_targets(encoding, prompt, boxes, SHIPPED, "K", [("K", "T")])
    assert targets[-1].tolist() == [IGNORED, 1, 1, *[IGNORED] * 4]
    assert targets[encoding.tokens.index("T")].tolist() == [1, 1, 6, *NOWHERE, 1, 1]
    prompt = "which box does K point to?"
    encoding = tokenizer.encode(prompt + ASSISTANT)
    targets = mention_targets(encoding, prompt, boxes, SHIPPED, "T", [("K", "T")])
    assert targets[-1].tolist() == [IGNORED, 1, 6, *[IGNORED] * 4]
    assert targets[encoding.tokens.index("K")].tolist() == [1, 1, 1, 1, 6, *NOWHERE]
    prompt = "how many boxes are there?"
    targets = mention_targets(tokenizer.encode(prompt + ASSISTANT), prompt, boxes, SHIPPED, "2", [("K", "T")])
    assert (targets[:, 3:] == IGNORED).all()
    assert (targets[-1] == IGNORED).all()
