"""The serving component's kind ``deploy``, and what engine processes are started with."""

from typing import Literal

from pydantic import Field

from burnish.core.specs.base import ArtifactRef, Spec

EngineName = Literal["llama_cpp", "transformers", "vllm"]
DEPLOYMENT_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
"""What a deployment may be called."""


class DeploySpec(Spec):
    """Put a model version behind a deployment name; done when the new revision serves."""

    deployment: str = Field(pattern=DEPLOYMENT_PATTERN, description="The name that clients call as `model`")
    model: ArtifactRef = Field(description="Kind `model` or `gguf`")
    adapter: ArtifactRef | None = None
    model_version: str | None = Field(default=None, description="Registry name, `name@3`")
    engine: EngineName = "llama_cpp"
    replicas: int = Field(default=1, ge=1, le=64)
    context_length: int = Field(default=1024, ge=64, le=1 << 24, description="Tokens a request may span")
    parallel: int = Field(default=8, ge=1, le=256, description="Requests a replica generates at once")
    queue: int = Field(default=64, ge=0, le=4096, description="Requests that wait beyond those; more are a 429")


class DeployResult(Spec):
    """The revision that now serves."""

    deployment: str
    revision: int
    replaced: int | None = Field(default=None, description="The revision that served before")
    model: ArtifactRef
    switched: bool = Field(description="False when this very model was already being served")
    ready_seconds: float


class EngineConfig(Spec):
    """What an engine process reads from its first argument, a JSON file.

    The process listens with HTTP on the unix socket ``socket`` and offers ``GET /health`` (200 once it can
    generate), ``POST /v1/chat/completions`` and ``POST /v1/completions`` in OpenAI's form, streaming included.
    """

    engine: EngineName
    model_dir: str = Field(description="Folder of the model artifact's files")
    adapter_dir: str | None = None
    served_name: str
    socket: str = Field(description="Path of the unix socket; at most 100 characters")
    context_length: int = 1024
    parallel: int = 8
    threads: int = 1
    seed: int = 0
