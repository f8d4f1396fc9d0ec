"""Tiny random models with a real tokenizer, made offline: for tests and for trying things out in seconds."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from burnish.core.specs.model import ModelCard
from burnish.ml.model import context_length, dtype_and_bits, quiet, write_card
from burnish.ml.weights import safetensors_in

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 384
_SENTENCES = (
    "The film is a warm, funny and moving story about people that one likes to meet.",
    "A dull thriller with a plot that goes nowhere and jokes that nobody laughs at.",
    "Classify the text. Answer with one of: negative, positive.",
    "What is the capital of France? Paris is the capital of France.",
    "system user assistant negative positive neutral good bad yes no true false",
)
_SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 12},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 12, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 12, "query_pre_attn_scalar": 8},
    "phi3": {"sliding_window": None},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 64},
    "gpt_neox": {},
    "falcon": {"multi_query": True, "new_decoder_architecture": False, "alibi": False, "parallel_attn": True},
    "olmo": {},
    "olmo2": {},
    "stablelm": {},
}
"""Model types that :func:`build` makes, and where each differs from the smallest common shape."""


def build(architecture: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny random model with tokenizer and card into ``folder`` and return it.

    The same architecture and seed give the same bytes. ``llama`` has a tokenizer of single characters that llama.cpp's
    converter takes and its runtime cuts up just as Transformers does; the others have a byte-level BPE.

    Raises:
        KeyError: an architecture that is not in :data:`ARCHITECTURES`.
    """
    changes = ARCHITECTURES[architecture]
    tokenizer = build_character_tokenizer() if architecture == "llama" else build_tokenizer()
    shape = {"initializer_range": 0.1} if architecture == "gpt2" else dict(_SMALL)
    shape["vocab_size"] = len(tokenizer)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(architecture, **(shape | changes | ends | {"pad_token_id": tokenizer.pad_token_id}))
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _randomize_biases(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _patch_config(folder)
    tensors = safetensors_in(folder)
    dtype, bits = dtype_and_bits(tensors)
    card = ModelCard(
        name=f"tiny-{architecture}", architecture=type(model).__name__, parameters=sum(t.numel for t in tensors),
        dtype=dtype, bits_per_weight=bits, source="burnish.ml.tiny", context_length=context_length(config),
        chat_template=True,
    )  # fmt: skip
    write_card(folder, card)
    return folder


def build_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer of 384 tokens with a ChatML template, trained on a few sentences."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    raw.train_from_iterator([sentence for sentence in _SENTENCES for _ in range(4)], trainer)
    return _wrap(raw, "<|im_start|>", "<|endoftext|>")


def build_character_tokenizer() -> Any:
    """Return a tokenizer of single characters with byte fallback, in SentencePiece's form, and a ChatML template."""
    # The names that readers of this form of vocabulary expect come first.
    special = ("<unk>", "<s>", "</s>", *SPECIAL_TOKENS[1:])
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *map(chr, range(0x21, 0x7F))]
    raw = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)}, merges=[], byte_fallback=True,
            unk_token="<unk>",  # noqa: S106
        )
    )  # fmt: skip
    raw.normalizer = normalizers.Replace(" ", "\u2581")
    raw.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return _wrap(raw, "<s>", "<unk>", add_prefix_space=False)


def _wrap(raw: Tokenizer, begin: str, unknown: str, **options: Any) -> Any:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=begin, eos_token="<|im_end|>", pad_token="<|im_end|>",  # noqa: S106
        unk_token=unknown, additional_special_tokens=list(SPECIAL_TOKENS[1:]), model_max_length=512, **options,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _randomize_biases(model: torch.nn.Module) -> None:
    """Give biases and norms values that are not their neutral ones, so that a forgotten one shows."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)


def _patch_config(folder: Path) -> None:
    """Add what llama.cpp's converter still looks for and Transformers 5 no longer writes."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["model_type"] == "gpt2":
        config["n_ctx"] = config["n_positions"]
    if config["model_type"] == "gpt_neox":
        rope = config.get("rope_parameters") or {}
        config.setdefault("rotary_pct", rope.get("partial_rotary_factor", 0.25))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    path = folder / "tokenizer_config.json"
    # llama.cpp would begin every prompt with <s> otherwise, Transformers does not.
    options = json.loads(path.read_text(encoding="utf-8")) | {"add_bos_token": False}
    path.write_text(json.dumps(options, indent=2, sort_keys=True) + "\n", encoding="utf-8")
