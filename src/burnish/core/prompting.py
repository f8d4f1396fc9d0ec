"""How dataset rows become messages: one place for training, evaluation and the snippets shown to users.

Pure functions; the chat template itself belongs to the model's tokenizer.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict

from burnish.core.errors import BadData
from burnish.core.specs.data import DatasetFormat


class ChatMessage(TypedDict):
    """One message in OpenAI's form."""

    role: Literal["system", "user", "assistant"]
    content: str


class Example(TypedDict):
    """What a model is asked and what it should answer."""

    prompt: list[ChatMessage]
    completion: str


def default_instruction(labels: Iterable[str]) -> str:
    """Return the instruction for classification rows with these labels (sorted, so that it is stable)."""
    return f"Classify the text. Answer with one of: {', '.join(sorted(labels))}."


def to_example(row: Mapping[str, Any], form: DatasetFormat, instruction: str | None, where: str = "row") -> Example:
    """Turn a canonical row into prompt messages and the completion.

    Raises:
        BadData: a chat row does not end with the assistant, or the format has no completion (``text``).
    """
    if form == "classification":
        content = f"{instruction}\n\n{row['text']}" if instruction else str(row["text"])
        return {"prompt": [{"role": "user", "content": content}], "completion": str(row["label"])}
    if form == "prompt_completion":
        content = f"{instruction}\n\n{row['prompt']}" if instruction else str(row["prompt"])
        return {"prompt": [{"role": "user", "content": content}], "completion": str(row["completion"])}
    if form == "chat":
        messages: list[ChatMessage] = list(row["messages"])
        if not messages or messages[-1]["role"] != "assistant":
            raise BadData(
                f"{where}: the last message is not the assistant's",
                hint="end each conversation with the answer to learn",
            )
        return {"prompt": messages[:-1], "completion": messages[-1]["content"]}
    raise BadData(f"{where}: plain text has no completion", hint="use the task `perplexity`, or train on it as text")
