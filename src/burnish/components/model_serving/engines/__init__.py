"""The plug point for engines: a program that serves one model over HTTP on a unix socket.

A new engine is one :class:`Engine` here and one module that is run as ``python -m MODULE CONFIG.json``, where the file
holds a :class:`burnish.core.specs.serving.EngineConfig`. It must offer ``GET /health`` (200 once it can generate),
``POST /v1/chat/completions`` and ``POST /v1/completions`` in OpenAI's form, streaming included; a request whose
connection closes must stop. ``GET /slots`` (a list with ``is_processing``) is optional: it tells a drain what runs.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from burnish.core.errors import InvalidRequest
from burnish.core.specs.base import ArtifactKind
from burnish.core.specs.serving import DeploySpec

_KV_BYTES_PER_TOKEN = 32 << 10
"""Generous for models up to about a billion weights; what is measured later is the process itself."""


@dataclass(frozen=True)
class Engine:
    """A program that serves one model, and what it can load."""

    name: str
    accepts: frozenset[ArtifactKind]
    program: tuple[str, ...]
    """Its command line; the path of the configuration file is appended."""
    adapters: bool = False
    base_bytes: int = 256 << 20
    """Memory of the program without a model."""
    weight_factor: float = 1.1
    """Memory of the weights by the size of their files."""

    def argv(self, config: Path) -> list[str]:
        """Return the command line of one replica."""
        return [*self.program, str(config)]

    def memory_bytes(self, spec: DeploySpec) -> int:
        """Estimate a replica's peak memory: program, weights and the attention cache of all its slots."""
        cache = spec.context_length * spec.parallel * _KV_BYTES_PER_TOKEN
        return self.base_bytes + int(spec.model.size_bytes * self.weight_factor) + cache

    def check(self, spec: DeploySpec) -> None:
        """Refuse a spec that this engine cannot serve.

        Raises:
            InvalidRequest: the artifact's kind is not one that it loads, or it loads no adapters.
        """
        if spec.model.kind not in self.accepts:
            raise InvalidRequest(
                f"the engine {self.name} cannot load an artifact of kind {spec.model.kind}",
                where="model",
                hint=f"it loads: {', '.join(sorted(self.accepts))}",
            )
        if spec.adapter is not None and not self.adapters:
            raise InvalidRequest(
                f"the engine {self.name} loads no adapters",
                where="adapter",
                hint="merge the adapter (kind `compress` does), or use the engine `transformers`",
            )


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name)


ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("llama_cpp", frozenset({"gguf"}), _module("burnish.ml.engines.llama_cpp")),
        Engine(
            "transformers",
            frozenset({"model"}),
            _module("burnish.ml.engines.transformers_engine"),
            adapters=True,
            base_bytes=900 << 20,
            weight_factor=1.3,
        ),
    )
}


def find(engines: Mapping[str, Engine], name: str) -> Engine:
    """Return the engine of this name.

    Raises:
        InvalidRequest: it is not installed here.
    """
    if name not in engines:
        raise InvalidRequest(
            f"there is no engine {name!r}", where="engine", hint=f"engines here: {', '.join(sorted(engines))}"
        )
    return engines[name]
