"""Running the methods one after another while the page looks on: streamed, one question at a time, and stoppable."""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import TextStreamer

from ..ask.case import Asked, GridMarks, TimingPlan, answer, case_of, graded, prepare, time_case
from ..ask.comparison import comparison_of
from ..ask.contribution import Contribution, RecordingTopV
from ..ask.method_spec import MethodSpec
from ..ask.samples import Subject
from ..ask.views import GridView, grid_views
from ..errors import TopVError
from ..methods import TopV
from ..models import family_of
from ..report import Comparison, MethodResult
from ..report.text import printable

__all__ = ["Column", "Comparer", "Outcome", "Snapshot"]

# Six rounds are the fewest whose interval covers the median with 95 %.
_PLAN = TimingPlan(repetitions=6, warmup=1, decode_steps=8)
_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Outcome:
    """What one method did.

    Attributes:
        result: its answer and savings.
        marks: the cells of every grid.
        contributions: TopV's contribution matrices by number of the grid; empty for others.
    """

    result: MethodResult
    marks: tuple[GridMarks, ...]
    contributions: Mapping[int, Contribution] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """One method on the page.

    Attributes:
        label: the method.
        text: the answer so far.
        state: "waiting", "answering", "done", "stopped" or "failed".
        reason: why it failed.
        outcome: what it did, once it is done.
    """

    label: str
    text: str = ""
    state: str = "waiting"
    reason: str = ""
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Snapshot:
    """The run as it stands.

    Attributes:
        columns: the methods.
        views: what each grid shows; empty until the prompt is made.
        stage: what is going on, in words.
        done: steps done.
        steps: steps in all.
        comparison: what a report shows, once all is over.
        finished: whether all is over.
    """

    columns: tuple[Column, ...]
    views: tuple[GridView, ...] = ()
    stage: str = "Waiting"
    done: int = 0
    steps: int = 1
    comparison: Comparison | None = None
    finished: bool = False


class Comparer:
    """Runs comparisons on one model, one at a time.

    Args:
        model: the vision-language model, with nothing attached.
        processor: its processor.
        name: what the user calls it.
    """

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self._model, self._processor, self._name = model, processor, name
        self._one_at_a_time = threading.Lock()

    def run(
        self,
        subject: Subject,
        specs: Sequence[MethodSpec],
        *,
        max_new_tokens: int,
        measure: bool,
        stop: threading.Event,
    ) -> Iterator[Snapshot]:
        """Snapshots of a comparison, whenever something new is there to see; the last is finished.

        A method that fails says so in its column, and the others go on. Ending the iteration early stops the run.

        Args:
            subject: the image and the question.
            specs: the methods.
            max_new_tokens: longest answer.
            measure: whether prefill and decoding are timed as well.
            stop: ends the run within a decoder layer once it is set; what was answered stays.
        """
        news: queue.Queue[Snapshot] = queue.Queue()
        board = _Board(tuple(Column(spec.label) for spec in specs), news)

        def work() -> None:
            with self._one_at_a_time:
                self._work(board, subject, specs, max_new_tokens, measure, stop)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            while True:
                snapshot = news.get()
                # Text may come faster than a page can be drawn.
                while not snapshot.finished and not news.empty():
                    snapshot = news.get()
                yield snapshot
                if snapshot.finished:
                    return
                stop.wait(_SECONDS_BETWEEN_LOOKS)
        finally:
            stop.set()
            worker.join()

    def _work(
        self,
        board: _Board,
        subject: Subject,
        specs: Sequence[MethodSpec],
        max_new_tokens: int,
        measure: bool,
        stop: threading.Event,
    ) -> None:
        def check(*_: object) -> None:
            if stop.is_set():
                raise _Stopped

        layers = family_of(self._model).layers
        hooks = [layer.register_forward_pre_hook(check) for layer in layers]
        try:
            self._compare(board, subject, specs, max_new_tokens, measure, check)
        except _Stopped:
            board.stop()
        except Exception as error:
            board.fail_rest(_message(error))
        finally:
            for hook in hooks:
                hook.remove()
            board.finish()

    def _compare(
        self,
        board: _Board,
        subject: Subject,
        specs: Sequence[MethodSpec],
        max_new_tokens: int,
        measure: bool,
        check: Any,
    ) -> None:
        rounds = _PLAN.runs(specs) if measure else 0
        board.show(stage="Reading the picture", steps=len(specs) + rounds)
        asked = prepare(self._model, self._processor, subject)
        board.show(views=grid_views(asked, self._processor))
        answered: list[tuple[MethodSpec, MethodResult]] = []
        for place, spec in enumerate(specs):
            board.show(stage=f"Answering with {spec.label}")
            board.column(place, state="answering")
            streamer = _ColumnStreamer(self._processor.tokenizer, board, place)
            try:
                outcome = self._answer(asked, spec, max_new_tokens, streamer)
            except (TopVError, ValueError) as error:
                board.column(place, state="failed", reason=_message(error))
            else:
                answered.append((spec, outcome.result))
                board.column(place, state="done", text=outcome.result.answer, outcome=outcome)
            board.show(done=place + 1)
        if not answered:
            return
        case = case_of(asked, self._processor, [result for _, result in answered])
        if measure:
            board.show(stage="Measuring times")
            specs = [spec for spec, _ in answered]

            def on_run() -> None:
                check()
                board.step()

            case = time_case(self._model, self._processor, subject, case, specs, _PLAN, on_run)
            board.update_results(case.results)
        command = f"topv ui --model {self._name}"
        board.show(comparison=comparison_of(self._model, self._name, command, [case], _PLAN if measure else None))

    def _answer(self, asked: Asked, spec: MethodSpec, max_new_tokens: int, streamer: Any) -> Outcome:
        contributions: Mapping[int, Contribution] = {}
        if type(spec.method) is TopV:
            recording = RecordingTopV.of(spec.method)
            spec, contributions = replace(spec, method=recording), recording.contributions
        result, marks = answer(
            self._model, self._processor, asked, spec, max_new_tokens=max_new_tokens, streamer=streamer
        )
        return Outcome(graded(result, asked.subject), marks, contributions)


