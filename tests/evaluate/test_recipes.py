"""The recipes of the paper's experiments: what they hold, and the commands that they become."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import topv
from topv.ask.method_spec import parse_methods
from topv.cli.main import main
from topv.errors import InputError
from topv.evaluate.lmms import BASES, read_request
from topv.evaluate.recipe import KINDS, load_recipe, method_text, read_figures, recipe_names
from topv.evaluate.reproduction import Options, Step, bundled_steps, checkpoint_steps, missing, read_scores, run_step
from topv.methods import METHODS
from topv.methods.settings import build_method, read_settings
from topv.mini import MINI_PATH
from topv.scenes import TASKS, draw_scene


def figures(name: str) -> dict[tuple[str, str], float | str]:
    return {(figure.method, figure.quantity): figure.value for figure in load_recipe(name).figures}


def test_published_figures() -> None:
    """As printed in the supplement, sections A and C, and Tabs. 8 to 10."""
    flops = "visual FLOPs removed, %"
    assert figures("internvl2") == {("TopV", flops): 48, ("FastV", flops): 47}
    assert figures("llava") == {("TopV", flops): 51}
    read = figures("dialogue-ocr")
    assert read["TopV", "answer"] == (
        'The image features a handwritten signature, which appears to be a cursive "Jump" written in black ink.'
    )
    caption = figures("dialogue-captioning")
    assert str(caption["TopV", "answer"]).startswith(
        "A man is sitting on a couch, reading a book, while a small rabbit"
    )
    assert caption["Baseline", "answer"] == caption["FastV", "answer"]
    written = figures("dialogue-writing")
    assert str(written["FastV", "answer"]).endswith("the cat appears to be comfortably perched on it.")
    assert [load_recipe(f"dialogue-{kind}").source for kind in ("ocr", "captioning", "writing")] == [
        "Tab. 8",
        "Tab. 9",
        "Tab. 10",
    ]


def test_the_nine_benchmarks() -> None:
    image = [benchmark.task for benchmark in load_recipe("internvl2").benchmarks]
    video = [benchmark.task for benchmark in load_recipe("video").benchmarks]
    assert image == [b.task for b in load_recipe("llava").benchmarks]
    assert [*image, *video] == [
        "ai2d",
        "scienceqa_img",
        "mmmu_val",
        "mmbench_en_dev",
        "nocaps_val",
        "ok_vqa_val2014",
        "ocrbench",
        "tgif",
        "videomme",
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_every_plan_builds(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.kind in KINDS
    assert recipe.notes
    assert len({arm.label for arm in recipe.arms}) == len(recipe.arms)
    options = Options(work=tmp_path / "work", checkpoints=tmp_path)
    (bundled,) = bundled_steps(recipe, options)
    assert bundled.program == "topv"
    assert set(recipe.bundled.tasks or TASKS) <= set(TASKS)
    assert ("--frames" in bundled.arguments) == (name == "video")
    steps = checkpoint_steps(recipe, options)
    for step in steps:
        assert str(tmp_path / step.model) in str(step)
    labels = {arm.label for arm in recipe.arms}
    assert {figure.method for figure in recipe.figures} <= labels
    if recipe.kind != "benchmarks":
        assert len(steps) == 1
        return
    assert [step.arm for step in steps] == [arm.label for arm in recipe.arms]
    (checkpoint,) = recipe.models
    assert checkpoint.base in BASES
    for step, arm in zip(steps, recipe.arms, strict=True):
        # Read as lmms-eval would.
        given = dict(pair.split("=", 1) for pair in step.arguments[3].split(","))
        request = read_request(given, frozenset({"pretrained", "device_map"}))
        if arm.method is None:
            assert request.method is None
        else:
            budget = {} if isinstance(arm.method, topv.VTW) else {"visual_flops": checkpoint.visual_flops}
            assert request.method == (arm.method.with_budget(**budget) if budget else arm.method)


@pytest.mark.parametrize("name", recipe_names())
def test_bundled_methods_are_the_recipes(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    if recipe.kind == "profile":
        return
    (step,) = bundled_steps(recipe, Options(work=tmp_path))
    specs = parse_methods([step.arguments[step.arguments.index("--methods") + 1]])
    wanted = {repr(arm.method) for arm in recipe.arms if arm.method is not None}
    assert {repr(spec.method) for spec in specs} == wanted
    assert len(specs) == len(wanted), "a method that two arms share runs once"


def test_heat_maps_share_the_papers_setting() -> None:
    recipe = load_recipe("hyperparameters")
    cells = [arm.cell for arm in recipe.arms if arm.cell is not None]
    assert len(cells) == 32
    for cell in ({"alpha": 1.0, "beta": 1.0}, {"gamma": 0.01, "sigma": 10.0}):
        (arm,) = (arm for arm in recipe.arms if arm.cell == cell)
        assert arm.method == topv.TopV.paper()


@pytest.mark.parametrize("name", METHODS)
def test_text_of_a_method_is_read_back(name: str) -> None:
    changed = {"topv": {"beta": 0.5, "layer": 3, "target": "mlp"}, "vtw": {"layer": 4}, "random": {"seed": 5}}
    method = METHODS[name](**changed.get(name, {}))  # type: ignore[arg-type]
    named, texts = method_text(method)
    assert named == name
    assert set(texts) == set(changed.get(name, {}))
    assert build_method(named, read_settings(named, texts)) == method


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'recovry'. Did you mean 'recovery'"):
        load_recipe("recovry")


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    options = Options(work=tmp_path, checkpoints=tmp_path)
    install, checkpoint = missing(load_recipe("internvl2"), options)
    assert "pip install 'topv[lmms]'" in install
    assert f"topv convert InternVL2-2B {tmp_path / 'InternVL2-2B'}" in checkpoint
    (tmp_path / "InternVL2-2B").mkdir()
    (tmp_path / "InternVL2-2B" / "config.json").write_text("{}")
    assert missing(load_recipe("internvl2"), options) == [install]
    assert [line.split()[0] for line in missing(load_recipe("dialogue-ocr"), options)] == ["LLaVA-v1.5-7B", "The"]


def test_further_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    entry = {"model": "LLaVA-v1.5-7B", "method": "TopV", "quantity": "AI2D", "value": 12.5, "where": "by hand"}
    path.write_text(json.dumps([entry]))
    (figure,) = read_figures(path)
    assert (figure.quantity, figure.value) == ("AI2D", 12.5)
    for broken in ("{", "[1]", json.dumps([{**entry, "more": 1}])):
        path.write_text(broken)
        with pytest.raises(InputError, match="Expected a JSON list of objects with model, method"):
            read_figures(path)


def test_scores_are_those_of_the_benchmarks_metric(tmp_path: Path) -> None:
    step = Step("lmms-eval", (), tmp_path, "LLaVA-v1.5-7B", "TopV")
    metrics = {"alias": "x", "submission,none": "N/A", "nocaps_Bleu_4,none": 0.2, "nocaps_CIDEr,none": 0.9}
    results = {"nocaps_val": metrics, "own": {"score,none": 0.5, "score_stderr,none": 0.1}}
    (tmp_path / "a_results.json").write_text(json.dumps({"results": results}))
    assert read_scores(step, load_recipe("llava")) == {"NoCaps": 0.9, "own": 0.5}


def test_a_command_that_fails_is_told_with_its_log(tmp_path: Path) -> None:
    step = Step("topv", ("eval", "--methods", "topw"), tmp_path / "eval.json", "mini")
    with pytest.raises(InputError, match=r"this command failed: topv eval[\s\S]*Did you mean 'topv'"):
        run_step(step)
    assert not (tmp_path / "command.json").exists()


def test_an_old_score_does_not_pass_for_a_failed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval ends with status 0 after an error too, and keeps what earlier runs wrote. Here a package of its name
    stands in that writes nothing when it is given a limit of 100."""
    site = tmp_path / "site"
    (site / "lmms_eval").mkdir(parents=True)
    (site / "lmms_eval" / "__init__.py").touch()
    (site / "lmms_eval" / "__main__.py").write_text(
        "import pathlib, sys\n"
        "if sys.argv[-1] == '100': sys.exit(print('CUDA out of memory'))\n"
        "(pathlib.Path(sys.argv[1]) / 'x_results.json').write_text('{}')\n"
    )
    (site / "lmms_eval-0.7.dist-info").mkdir()
    (site / "lmms_eval-0.7.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: lmms_eval\nVersion: 0.7\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    out = tmp_path / "out"

    def step(limit: int) -> Step:
        return Step("lmms-eval", (str(out), "--limit", str(limit)), out, "LLaVA-v1.5-7B", "TopV")

    date = run_step(step(10))
    made = (out / "x_results.json").stat().st_mtime_ns
    assert run_step(step(10)) == date
    assert (out / "x_results.json").stat().st_mtime_ns == made, "what is there is not run again"
    with pytest.raises(InputError, match=r"CUDA out of memory[\s\S]*--on bundled"):
        run_step(step(100))
    assert not (out / "x_results.json").exists()
    record = out / "command.json"
    run_step(step(10))
    known = json.loads(record.read_text())
    record.write_text(json.dumps({**known, "versions": {"topv": "0"}, "date": "2020-01-01"}))
    assert run_step(step(10)) != "2020-01-01", "other versions are another run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dialogue-ocr", "--image", "nowhere.png"], "'nowhere.png' is not a file"),
        (["recovery", "--include-path", "tasks"], "--include-path: not read by recipe 'recovery' on a bundled model"),
        (["memory", "--tasks", "ocr"], "--tasks: not read by recipe 'memory'"),
        (["recovery", "--plot", "/proc/version"], "cannot be a folder to write in"),
    ],
)
def test_what_would_not_be_followed_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *arguments, "--work", str(tmp_path), "--checkpoints", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_bundled_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "reproduce",
        "recovery",
        "--on",
        "bundled",
        "--model",
        "mini",
        "--questions",
        "1",
        "--tasks",
        "existence",
    ]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "page.md")]
    command += ["--json", str(tmp_path / "page.json"), "--published", str(tmp_path / "figures.json")]
    entry = {"model": "InternVL2-2B", "method": "recovery=0.3", "quantity": "AI2D", "value": 71.5, "where": "by hand"}
    (tmp_path / "figures.json").write_text(json.dumps([entry]))
    assert main(command) == 0
    page = (tmp_path / "page.md").read_text()
    assert page.strip() in capsys.readouterr().out
    assert "**not** the paper's models and data" in page
    assert "| InternVL2-2B | recovery=0.3 | AI2D | 71.5 | by hand |" in page
    assert page.count("\n| recovery=") == 6
    record = json.loads((tmp_path / "page.json").read_text())
    assert record["ran_on"] == "bundled"
    assert len(record["measured"]) == 7
    (log,) = (tmp_path / "work").rglob("log.txt")
    before = log.stat().st_mtime_ns
    assert main(command) == 0
    assert log.stat().st_mtime_ns == before, "what was run to its end is not run again"


