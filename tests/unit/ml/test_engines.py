"""Both engines, through the official client: the same promises, the same forms."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from burnish.core.errors import BadModel
from burnish.core.specs.serving import EngineConfig
from burnish.ml.engine_process import MODULES, RunningEngine, start
from burnish.ml.tiny import build
from tests.support.engines import ASK, client, make_gguf, running


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    model = build("llama", folder / "model")
    return {"transformers": model, "llama_cpp": make_gguf(model, folder / "gguf")}


@pytest.fixture(scope="module", params=["llama_cpp", "transformers"])
def engine(
    request: pytest.FixtureRequest, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEngine]:
    with running(request.param, models[request.param], tmp_path_factory.mktemp("engine")) as started:
        yield started


@pytest.fixture
def openai(engine: RunningEngine) -> Iterator[OpenAI]:
    with client(engine) as made:
        yield made


def biased(*ids: int) -> dict[str, int]:
    return {str(token): 100 for token in ids}


def test_it_answers_and_counts(openai: OpenAI, engine: RunningEngine) -> None:
    answer = openai.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=5, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.object == "chat.completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5

    assert answer.usage.prompt_tokens == len(
        engine.tokenize("<|im_start|>user\nIs the film good?<|im_end|>\n<|im_start|>assistant\n")
    )


def test_plain_completions(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model="tiny", prompt="A film", max_tokens=3, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.object == "text_completion"
    assert answer.choices[0].text


def test_streams_give_the_same_text_and_usage(openai: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 12, "temperature": 0}
    whole = openai.chat.completions.create(**asked)
    text, finish, usage = "", None, None
    for chunk in openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        if chunk.usage is not None:
            usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert text == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_a_stop_string_ends_the_answer_before_it(openai: OpenAI, engine: RunningEngine) -> None:
    a, b = engine.tokenize("ab")
    bias = biased(a)
    assert b != a
    answer = openai.chat.completions.create(model="tiny", messages=ASK, max_tokens=9, temperature=0, logit_bias=bias)
    assert answer.choices[0].message.content == "a" * 9
    stopped = openai.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=9, temperature=0, logit_bias=bias, stop="aaaa"
    )
    assert stopped.choices[0].message.content == ""
    assert stopped.choices[0].finish_reason == "stop"


def test_the_end_token_ends_the_answer_and_is_not_part_of_it(openai: OpenAI, engine: RunningEngine) -> None:
    (end,) = engine.post("/tokenize", {"content": "<|im_end|>", "add_special": False})["tokens"]
    answer = openai.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=9, temperature=0, logit_bias=biased(end)
    )
    assert (answer.choices[0].message.content or "") == ""
    assert answer.choices[0].finish_reason == "stop"


def test_a_seed_gives_the_same_answer_again(openai: OpenAI) -> None:
    def ask(seed: int) -> str:
        answer = openai.chat.completions.create(model="tiny", messages=ASK, max_tokens=24, temperature=1.5, seed=seed)
        return answer.choices[0].message.content or ""

    assert ask(3) == ask(3)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_several_choices(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(model="tiny", messages=ASK, max_tokens=8, temperature=1.5, n=2, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_logprobs_are_the_models_own(openai: OpenAI, engine: RunningEngine) -> None:
    free = openai.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=1, temperature=0, logprobs=True, top_logprobs=20
    )
    assert free.choices[0].logprobs is not None
    assert free.choices[0].logprobs.content is not None
    likeliest = free.choices[0].logprobs.content[0]
    assert len(likeliest.top_logprobs) == 20
    assert likeliest.logprob == pytest.approx(max(entry.logprob for entry in likeliest.top_logprobs))
    (second,) = engine.tokenize("z")
    forced = openai.chat.completions.create(
        model="tiny",
        messages=ASK,
        max_tokens=1,
        temperature=0,
        logprobs=True,
        top_logprobs=20,
        logit_bias=biased(second),
    )
    assert forced.choices[0].message.content == "z"
    assert forced.choices[0].logprobs is not None
    assert forced.choices[0].logprobs.content is not None
    told = [entry.logprob for entry in forced.choices[0].logprobs.content[0].top_logprobs]
    assert told[:5] == pytest.approx([entry.logprob for entry in likeliest.top_logprobs][:5], abs=1e-3)


def test_a_prompt_that_does_not_fit_is_a_400(openai: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        openai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 600}], max_tokens=1)
    assert "context" in str(caught.value)


def test_an_answer_ends_with_the_context(openai: OpenAI) -> None:
    answer = openai.completions.create(model="tiny", prompt="x" * 240, temperature=0, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"


def test_the_same_question_gets_the_same_answer_whatever_came_before(engine: RunningEngine) -> None:
    def ask(text: str) -> Any:
        request = {"messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0, "logprobs": True}
        return engine.chat({**request, "top_logprobs": 5})["choices"][0]["logprobs"]["content"]

    questions = [f"Is number {n} a good number?" for n in range(8)]
    first = [ask(question) for question in questions]
    again = [ask(question) for question in reversed(questions)]
    for one, other in zip(first, reversed(again), strict=True):
        assert one[0]["id"] == other[0]["id"]
        assert one[0]["logprob"] == pytest.approx(other[0]["logprob"], abs=2e-3)


def test_llama_cpp_follows_a_json_schema(models: dict[str, Path], tmp_path: Path) -> None:
    with running("llama_cpp", models["llama_cpp"], tmp_path) as engine, client(engine) as openai:
        schema = {"type": "string", "enum": ["positive", "negative"]}
        form: Any = {"type": "json_schema", "json_schema": {"name": "label", "schema": schema}}
        answer = openai.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=40, temperature=0, response_format=form
        )
        assert json.loads(answer.choices[0].message.content or "") in schema["enum"]


def test_transformers_refuses_what_it_cannot_do(models: dict[str, Path], tmp_path: Path) -> None:
    with running("transformers", models["transformers"], tmp_path) as engine, client(engine) as openai:
        with pytest.raises(BadRequestError, match="response_format"):
            openai.chat.completions.create(model="tiny", messages=ASK, response_format={"type": "json_object"})
        with pytest.raises(BadRequestError, match="not a token id"):
            openai.chat.completions.create(model="tiny", messages=ASK, logit_bias={"999999": 1})
        with pytest.raises(BadRequestError, match="top_p"):
            openai.chat.completions.create(model="tiny", messages=ASK, top_p=3)


def test_a_client_that_hangs_up_stops_the_generation(engine: RunningEngine) -> None:
    """Long generations one after another would take far longer than the question after them waits."""
    body = {"messages": ASK, "max_tokens": 200, "temperature": 0, "stream": True, "ignore_eos": True}
    transport = httpx.HTTPTransport(uds=engine.config.socket)
    with httpx.Client(transport=transport, timeout=60) as http:
        began = time.monotonic()
        with http.stream("POST", "http://engine/v1/chat/completions", json=body) as whole:
            for _ in whole.iter_lines():
                pass
        full = time.monotonic() - began
        began = time.monotonic()
        for _ in range(20):
            with http.stream("POST", "http://engine/v1/chat/completions", json=body) as response:
                next(response.iter_lines())
        engine.chat({"messages": ASK, "max_tokens": 1})
        assert time.monotonic() - began < 10 * full + 1


@pytest.mark.parametrize("name", ["llama_cpp", "transformers"])
def test_sigterm_ends_it_promptly(name: Any, models: dict[str, Path], tmp_path: Path) -> None:
    with running(name, models[name], tmp_path) as engine:
        began = time.monotonic()
        engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(5) == -signal.SIGTERM
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("name", ["llama_cpp", "transformers"])
def test_damaged_weights_are_told_and_end_with_1(name: Any, models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in models[name].iterdir():
        data = file.read_bytes()
        (folder / file.name).write_bytes(data[: len(data) // 2] if file.suffix in {".gguf", ".safetensors"} else data)
    with pytest.raises(BadModel, match=r"ended with 1: .*not a sound"):
        start(EngineConfig(engine=name, model_dir=str(folder), served_name="x", socket=""), tmp_path / "log")


def test_a_gguf_that_llama_cpp_refuses_says_its_reason(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    data = (models["llama_cpp"] / "model.gguf").read_bytes()
    place = data.index(b"llama", data.index(b"general.architecture"))
    (folder / "model.gguf").write_bytes(data[:place] + b"clama" + data[place + 5 :])
    with pytest.raises(BadModel, match="unknown model architecture: 'clama'"):
        start(EngineConfig(engine="llama_cpp", model_dir=str(folder), served_name="x", socket=""), tmp_path / "log")


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"no \*\.gguf"):
        start(EngineConfig(engine="llama_cpp", model_dir=str(tmp_path), served_name="x", socket=""), tmp_path / "log")


def test_an_evaluations_engine_dies_with_its_parent(models: dict[str, Path], tmp_path: Path) -> None:
    config = EngineConfig(engine="llama_cpp", model_dir=str(models["llama_cpp"]), served_name="x", socket="")
    program = (
        "import sys, pathlib, time\n"
        "from burnish.core.specs.serving import EngineConfig\n"
        "from burnish.ml.engine_process import start\n"
        "engine = start(EngineConfig.model_validate_json(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "print(engine.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, config.model_dump_json(), str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()
    deadline = time.monotonic() + 5
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_program_without_a_configuration_says_how_it_is_used() -> None:
    for module in MODULES.values():
        done = subprocess.run(
            [sys.executable, "-m", module], capture_output=True, text=True, env=os.environ, check=False
        )
        assert done.returncode == 2
        assert "usage" in done.stderr
