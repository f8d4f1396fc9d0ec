"""The kind ``import_model``: a base model from a folder, a GGUF file or a hub becomes an artifact.

The artifact holds safetensors, config, tokenizer, chat template and the card. Pickles and Python files are never
copied; nothing that ships with a model is run.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import GenerationConfig

from burnish.core.errors import BadModel, NotFound, Unavailable
from burnish.core.job import JobContext
from burnish.core.specs.fine_tuning import ImportModelResult, ImportModelSpec
from burnish.core.specs.model import MODEL_CARD_FILE, ModelCard
from burnish.ml.model import (
    context_length,
    dtype_and_bits,
    load_model,
    load_tokenizer,
    quiet,
    read_card,
    read_config,
    use_threads,
    write_card,
)
from burnish.ml.unpack import unpack
from burnish.ml.weights import PICKLE_SUFFIXES, quantization_name, read_gguf, safetensors_in, weight_files

KEPT_PATTERNS = (
    "*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
    "chat_template*", "LICENSE*", "README.md", MODEL_CARD_FILE,
)  # fmt: skip
"""What is copied or downloaded; everything else stays where it is."""
_LEFT_PATTERNS = ("consolidated*",)
"""The same weights once more, for other programs."""

_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_QUANTIZATION_SUFFIX = re.compile(r"[.\-_](I?Q\d\w*|F16|F32|BF16|FP16)$", re.IGNORECASE)


@dataclass(frozen=True)
class _Origin:
    """What is known of where a model came from."""

    name: str
    source: str
    shipped_as: str | None = None
    licence: str | None = None


def import_model(spec: ImportModelSpec, context: JobContext) -> ImportModelResult:
    """Make a base model an artifact.

    Raises:
        BadModel: pickles only, files whose headers lie, code of its own, an unknown architecture, no tokenizer.
        NotFound: no such file, folder or hub repository.
        Unavailable: the hub cannot be reached and the model is not in its cache.
    """
    use_threads(context.resources.cpus)
    staged = context.stage("model")
    context.progress(0, 3, phase="reading the model", unit="stages")
    origin = _bring(spec, staged, context)
    context.check_stop()
    context.progress(1, 3, phase="checking the model", unit="stages")
    card = _check(spec, staged, origin)
    context.check_stop()
    context.progress(2, 3, phase="publishing the model", unit="stages")
    write_card(staged, card)
    model = context.publish(staged, "model", card.model_dump(mode="json"))
    context.progress(3, 3, phase="done", unit="stages")
    context.log(f"imported {card.name}: {card.architecture}, {card.parameters:,} parameters, {card.dtype}")
    return ImportModelResult(
        model=model, name=card.name, architecture=card.architecture, parameters=card.parameters,
        shipped_as=card.shipped_as, licence=card.licence, source=card.source,
    )  # fmt: skip


def _bring(spec: ImportModelSpec, staged: Path, context: JobContext) -> _Origin:
    path = Path(spec.source).expanduser()
    if path.is_dir():
        return _from_folder(path, staged, context)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return _from_gguf(path, staged, context)
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise BadModel(
                "the weights are a pickle, which can run code when it is read",
                where=str(path),
                hint="save the model as safetensors",
            )
        raise BadModel("a single file is read only as GGUF", where=str(path), hint="give the folder that holds it")
    if _HUB_NAME.match(spec.source) and not spec.source.startswith((".", "~")):
        return _from_hub(spec, staged, context)
    raise NotFound(
        f"no such model: {spec.source}", where="source", hint="a folder, a GGUF file, or a hub name such as org/name"
    )


def _from_folder(folder: Path, staged: Path, context: JobContext) -> _Origin:
    read_config(folder)
    safetensors_in(folder)
    _copy_kept(folder, staged, context)
    if (folder / MODEL_CARD_FILE).is_file():
        card = read_card(folder)
        return _Origin(card.name, card.source, card.shipped_as, card.licence)
    return _Origin(folder.resolve().name, str(folder.resolve()))


def _copy_kept(folder: Path, staged: Path, context: JobContext) -> None:
    weights = weight_files(folder)
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        if path.suffix == ".safetensors" and path not in weights:
            context.log(f"left out {path.name}: the model is not loaded from it")
        elif any(path.match(pattern) for pattern in KEPT_PATTERNS) and path.suffix not in (".py", *PICKLE_SUFFIXES):
            shutil.copyfile(path, staged / path.name)
        elif path.suffix in PICKLE_SUFFIXES:
            context.log(f"left out {path.name}: pickles are not read", "warning")


def _from_gguf(path: Path, staged: Path, context: JobContext) -> _Origin:
    tensors = read_gguf(path)
    shipped_as = quantization_name(tensors)
    context.log(f"unpacking {path.name} ({shipped_as}) to bfloat16")
    model, tokenizer = unpack(path)
    _save(model, tokenizer, staged)
    return _Origin(_QUANTIZATION_SUFFIX.sub("", path.stem), str(path.resolve()), shipped_as)


def _save(model: Any, tokenizer: Any, staged: Path) -> None:
    """Write what was unpacked. Paths of this machine and made-up sampling defaults are left out."""
    if tokenizer.eos_token_id is not None:
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )  # fmt: skip
    model.config.name_or_path = ""
    with quiet():
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)


def _from_hub(spec: ImportModelSpec, staged: Path, context: JobContext) -> _Origin:
    offline = constants.HF_HUB_OFFLINE or os.environ.get("BURNISH_HUB_OFFLINE", "").lower() in (
        "1",
        "true",
        "yes",
        "on",
    )
    context.log(f"taking {spec.source} from the {'local hub cache' if offline else 'hub'}")
    licence: str | None = None
    commit = spec.revision
    try:
        if not offline:
            info = HfApi().model_info(spec.source, revision=spec.revision)
            commit = info.sha
            licence = info.card_data.get("license") if info.card_data else None
        folder = Path(
            snapshot_download(
                spec.source,
                revision=commit,
                allow_patterns=list(KEPT_PATTERNS),
                ignore_patterns=list(_LEFT_PATTERNS),
                local_files_only=offline,
                max_workers=4,
            )
        )
    except RepositoryNotFoundError as error:
        raise NotFound(
            f"the hub has no model {spec.source}", where="source", hint="check the name, and HF_TOKEN for a private one"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise Unavailable(
            f"the model {spec.source} is not in the local cache and the hub cannot be asked: {error}",
            where="source",
            hint="give a folder or a GGUF file, or unset HF_HUB_OFFLINE where there is a hub",
        ) from error
    read_config(folder)
    safetensors_in(folder)
    _copy_kept(folder, staged, context)
    return _Origin(spec.source.rpartition("/")[2], f"{spec.source}@{commit or folder.name}", None, licence)


def _check(spec: ImportModelSpec, staged: Path, origin: _Origin) -> ModelCard:
    """Load everything once, so that what is published is known to load."""
    tokenizer = load_tokenizer(staged)
    model = load_model(staged, "auto")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise BadModel(
            f"the tokenizer has {len(tokenizer)} tokens, the model rows for {rows}", where=str(staged),
            hint="the tokenizer and the weights do not belong together",
        )  # fmt: skip
    tensors = safetensors_in(staged)
    dtype, bits = dtype_and_bits(tensors)
    return ModelCard(
        name=spec.name or origin.name, architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()), dtype=dtype, bits_per_weight=bits,
        source=origin.source, shipped_as=origin.shipped_as, licence=spec.licence or origin.licence,
        context_length=context_length(model.config), chat_template=tokenizer.chat_template is not None,
    )  # fmt: skip
