"""A whole evaluation: every configuration answers every question, in one process or shared by several."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .configurations import Configuration
from .examples import Example
from .image_features import SharedImageFeatures
from .runner import Answer, Asker, plan_batches
from .store import AnswerStore

__all__ = ["Shard", "evaluate"]


@dataclass(frozen=True)
class Shard:
    """This process among those that share the work.

    Attributes:
        process: its number.
        processes: how many there are.
    """

    process: int = 0
    processes: int = 1

    @classmethod
    def of_environment(cls) -> Shard:
        """What `accelerate launch` or `torchrun` started this process as; the only one, where neither did.

        Raises:
            InputError: when there are several processes and accelerate is not installed.
        """
        shard = cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
        if shard.processes > 1:
            # Now rather than at the end, since processes that meet must all be there within a time.
            shard._meeting()
        return shard

    def _meeting(self) -> Any:
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise InputError(
                f"{self.processes} processes share this work, which needs accelerate: pip install accelerate"
            ) from error
        return PartialState(cpu=not _on_gpu(), timeout=datetime.timedelta(days=30))

    def wait_for_all(self) -> None:
        """Return once every process has come here."""
        if self.processes > 1:
            self._meeting().wait_for_everyone()


def evaluate(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    configurations: Sequence[Configuration],
    *,
    batch_size: int = 32,
    store: AnswerStore | None = None,
    shard: Shard = Shard(),
    advance: Callable[[Configuration, int], None] = lambda configuration, questions: None,
) -> dict[str, list[Answer]] | None:
    """Answer every question under every configuration.

    Which questions share a batch depends on them and on `batch_size` alone, so the result does not depend on how many
    processes share the work, or on how often it was interrupted.

    Args:
        model: the vision-language model, with nothing attached.
        processor: its processor, with a chat template.
        examples: the questions.
        configurations: how to prune; one without a method is the unpruned model.
        batch_size: questions per batch.
        store: where answers are kept; needed where several processes share the work.
        shard: this process.
        advance: called with a configuration and the number of questions just answered, found answered, or left to
            other processes.

    Returns:
        For each configuration's key the answers in the order of `examples`; None in all processes but the first.
    """
    batches = plan_batches(examples, batch_size)
    done = {} if store is None else store.read()
    features = SharedImageFeatures(model)
    # All methods on one batch before the next one, so that they can share what the tower made of its images.
    for number, batch in enumerate(batches):
        mine = number % shard.processes == shard.process
        asked = [examples[place] for place in batch]
        for configuration in configurations:
            if mine and (configuration.key, number) not in done:
                method = configuration.method
                with features.used(method), Asker(model, processor, method) as asker:
                    answers = [answer.to_dict() for answer in asker.ask(asked)]
                if store is None:
                    done[configuration.key, number] = answers
                else:
                    store.add(configuration.key, number, answers)
            advance(configuration, len(batch))
    shard.wait_for_all()
    if shard.process:
        return None
    done = done if store is None else store.read()
    result: dict[str, list[Answer]] = {}
    for configuration in configurations:
        placed: dict[int, Answer] = {}
        for number, batch in enumerate(batches):
            found = [Answer(**answer) for answer in done[configuration.key, number]]
            placed.update(zip(batch, found, strict=True))
        result[configuration.key] = [placed[place] for place in range(len(examples))]
    return result


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