def test_other_questions_are_another_evaluation(tmp_path: Path) -> None:
    recipe = load_recipe("recovery")
    works = {bundled_steps(recipe, Options(work=tmp_path, questions=count))[0].output for count in (1, 2, 2)}
    assert len(works) == 2


@pytest.mark.slow
def test_a_dialogue_on_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "LLaVA-v1.5-7B").symlink_to(MINI_PATH)
    draw_scene(2, "test").image.save(tmp_path / "picture.png")
    command = ["reproduce", "dialogue-ocr", "--checkpoints", str(tmp_path), "--work", str(tmp_path / "work")]
    command += ["--image", str(tmp_path / "picture.png"), "--json", str(tmp_path / "page.json")]
    assert main(command) == 0
    record = json.loads((tmp_path / "page.json").read_text())
    assert record["ran_on"] == "checkpoints"
    answers = record["measured"]["LLaVA-v1.5-7B"]
    assert list(answers) == ["TopV", "Baseline", "FastV"]
    page = capsys.readouterr().out
    for label, answer in answers.items():
        assert f"- {label}: {answer}" in page
    assert '"Jump" written in black ink' in page


def test_listing_and_dry_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["reproduce", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in recipe_names())
    options = ["--dry-run", "--on", "checkpoints", "--checkpoints", str(tmp_path / "c"), "--work", str(tmp_path / "w")]
    assert main(["reproduce", "llava", *options, "--questions", "7"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(lines) == 5
    assert all(line.startswith("lmms-eval --model topv --model_args pretrained=") for line in lines)
    assert all("--limit 7" in line for line in lines)
    assert not (tmp_path / "w").exists()
    assert main(["reproduce"]) == 2
    assert "which recipe?" in capsys.readouterr().err
    assert main(["reproduce", "llava", "--on", "checkpoints", "--checkpoints", str(tmp_path)]) == 2
    assert "cannot run on the paper's checkpoints" in capsys.readouterr().err
