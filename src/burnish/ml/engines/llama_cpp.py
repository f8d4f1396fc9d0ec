"""The engine ``llama_cpp``: llama.cpp's own server (``xllamacpp``) on a GGUF file.

Without repacked weights, answers to requests that come one at a time do not depend on the order in which they come,
so that a client who asks a test set again gets the evaluation's answers. (Flash attention rounds otherwise from 64 new
prompt tokens on, so the first request of a kind, whose prefix is not cached yet, may differ by some 0.1 nats; without
it everything would be bit-equal, at 0.7 times the speed.)
"""

import os
import signal
import stat
from pathlib import Path
from typing import Any

from burnish.core.errors import BadModel
from burnish.core.specs.serving import EngineConfig
from burnish.ml.engines.process import positions, run_engine
from burnish.ml.weights import read_gguf


def model_file(folder: Path) -> Path:
    """Return the one GGUF file of a model folder, its header checked against its size.

    Raises:
        BadModel: there is none, there are several, or its header lies.
    """
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise BadModel(
            "no *.gguf in the model folder",
            where=str(folder),
            hint="the kind `compress` makes one; or use `transformers`",
        )
    if len(files) > 1:
        raise BadModel(f"{len(files)} GGUF files where one is expected", where=str(folder))
    read_gguf(files[0])
    return files[0]


def serve(config: EngineConfig) -> None:
    """Serve until a signal ends the process.

    Raises:
        BadModel: llama.cpp cannot load the model; its own reason is on stderr above.
    """
    if config.adapter_dir is not None:
        raise BadModel(
            "llama_cpp serves no PEFT adapter", where=config.adapter_dir, hint="merge it: kind `compress` does"
        )
    path = model_file(Path(config.model_dir))
    import xllamacpp

    told_before = _stderr_bytes()
    try:
        server = xllamacpp.Server(_parameters(xllamacpp, config, path))
    except Exception as error:
        reason = _errors_since(told_before) or f"{error}; its reason stands in the lines above"
        raise BadModel(f"llama.cpp cannot load {path.name}: {reason}", where=str(path)) from error
    assert server.listening_address
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    while True:
        signal.pause()


def _parameters(xllamacpp: Any, config: EngineConfig, path: Path) -> Any:
    made = xllamacpp.CommonParams()
    made.model.path = str(path)
    made.model_alias = {config.served_name}
    made.hostnames = [config.socket]
    made.port = 0
    made.n_parallel = config.parallel
    made.n_ctx = positions(config) * config.parallel
    made.n_threads_http = config.parallel + 4
    for cpu in (made.cpuparams, made.cpuparams_batch):
        cpu.n_threads = config.threads
    made.ui = False
    made.cache_ram_mib = 0
    made.verbosity = 2
    made.fit_params = False
    made.offline = True
    # Repacked weights have kernels that round differently for 4 rows and for the rest of a batch.
    made.no_extra_bufts = True
    return made


def _stderr_bytes() -> int | None:
    """Return how much was written to stderr so far, if it is a file (as it is for replicas and evaluations)."""
    status = os.fstat(2)
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _errors_since(position: int | None) -> str:
    """Return the error lines that llama.cpp wrote to stderr; the exception that it raises says nothing."""
    if position is None:
        return ""
    with open("/proc/self/fd/2", "rb") as log:
        log.seek(position)
        lines = log.read().decode("utf-8", errors="replace").splitlines()
    marked = (line.partition(" E ")[2] for line in lines if " E " in line)
    return next((message.strip() for message in marked if "error" in message), "")


if __name__ == "__main__":
    run_engine(serve)
