"""The decoding loop of the engine `transformers`, without its process."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.core.specs.serving import EngineConfig
from burnish.ml.engines.answers import AnswerText
from burnish.ml.engines.decoding import Sampling, _choose, _cut, decode, score
from burnish.ml.engines.process import positions, prepare_socket
from burnish.ml.engines.requests import RequestRejected, read_request
from burnish.ml.model import load_model, load_tokenizer
from burnish.ml.tiny import ARCHITECTURES, build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_model(folder, torch.float32)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


def never(_choice: int) -> bool:
    return False


def test_greedy_decoding_is_generates(model: Any, tokenizer: Any) -> None:
    prompt = tokenizer("A warm film", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=12,
            do_sample=False, eos_token_id=None, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    sampling = Sampling(max_tokens=12, temperature=0, top_logprobs=3)
    steps = list(decode(model, prompt, sampling, frozenset(), never))
    assert [step.token for step in steps] == whole[0, len(prompt) :].tolist()
    forced = score(model, prompt, [step.token for step in steps])
    assert [step.logprob for step in steps] == pytest.approx(forced, abs=1e-4)
    assert all(step.top[0].id == step.token for step in steps)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_decoding_step_by_step_is_one_forward_pass(architecture: str, tmp_path: Path) -> None:
    model = load_model(build(architecture, tmp_path / "model"), torch.float32)
    sampling = Sampling(max_tokens=6, temperature=0, top_logprobs=1, choices=2)
    steps = [step for step in decode(model, [5, 6, 7], sampling, frozenset(), never) if step.choice == 1]
    assert [step.logprob for step in steps] == pytest.approx(
        score(model, [5, 6, 7], [step.token for step in steps]), abs=1e-4
    )


def test_choices_of_one_seed_are_the_same_again_and_differ_from_each_other(model: Any) -> None:
    def ask(seed: int) -> list[tuple[int, int]]:
        sampling = Sampling(max_tokens=10, temperature=2.0, seed=seed, choices=3)
        return [(step.choice, step.token) for step in decode(model, [5, 6, 7], sampling, frozenset(), never)]

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)
    by_choice = [[token for choice, token in ask(1) if choice == wanted] for wanted in range(3)]
    assert len({tuple(tokens) for tokens in by_choice}) == 3


def test_a_choice_that_ended_is_not_continued(model: Any) -> None:
    sampling = Sampling(max_tokens=5, temperature=0, choices=2, logit_bias={9: 100})
    steps = list(decode(model, [5, 6], sampling, frozenset({9}), never))
    assert [(step.choice, step.token, step.ended) for step in steps] == [(0, 9, True), (1, 9, True)]
    goes_on = Sampling(max_tokens=5, temperature=0, logit_bias={9: 100}, ignore_eos=True)
    assert 9 not in [step.token for step in decode(model, [5, 6], goes_on, frozenset({9}), never)]


def test_what_is_stopped_ends(model: Any) -> None:
    asked = 0

    def after_three(_choice: int) -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    steps = list(decode(model, [5], Sampling(max_tokens=50, temperature=0), frozenset(), after_three))
    assert len(steps) == 3


SCORES = torch.tensor([[3.0, 2.0, 1.0, 0.0]])


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, 4),
        ({"top_k": 2}, 2),
        ({"top_k": 9}, 4),
        ({"top_p": 0.6}, 1),
        ({"top_p": 0.7}, 2),
        ({"min_p": 0.3}, 2),
        ({"min_p": 0.5, "top_k": 3}, 1),
    ],
)
def test_tokens_that_are_cut(options: dict[str, Any], left: int) -> None:
    kept = _cut(SCORES.clone(), Sampling(max_tokens=1, **options))
    assert int(torch.isfinite(kept).sum()) == left
    assert kept[0, 0] == 3.0


def choose(options: dict[str, Any], counts: list[float], seen: list[bool]) -> int:
    sampling = Sampling(max_tokens=1, temperature=0, **options)
    found = _choose(SCORES, torch.tensor([counts]), torch.tensor([seen]), sampling, frozenset({0}), torch.Generator())
    return int(found[0])


def test_penalties_bias_and_ends() -> None:
    none, first = [0.0] * 4, [1.0, 0.0, 0.0, 0.0]
    assert choose({}, none, [False] * 4) == 0
    assert choose({"presence_penalty": 1.5}, first, [False] * 4) == 1
    assert choose({"frequency_penalty": 0.6}, [2.0, 0.0, 0.0, 0.0], [False] * 4) == 1
    assert choose({"repeat_penalty": 2.0}, none, [True, False, False, False]) == 1
    assert choose({"logit_bias": {3: 100.0}}, none, [False] * 4) == 3
    assert choose({"ignore_eos": True}, none, [False] * 4) == 1


def feed(tokenizer: Any, text: str, stops: list[str]) -> tuple[list[str], AnswerText]:
    answer = AnswerText(tokenizer, stops)
    pieces = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        pieces.append(answer.add(token))
        if answer.stopped:
            break
    return pieces, answer


def test_pieces_join_to_the_text(tokenizer: Any) -> None:
    pieces, answer = feed(tokenizer, "a warm film", [])
    assert "".join(pieces) + answer.rest() == "a warm film"
    assert len([piece for piece in pieces if piece]) > 5
    assert answer.tokens == len(pieces)


def test_characters_are_given_whole(tokenizer: Any) -> None:
    pieces, answer = feed(tokenizer, "caf\u00e9 \U0001f600!", [])
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + answer.rest() == "caf\u00e9 \U0001f600!"


def test_nothing_of_a_stop_string_is_given(tokenizer: Any) -> None:
    pieces, answer = feed(tokenizer, "one two three", ["two t"])
    assert answer.stopped
    assert "".join(pieces) + answer.rest() == "one "
    pieces, answer = feed(tokenizer, "one two", ["two three"])
    assert "".join(pieces) == "one "  # held back: it may become the stop string
    assert answer.rest() == "two"


def test_requests_are_read(tokenizer: Any) -> None:
    body = {
        "max_completion_tokens": 500, "temperature": 0.5, "stop": "x", "n": 2, "seed": 3, "logit_bias": {"4": 1}, "logprobs": True,
        "top_logprobs": 2, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    asked = read_request(body, 90, tokenizer)
    assert asked.sampling == Sampling(
        max_tokens=90, temperature=0.5, choices=2, seed=3, logit_bias={4: 1.0}, top_logprobs=2
    )
    assert (asked.stops, asked.stream, asked.include_usage) == (("x",), True, True)
    assert read_request({"logprobs": 3}, 9, tokenizer).sampling.top_logprobs == 3
    assert read_request({}, 9, tokenizer).sampling == Sampling(max_tokens=9)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"n": 99}, "n must be"),
        ({"top_p": math.inf}, "top_p"),
        ({"logit_bias": {"x": 1}}, "not a token id"),
        ({"logprobs": 99}, "top_logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_cannot_be_done_is_told(body: dict[str, Any], said: str, tokenizer: Any) -> None:
    with pytest.raises(RequestRejected, match=said):
        read_request(body, 90, tokenizer)


def test_the_context_is_at_most_the_models(folder: Path, tmp_path: Path) -> None:
    def config(at: Path, length: int) -> EngineConfig:
        return EngineConfig(engine="llama_cpp", model_dir=str(at), served_name="x", socket="", context_length=length)

    assert positions(config(folder, 4096)) == 512
    assert positions(config(folder, 128)) == 128
    assert positions(config(tmp_path, 4096)) == 4096


def test_sockets_are_made_room_for(tmp_path: Path) -> None:
    left = tmp_path / "s.sock"
    left.touch()
    prepare_socket(str(left))
    assert not left.exists()
    with pytest.raises(Exception, match="100 bytes"):
        prepare_socket(str(tmp_path / ("x" * 100)))
