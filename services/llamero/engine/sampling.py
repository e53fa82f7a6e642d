"""The choice of the next token from a row of logits. Each request has a generator of its own, so batch-mates change nothing."""

import torch

from llamero.engine.requests import Sampling

TOP_P_CANDIDATES = (
    1024  # a nucleus almost always lies within these; the whole vocabulary is sorted only where it does not
)


class TokenChooser:
    """Chooses tokens for one request. `seed` is the one used (drawn where the request gave none), None when greedy."""

    def __init__(self, sampling: Sampling, prompt_ids: tuple[int, ...], drawn_seed: int) -> None:
        self.sampling = sampling
        self.seed: int | None = None
        self._generator: torch.Generator | None = None
        if sampling.do_sample:
            self.seed = sampling.seed if sampling.seed is not None else drawn_seed
            self._generator = torch.Generator().manual_seed(self.seed)
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1.0 else set()
        self._counts: dict[int, int] = {}

    @property
    def is_plain(self) -> bool:
        """Whether the choice is the largest logit."""
        s = self.sampling
        return not s.do_sample and s.repetition_penalty == 1.0 and not s.frequency_penalty and not s.presence_penalty

    def choose(self, logits: torch.Tensor) -> int:
        """The next token id, from fp32 logits of shape [vocabulary]."""
        scores = self._penalised(logits)
        return int(scores.argmax()) if self._generator is None else self._sample(scores, self._generator)

    def accept(self, token_id: int) -> None:
        """Note a token of the answer, for the penalties."""
        if self.sampling.repetition_penalty != 1.0:
            self._seen.add(token_id)
        if self.sampling.frequency_penalty or self.sampling.presence_penalty:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        s = self.sampling
        if s.repetition_penalty == 1.0 and not self._counts:
            return logits
        logits = logits.clone()
        if s.repetition_penalty != 1.0 and self._seen:
            ids = torch.tensor(sorted(self._seen))
            seen = logits[ids]
            logits[ids] = torch.where(seen < 0, seen * s.repetition_penalty, seen / s.repetition_penalty)
        if self._counts:
            ids = torch.tensor(list(self._counts))
            counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype)
            logits[ids] -= counts * s.frequency_penalty + s.presence_penalty
        return logits

    def _sample(self, scores: torch.Tensor, generator: torch.Generator) -> int:
        s = self.sampling
        scores = scores / s.temperature
        ids: torch.Tensor | None = None
        if s.top_k is not None and s.top_k < scores.numel():
            scores, ids = scores.topk(s.top_k)
        probabilities = scores.softmax(-1)
        if s.top_p is not None and s.top_p < 1:
            probabilities, ids = _nucleus(probabilities, s.top_p, ids)
        at = _draw(probabilities, float(torch.rand((), generator=generator, dtype=torch.float64)))
        return at if ids is None else int(ids[at])


def _nucleus(probabilities: torch.Tensor, top_p: float, ids: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest set of most likely tokens whose probabilities sum to at least top_p, with their ids."""
    values, order = probabilities.topk(min(TOP_P_CANDIDATES, probabilities.numel()))
    if float(values.sum()) < top_p and values.numel() < probabilities.numel():
        values, order = probabilities.sort(descending=True)
    before = values.cumsum(-1) - values
    size = max(1, int((before < top_p).sum()))
    return values[:size], order[:size] if ids is None else ids[order[:size]]


def _draw(probabilities: torch.Tensor, uniform: float) -> int:
    """The index at which the running sum passes `uniform` (0 to 1) of the whole sum."""
    sums = probabilities.double().cumsum(-1)
    at = int(torch.searchsorted(sums, uniform * float(sums[-1]), right=True))
    return min(at, probabilities.numel() - 1)
