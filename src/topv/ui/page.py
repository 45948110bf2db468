"""The Gradio page: components and what they set off. What needs no Gradio is in the files beside it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from ..ask.samples import Subject, subjects_from_scenes
from ..errors import TopVError
from ..methods import METHODS
from ..methods.settings import UNPRUNED
from ..report.html import write_html
from .comparing import Outcome, Snapshot
from .explorer import contribution_panel, token_grid
from .limits import Limits
from .markup import answer_cards, outcome_cards, status_line
from .model_slot import ModelSlot
from .settings import MAX_RECOVERY, PICTURES, Settings
from .upload import upload_box

__all__ = ["build_page"]

_TITLE = "topv: which visual tokens does the answer need?"
_INTRO = """\
# Which visual tokens does the answer need?
Ask about a picture under several pruning methods. See the answers side by side, which tokens each method kept, and, for
**topv**, what each token contributes to the others."""
_LOOK = """\
## What does a token contribute?
TopV keeps the tokens that leave none far from one that can serve it. Choose a token: its row of the contribution matrix
says which tokens it serves, its column which serve it."""
_LINK = """(...values) => {
  const names = ["picture", "prompt", "methods", "keep", "recovery", "tokens", "measure"];
  const plain = value => value === true ? "1" : value === false ? "0" : value === null ? "0" : String(value);
  const query = new URLSearchParams(names.map((name, place) => [name, plain(values[place])]));
  const link = window.location.origin + window.location.pathname + "?" + query;
  const said = "Link that reopens these settings";
  return `<p><a href="${link.replaceAll("&", "&amp;")}">${said}</a> <span>(without an uploaded picture)</span></p>`;
}"""
# What changes in the element is read out.
_LIVE = 'element.setAttribute("role", "status");'
_KEPT_SECONDS = 3600


def build_page(slot: ModelSlot, limits: Limits, *, folder: Path, measure: bool) -> gr.Blocks:
    """The page, not yet served.

    Args:
        slot: the model, which may still be loading.
        limits: what visitors may ask.
        folder: where the built-in pictures are put, to stay as long as the page is served.
        measure: whether times are measured unless a visitor says otherwise.
    """
    return _Page(slot, limits, folder, measure).blocks


@dataclass(frozen=True)
class _Seen:
    """A finished run, kept for the visitor whose it is."""

    snapshot: Snapshot

    def outcome(self, label: str | None) -> Outcome | None:
        found = [column.outcome for column in self.snapshot.columns if column.label == label]
        return found[0] if found else None

    @property
    def labels(self) -> list[str]:
        return [column.label for column in self.snapshot.columns if column.outcome is not None]


class _News:
    """Lets HTML through when it has changed, so that nothing is drawn or read out twice."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def __call__(self, place: str, html: str) -> Any:
        old, self._last[place] = self._last.get(place), html
        return gr.skip() if old == html else html


