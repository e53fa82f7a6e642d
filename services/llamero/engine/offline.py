"""Answers without a server: requests go through the very batch that the engine's thread runs, on the caller's own thread.

What is made here is what the engine answers: same forward pass, same choice of tokens, same text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llamero.engine.batch import LaneBatch, Row
from llamero.engine.requests import Event, Finished, GenerationRequest, TokenEvent
from llamero.engine.runner import Lane, ModelRunner
from llamero.engine.sampling import TokenChooser
from llamero.engine.text import TextStream

ROWS = 16
PIECE_TOKENS = 512


@dataclass(frozen=True)
class OfflineAnswer:
    """A whole answer: its tokens in order, and its end."""

    tokens: tuple[TokenEvent, ...]
    end: Finished


def answer_all(runner: ModelRunner, requests: Sequence[GenerationRequest], rows: int = ROWS) -> list[OfflineAnswer]:
    """An answer to each request, in the requests' order, at most `rows` at a time.

    Sampling needs a seed in the request: nothing is drawn here. The runner must be no other thread's.
    """
    events: list[list[Event]] = [[] for _ in requests]
    lanes: dict[Lane, list[int]] = {}
    for index, request in enumerate(requests):
        lanes.setdefault(runner.lane_of(request.adapter), []).append(index)
    for lane, members in lanes.items():
        for start in range(0, len(members), rows):
            batch = LaneBatch(runner, lane)
            for index in members[start : start + rows]:
                batch.begin([_row_of(requests[index], events[index])])
                while batch.reading:
                    batch.read_prompts(PIECE_TOKENS)
            while batch.rows:
                batch.step()
    return [_gather(found) for found in events]


def _row_of(request: GenerationRequest, events: list[Event]) -> Row:
    return Row(
        request=request,
        chooser=TokenChooser(request.sampling, request.prompt_ids, drawn_seed=0),
        text=TextStream(request.tokenizer, request.stop_strings),
        emit=events.append,
        cancelled=lambda: False,
    )


def _gather(events: list[Event]) -> OfflineAnswer:
    *tokens, end = events
    assert isinstance(end, Finished)
    return OfflineAnswer(tuple(t for t in tokens if isinstance(t, TokenEvent)), end)
