"""The decoding loop of the engine ``transformers``: plain, exact, one request at a time.

Log-probabilities are those of the model itself, before bias, penalties and temperature, as llama.cpp tells them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The defaults are OpenAI's."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    seed: int | None = None
    choices: int = 1
    logit_bias: dict[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    """How many alternatives are told at each token; None tells no log-probabilities."""
    ignore_eos: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Step:
    """One token of one choice."""

    choice: int
    token: int
    ended: bool
    """The token is an end-of-text token: it is not part of the answer."""
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()


def decode(
    model: Any, prompt: Sequence[int], sampling: Sampling, ends: frozenset[int], stopped: Callable[[int], bool]
) -> Iterator[Step]:
    """Generate token by token; all choices of a request are one batch.

    Args:
        model: A causal language model in eval mode.
        prompt: Token ids, at least one.
        sampling: How to choose.
        ends: Ids that end an answer.
        stopped: Asked for each choice before each step: True ends that choice (a stop string, a client that hung up).
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device=device)
    generator.manual_seed(sampling.seed & (2**63 - 1)) if sampling.seed is not None else generator.seed()
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([list(prompt)], device=device), use_cache=True, logits_to_keep=1)
        cache = out.cache
        logits = out.logits[:, -1, :].float().repeat(sampling.choices, 1)
        if sampling.choices > 1:
            cache.batch_repeat_interleave(sampling.choices)
        counts = torch.zeros_like(logits)
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[:, list(prompt)] = True
        open_choices = set(range(sampling.choices))
        for _ in range(sampling.max_tokens):
            open_choices -= {choice for choice in open_choices if stopped(choice)}
            if not open_choices:
                return
            tokens = _choose(logits, counts, seen, sampling, ends, generator)
            for step in _steps(logits, tokens, sampling, ends, open_choices):
                open_choices -= {step.choice} if step.ended else set()
                yield step
            if not open_choices:
                return
            counts.scatter_add_(1, tokens[:, None], torch.ones_like(counts[:, :1]))
            seen.scatter_(1, tokens[:, None], True)
            logits = model(input_ids=tokens[:, None], cache=cache, use_cache=True).logits[:, -1, :].float()


def score(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Return the log-probability of each token of ``answer`` after ``prompt`` (teacher forcing, one forward pass)."""
    ids = torch.tensor([[*prompt, *answer]], device=next(model.parameters()).device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
        rows = torch.log_softmax(logits, dim=-1)
        return [float(rows[i, token]) for i, token in enumerate(answer)]


def _choose(
    logits: torch.Tensor, counts: torch.Tensor, seen: torch.Tensor, sampling: Sampling, ends: frozenset[int],
    generator: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """Return a token for each choice."""
    scores = logits.clone()
    for token, bias in sampling.logit_bias.items():
        scores[:, token] += bias
    if sampling.ignore_eos:
        scores[:, sorted(ends)] = -math.inf
    if sampling.repeat_penalty != 1.0:
        penalised = torch.where(scores > 0, scores / sampling.repeat_penalty, scores * sampling.repeat_penalty)
        scores = torch.where(seen, penalised, scores)
    if sampling.frequency_penalty or sampling.presence_penalty:
        scores -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
    if sampling.temperature == 0:
        return scores.argmax(dim=-1)
    probabilities = torch.softmax(_cut(scores, sampling) / sampling.temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _cut(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Leave only the tokens that top_k, top_p and min_p allow, in this order, before temperature as llama.cpp does."""
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -math.inf)
    if sampling.top_p < 1.0:
        ordered, places = torch.sort(scores, dim=-1, descending=True)
        share = torch.softmax(ordered, dim=-1)
        beyond = share.cumsum(dim=-1) - share >= sampling.top_p
        scores = scores.masked_fill(beyond.scatter(1, places, beyond), -math.inf)
    if sampling.min_p > 0.0:
        shares = torch.softmax(scores, dim=-1)
        scores = scores.masked_fill(shares < sampling.min_p * shares.amax(dim=-1, keepdim=True), -math.inf)
    return scores


def _steps(
    logits: torch.Tensor, tokens: torch.Tensor, sampling: Sampling, ends: frozenset[int], open_choices: set[int]
) -> list[Step]:
    rows = torch.log_softmax(logits, dim=-1) if sampling.top_logprobs is not None else None
    steps = []
    for choice in sorted(open_choices):
        token = int(tokens[choice])
        logprob: float | None = None
        top: tuple[TokenLogprob, ...] = ()
        if rows is not None:
            logprob = float(rows[choice, token])
            values, ids = rows[choice].topk(sampling.top_logprobs or 0)
            top = tuple(TokenLogprob(int(i), float(v)) for i, v in zip(ids, values, strict=True))
        steps.append(Step(choice, token, token in ends and not sampling.ignore_eos, logprob, top))
    return steps