class _Stopped(Exception):
    """The visitor has stopped the run."""


class _Board:
    """The latest snapshot, which the worker changes and the page is told of."""

    def __init__(self, columns: tuple[Column, ...], news: queue.Queue[Snapshot]) -> None:
        self._now = Snapshot(columns)
        self._news = news

    def show(self, **changes: Any) -> None:
        self._now = replace(self._now, **changes)
        self._news.put(self._now)

    def column(self, place: int, **changes: Any) -> None:
        columns = list(self._now.columns)
        columns[place] = replace(columns[place], **changes)
        self.show(columns=tuple(columns))

    def write(self, place: int, text: str) -> None:
        self.column(place, text=self._now.columns[place].text + text)

    def step(self) -> None:
        self.show(done=self._now.done + 1)

    def update_results(self, results: Sequence[MethodResult]) -> None:
        """The same results with times."""
        by_label = {result.label: result for result in results}
        columns = [
            column
            if column.outcome is None
            else replace(column, outcome=replace(column.outcome, result=by_label[column.label]))
            for column in self._now.columns
        ]
        self.show(columns=tuple(columns))

    def stop(self) -> None:
        self._end_open("stopped", "")
        self.show(stage="Stopped")

    def fail_rest(self, reason: str) -> None:
        self._end_open("failed", reason)
        self.show(stage=f"Failed: {reason}")

    def _end_open(self, state: str, reason: str) -> None:
        for place, column in enumerate(self._now.columns):
            if column.state in ("waiting", "answering"):
                self.column(place, state=state, reason=reason)

    def finish(self) -> None:
        stage = self._now.stage
        stage = stage if stage.startswith(("Stopped", "Failed")) else "Done"
        self.show(stage=stage, done=self._now.steps, finished=True)


class _ColumnStreamer(TextStreamer):
    """Writes an answer into its column as it is generated."""

    def __init__(self, tokenizer: Any, board: _Board, place: int) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._board, self._place = board, place

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Show the next piece."""
        if text:
            self._board.write(self._place, printable(text))


def _message(error: Exception) -> str:
    """What the visitor is told: topv's own words, or that something else went wrong."""
    if isinstance(error, (TopVError, ValueError)):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    return f"an unexpected {type(error).__name__}; the terminal where topv ui runs says more"