class _Page:
    def __init__(self, slot: ModelSlot, limits: Limits, folder: Path, measure: bool) -> None:
        self._slot, self._limits, self._measure = slot, limits, measure
        self._pictures = subjects_from_scenes(PICTURES, [])
        # As files: an image that Gradio saves itself is written anew for each visitor, while another may be reading it.
        self._files = [str(folder / f"picture-{number}.png") for number in range(1, len(self._pictures) + 1)]
        for subject, file in zip(self._pictures, self._files, strict=True):
            subject.image.save(file)
        self._running: dict[str, threading.Event] = {}
        with gr.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=(600, _KEPT_SECONDS)) as self.blocks:
            self._lay_out()
            self._connect()
        self.blocks.queue(max_size=limits.queue, default_concurrency_limit=1, api_open=False)

    # ---- components -----------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        limits, choices = self._limits, [UNPRUNED, *METHODS]
        samples = [(f"{number}: {s.prompt}", number) for number, s in enumerate(self._pictures, start=1)]
        gr.Markdown(_INTRO, elem_id="topv-intro")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self._image = upload_box(
                    label=f"Picture (up to {limits.upload_bytes / 2**20:g} MiB)",
                    sources=["upload", "clipboard"],
                    type="filepath",
                    format="png",
                    image_mode=None,
                    buttons=[],
                    height=300,
                    elem_id="topv-image",
                    alt_text="The picture that is asked about",
                )
                self._picture = gr.Dropdown(
                    [("none: my own picture", 0), *samples], value=1, label="Built-in picture", elem_id="topv-picture"
                )
                self._link = gr.HTML(elem_id="topv-link")
            with gr.Column(scale=3, min_width=300):
                self._prompt = gr.Textbox(
                    label="Question", lines=2, max_length=limits.prompt_characters, elem_id="topv-prompt"
                )
                self._methods = gr.CheckboxGroup(
                    choices,
                    label=f"Methods (up to {limits.methods}; none is the unpruned model)",
                    elem_id="topv-methods",
                )
                self._keep = gr.Slider(
                    0.05, 1.0, step=0.05, label="Share of visual tokens to keep", elem_id="topv-keep"
                )
                with gr.Accordion("More settings", open=False):
                    self._recovery = gr.Slider(
                        0.0,
                        MAX_RECOVERY,
                        step=0.05,
                        label="Share of them that is recovered: an even sample of the tokens ranked low (topv)",
                        elem_id="topv-recovery",
                    )
                    self._tokens = gr.Slider(
                        1, limits.new_tokens, step=1, label="Longest answer, in tokens", elem_id="topv-tokens"
                    )
                    self._timed = gr.Checkbox(
                        label="Measure prefill and decoding time (takes longer)", elem_id="topv-measure"
                    )
                with gr.Row():
                    self._ask = gr.Button("Ask", variant="primary", elem_id="topv-ask")
                    self._cancel = gr.Button("Cancel", interactive=False, elem_id="topv-cancel")
        self._status = gr.HTML(status_line(self._slot.status()), js_on_load=_LIVE, elem_id="topv-status")
        self._answers = gr.HTML(elem_id="topv-answers")
        self._outcomes = gr.HTML(elem_id="topv-outcomes")
        self._report = gr.DownloadButton("Download the report", interactive=False, elem_id="topv-report", size="sm")
        with gr.Column(visible=False, elem_id="topv-look") as self._look:
            gr.Markdown(_LOOK)
            with gr.Row():
                self._label = gr.Dropdown(label="Method", elem_id="topv-label")
                self._grid = gr.Dropdown(label="Part of the picture", visible=False, elem_id="topv-part")
            with gr.Row(equal_height=False, elem_id="topv-look-row"):
                self._tokens_map = gr.HTML(js_on_load=_asset("explorer.js"), elem_id="topv-token-map", min_width=280)
                self._panel = gr.HTML(js_on_load=_LIVE, elem_id="topv-panel", min_width=280)
        self._seen = gr.State(None, time_to_live=_KEPT_SECONDS)

    # ---- what sets off what -----------------------------------------------------------------------------------

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        instant: dict[str, Any] = {**quiet, "queue": False}
        settings = [self._picture, self._prompt, self._methods, self._keep]
        settings += [self._recovery, self._tokens, self._timed]
        self.blocks.load(self._open, None, [*settings, self._image], **instant).then(
            None, settings, self._link, js=_LINK, **quiet
        )
        self.blocks.load(self._watch_model, None, self._status, concurrency_limit=None, **quiet)
        self.blocks.unload(self._leave)
        for setting in settings:
            setting.change(None, settings, self._link, js=_LINK, **quiet)
        self._picture.input(self._pick, self._picture, [self._image, self._prompt], **instant)
        self._image.upload(self._check_upload, self._image, [self._image, self._picture, self._status], **instant)
        self._image.clear(lambda: 0, None, self._picture, **instant)

        look = [self._seen, self._label, self._grid]
        asked = {
            "fn": self._answer,
            "inputs": [self._image, *settings],
            "outputs": [
                *(self._status, self._answers, self._outcomes, self._report, self._seen),
                *(self._ask, self._cancel, self._look, self._label, self._grid),
            ],
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "trigger_mode": "once",
            # The place in the queue is shown beside the status.
            **quiet,
            "show_progress": "minimal",
            "show_progress_on": self._status,
        }
        for trigger in (self._ask.click, self._prompt.submit):
            trigger(**asked).then(self._show_tokens, look, [self._tokens_map, self._panel], **instant)
        self._cancel.click(self._stop, None, None, **instant)
        for chosen in (self._label, self._grid):
            chosen.input(self._show_tokens, look, [self._tokens_map, self._panel], **instant)
        self._tokens_map.pick(self._show_token, look, self._panel, **instant)

    # ---- handlers -------------------------------------------------------------------------------------------

    def _open(self, request: gr.Request) -> list[Any]:
        """The settings that the link asks for."""
        wanted = Settings.from_query({"measure": "1" if self._measure else "0", **_query(request)}, self._limits)
        subject = self._sample(wanted.picture)
        prompt = wanted.prompt or (subject.prompt if subject else "")
        image = None if subject is None else self._files[wanted.picture - 1]
        values = [wanted.picture, prompt, list(wanted.methods), wanted.keep]
        return [*values, wanted.recovery, wanted.tokens, wanted.measure, image]

    def _watch_model(self) -> Iterator[str]:
        """How far loading is, until it is over."""
        while not self._slot.wait(0.5):
            yield status_line(self._slot.status())
        yield status_line(self._slot.status())

    def _sample(self, number: object) -> Subject | None:
        if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= len(self._pictures):
            return self._pictures[number - 1]
        return None

    def _pick(self, number: int) -> tuple[Any, Any]:
        subject = self._sample(number)
        return (None, gr.skip()) if subject is None else (self._files[number - 1], subject.prompt)

    def _check_upload(self, path: str | None) -> tuple[Any, Any, str]:
        """Turn a bad upload away at once."""
        try:
            width, height = self._limits.read_upload(path).size
        except TopVError as error:
            return None, 0, status_line(f"This picture cannot be used: {error}", problem=True)
        return gr.skip(), 0, status_line(f"Picture of {width} x {height} pixels uploaded")

    def _answer(
        self,
        path: str | None,
        picture: object,
        prompt: object,
        methods: object,
        keep: object,
        recovery: object,
        tokens: object,
        measure: object,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        """Ask, showing what there is as it comes."""
        stop = self._running[str(request.session_hash)] = threading.Event()
        begun = [gr.Button(interactive=False), gr.Button(interactive=True), gr.Column(visible=False)]
        over = [gr.Button(interactive=True), gr.Button(interactive=False)]
        rest = [gr.skip(), gr.skip()]
        try:
            subject = self._subject(path, picture, self._limits.read_prompt(prompt))
            specs = self._limits.read_methods(methods, keep, recovery)
            count = self._limits.read_new_tokens(tokens)
            while not self._slot.wait(0.5):
                yield [status_line(self._slot.status()), gr.skip(), gr.skip(), gr.skip(), None, *begun, *rest]
                if stop.is_set():
                    yield [status_line("Stopped"), "", "", gr.skip(), None, *over, gr.skip(), *rest]
                    return
            run = self._slot.comparer.run(subject, specs, max_new_tokens=count, measure=measure is True, stop=stop)
            drawn: tuple[Outcome | None, ...] = ()
            news = _News()
            for snapshot in run:
                status = status_line(snapshot.stage, snapshot.done, 0 if snapshot.finished else snapshot.steps)
                outcomes = tuple(column.outcome for column in snapshot.columns)
                pictures = gr.skip() if outcomes == drawn else outcome_cards(snapshot)
                drawn = outcomes
                shown = [news("status", status), news("answers", answer_cards(snapshot)), pictures]
                if not snapshot.finished:
                    yield [*shown, gr.DownloadButton(interactive=False), None, *begun, *rest]
                    continue
                seen = _Seen(snapshot)
                with tempfile.TemporaryDirectory(prefix="topv-report-") as folder:
                    # Gradio makes a copy of its own for this visitor.
                    path_or_none = _write_report(snapshot, folder)
                    report = gr.DownloadButton(value=path_or_none, interactive=path_or_none is not None)
                    yield [*shown, report, seen, *over, gr.Column(visible=bool(seen.labels)), *self._choices(seen)]
        except TopVError as error:
            problem = status_line(f"{error}", problem=True)
            yield [problem, gr.skip(), gr.skip(), gr.skip(), gr.skip(), *over, gr.skip(), *rest]
        finally:
            stop.set()
            if self._running.get(str(request.session_hash)) is stop:
                del self._running[str(request.session_hash)]

    def _subject(self, path: str | None, picture: object, prompt: str) -> Subject:
        sample = self._sample(picture)
        if sample is None:
            return Subject(self._limits.read_upload(path), "uploaded picture", prompt)
        known = prompt.strip() == sample.prompt and self._slot.name in ("mini", "tiled")
        return Subject(sample.image, sample.image_name, prompt, sample.expected if known else None, sample.foreground)

    def _choices(self, seen: _Seen) -> tuple[Any, Any]:
        """The methods and parts of the picture whose tokens can be looked at."""
        labels = seen.labels
        with_matrix = [label for label in labels if (outcome := seen.outcome(label)) and outcome.contributions]
        parts = [(view.name, number) for number, view in enumerate(seen.snapshot.views)]
        return (
            gr.Dropdown(choices=labels, value=next(iter(with_matrix or labels), None)),
            gr.Dropdown(choices=parts, value=0 if parts else None, visible=len(parts) > 1),
        )

    def _show_tokens(self, seen: _Seen | None, label: str | None, part: int | None) -> tuple[str, str]:
        outcome = None if seen is None else seen.outcome(label)
        number = self._part(seen, part)
        if seen is None or outcome is None or number is None:
            return "", ""
        view = seen.snapshot.views[number]
        return token_grid(view, outcome, number), contribution_panel(view, outcome, number, None)

    def _show_token(self, seen: _Seen | None, label: str | None, part: int | None, event: gr.EventData) -> str:
        outcome = None if seen is None else seen.outcome(label)
        number, cell = self._part(seen, part), (event._data or {}).get("cell")
        if seen is None or outcome is None or number is None or not isinstance(cell, int):
            return ""
        return contribution_panel(seen.snapshot.views[number], outcome, number, cell)

    def _part(self, seen: _Seen | None, part: object) -> int | None:
        if seen is None or not isinstance(part, int) or not 0 <= part < len(seen.snapshot.views):
            return None
        return part

    def _stop(self, request: gr.Request) -> None:
        """Stop this visitor's run, and nobody else's."""
        running = self._running.get(str(request.session_hash))
        if running is not None:
            running.set()

    _leave = _stop


def _write_report(snapshot: Snapshot, folder: str) -> str | None:
    if snapshot.comparison is None:
        return None
    path = Path(folder) / "topv-report.html"
    write_html(snapshot.comparison, path)
    return str(path)


def _query(request: gr.Request) -> Mapping[str, str]:
    return {str(name): str(value) for name, value in dict(request.query_params).items()}


def _asset(name: str) -> str:
    return resources.files("topv.ui").joinpath(name).read_text(encoding="utf-8")
