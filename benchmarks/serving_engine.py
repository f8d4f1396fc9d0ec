"""How fast is the engine `llama_cpp` against Transformers' `generate` in bf16, at 1 and at 8 streams?

    python benchmarks/serving_engine.py MODEL_FOLDER [--quantization q8_0] [--rounds 3] [--tokens 64]

MODEL_FOLDER holds safetensors. Runs alternate, so that a busy machine slows both; read the ratios, not the speeds.
Transformers runs in a process of its own: at 8 streams it generates one batch of 8, which is the best it can do.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from burnish.core.specs import CompressionSpec
from burnish.core.specs.serving import EngineConfig
from burnish.ml.engine_process import RunningEngine, start
from burnish.ml.quantize import gguf
from burnish.testing.job_context import LocalJobContext

PROMPTS = [
    f"Write a story of a {word} lighthouse keeper."
    for word in ("kind", "sad", "tall", "old", "shy", "bold", "wise", "odd")
]

PEER = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
for line in sys.stdin:
    prompts, tokens = json.loads(line)
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True) for p in prompts]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    began = time.monotonic()
    with torch.inference_mode():
        model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    print(len(prompts) * tokens / (time.monotonic() - began), flush=True)
"""


def measure_engine(engine: RunningEngine, streams: int, tokens: int) -> float:
    """Return tokens a second of `streams` answers at once, prompts included."""

    def ask(prompt: str) -> None:
        engine.chat({
            "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        })  # fmt: skip

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in PROMPTS[:streams]]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return streams * tokens / (time.monotonic() - began)


def main() -> None:
    """Print a JSON line with the medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quantization", default="q8_0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        context = LocalJobContext(Path(folder))
        model = context.add(asked.model, "model")
        made = gguf(CompressionSpec(model=model, params={"quantization": asked.quantization}), context)
        config = EngineConfig(
            engine="llama_cpp", model_dir=str(context.open(made.model)), served_name="m", socket="", parallel=8,
            threads=asked.threads,
        )  # fmt: skip
        peer = subprocess.Popen(
            [sys.executable, "-c", PEER, str(asked.model), str(asked.threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            with start(config, Path(folder) / "engine.log") as engine:
                print(json.dumps(compare(engine, peer, asked.rounds, asked.tokens, asked.quantization)))
        finally:
            peer.kill()
            peer.wait()


def compare(engine: RunningEngine, peer: subprocess.Popen[str], rounds: int, tokens: int, name: str) -> dict[str, Any]:
    """Run both in turn and return medians and ratios."""
    assert peer.stdin is not None
    assert peer.stdout is not None
    result: dict[str, Any] = {"quantization": name}
    for streams in (1, 8):
        ours, theirs = [], []
        for _ in range(rounds + 1):  # the first round warms up
            ours.append(measure_engine(engine, streams, tokens))
            peer.stdin.write(json.dumps([PROMPTS[:streams], tokens]) + "\n")
            peer.stdin.flush()
            theirs.append(float(peer.stdout.readline()))
        ours, theirs = ours[1:], theirs[1:]
        result[f"streams_{streams}"] = {
            "llama_cpp": round(statistics.median(ours), 1), "transformers_bf16": round(statistics.median(theirs), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2),
        }  # fmt: skip
    return result


if __name__ == "__main__":
    main()
