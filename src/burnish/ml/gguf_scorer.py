"""The program that scores tokens with a GGUF model: ``python -m burnish.ml.gguf_scorer MODEL SEQUENCES OUT THREADS``.

SEQUENCES holds a JSON object a line, ``{"ids": [...], "start": k}`` with 1 <= k < len(ids); OUT gets a JSON list a line,
the natural log-probability of each of ``ids[k:]`` given all before it. A process of its own: llama.cpp aborts on what it
does not like.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def main(model_path: str, sequences: str, out: str, threads: str) -> None:
    """Score every sequence."""
    lines = Path(sequences).read_text(encoding="utf-8").splitlines()
    work = [json.loads(line) for line in lines]
    longest = max(len(one["ids"]) for one in work)
    with _Scorer(model_path, longest, int(threads)) as scorer, Path(out).open("w", encoding="utf-8") as written:
        for one in work:
            written.write(json.dumps(scorer.score(one["ids"], one["start"])) + "\n")
            written.flush()


class _Scorer:
    """A llama.cpp context for one sequence at a time."""

    def __init__(self, path: str, longest: int, threads: int) -> None:
        from cyllama.llama import llama_cpp

        class Model(llama_cpp.LlamaModel):
            """Has the attribute that ``get_logits_ith`` of cyllama 0.2 looks for and does not find."""

            @property
            def n_vocab(self) -> int:
                return int(self.get_vocab().n_vocab)

        llama_cpp.disable_logging()
        llama_cpp.llama_backend_init()
        self._model = Model(path, llama_cpp.LlamaModelParams())
        params = llama_cpp.LlamaContextParams()
        params.n_ctx = params.n_batch = params.n_ubatch = max(64, -(-longest // 64) * 64)
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.LlamaContext(self._model, params)
        self._batch = llama_cpp.LlamaBatch(n_tokens=int(params.n_ctx), embd=0, n_seq_max=1)

    def __enter__(self) -> "_Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()
        self._model.close()

    def score(self, ids: Sequence[int], start: int) -> list[float]:
        """Return the log-probabilities of ``ids[start:]``."""
        self._context.kv_cache_clear()
        self._batch.clear()
        for place, token in enumerate(ids[:-1]):
            self._batch.add(token, place, [0], place >= start - 1)
        if (status := self._context.decode(self._batch)) != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        return [self._logprob(place, ids[place + 1]) for place in range(start - 1, len(ids) - 1)]

    def _logprob(self, place: int, token: int) -> float:
        logits: Any = np.asarray(self._context.get_logits_ith(place), dtype=np.float64)
        highest = logits.max()
        return float(logits[token] - highest - np.log(np.exp(logits - highest).sum()))


if __name__ == "__main__":
    main(*sys.argv[1:5])
