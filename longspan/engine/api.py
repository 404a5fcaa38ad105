"""`load` and `applied`: the two ways in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from longspan.engine.applied import Applied
from longspan.engine.encoder import AppliedEncoder
from longspan.engine.encoder_plan import is_encoder
from longspan.engine.model import LoadedModel, SpanModel
from longspan.engine.save import open_context
from longspan.errors import UnsupportedLayerError, UserInputError, first_sentence
from longspan.spec import Spec

__all__ = ["applied", "load", "open_context"]

REFERENCE = "reference"
_DOWNLOAD_AGAIN = "copy or download the model again, or use another"


def load(
    model: str | Path | PreTrainedModel,
    methods: Spec = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    tokenizer: Any = None,
    chunk_tokens: int | None = None,
    local_files_only: bool | None = None,
    trust_remote_code: bool = False,
) -> SpanModel:
    """Load a causal language model under a spec.

    Args:
        model: "reference" (bundled), a hub id, a folder, or a loaded `PreTrainedModel` (which stays attached until
            `SpanModel.detach()`; forwards without a longspan cache keep stock attention meanwhile).
        methods: a spec such as "yarn(factor=4) + snapkv(keep=0.25)"; None changes nothing.
        dtype: default float32 on a CPU (bfloat16 there is many times slower), elsewhere the checkpoint's own (bfloat16 for
            "reference").
        device: default "cuda" where there is one, else "cpu".
        tokenizer: for a loaded model, or instead of the folder's own.
        chunk_tokens: tokens per forward while reading; default 1024 on a CPU, 8192 on a GPU.
        local_files_only: never ask the hub.

    Raises:
        UserInputError, UnsupportedLayerError: one sentence with what was got and what to do.
    """
    if isinstance(model, PreTrainedModel):
        if dtype is not None or device is not None:
            raise UserInputError(
                "dtype and device are settings of loading; move the model yourself before longspan.load(model)"
            )
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        return _open(LoadedModel(model, tokenizer, name), methods, chunk_tokens)
    if not isinstance(model, str | Path):
        raise UserInputError(
            f"got a {type(model).__name__} as the model; give a hub id, a folder, 'reference', or a PreTrainedModel"
        )
    place = _device(device)
    kind = _dtype(dtype, place)
    if str(model) == REFERENCE:
        from longspan.reference import load_reference

        # its weights are stored in 8 bits: float32 would be no truer, and is many times slower on a GPU
        loaded, found = load_reference(dtype=kind or torch.bfloat16)
    else:
        loaded, found = _from_pretrained(
            str(model), kind, local_files_only, trust_remote_code, tokenizer is None
        )
    return _open(LoadedModel(loaded.to(place), tokenizer or found, str(model)), methods, chunk_tokens)


def _open(loaded: LoadedModel, methods: Spec, chunk_tokens: int | None) -> SpanModel:
    """The model under a spec; a refused spec leaves nothing attached."""
    try:
        return SpanModel(loaded, methods, chunk_tokens=chunk_tokens)
    except ValueError:
        loaded.seam.detach()
        raise


@contextmanager
def applied(model: PreTrainedModel, methods: Spec) -> Iterator[PreTrainedModel]:
    """Stock `generate()`, pipelines and assisted decoding under a spec, inside the `with` block; encoders' forward, too.

    The prompt counts as the text: methods that compact after reading do so at its end. An encoder, such as BERT, takes
    methods of positions. Leaving the block restores the model exactly.
    """
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    if is_encoder(model):
        with AppliedEncoder(model, name, methods):
            yield model
        return
    with Applied(LoadedModel(model, None, name), methods):
        yield model


def _device(device: str | torch.device | None) -> torch.device:
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError) as error:
        # A build of torch without CUDA says so by an assertion.
        raise UserInputError(
            f"got device={str(device)!r}, which is not here; use cpu, or cuda on a machine with a GPU"
        ) from error
    return place


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        raise UserInputError(f"got dtype={dtype!r}; allowed are float32, bfloat16 and float16")
    return found


def _from_pretrained(
    name: str, dtype: torch.dtype | None, local_only: bool | None, trust: bool, with_tokenizer: bool
) -> tuple[PreTrainedModel, Any]:
    looks_local = not name or Path(name).exists() or name.startswith((".", "/", "~"))
    if looks_local and not (Path(name).expanduser() / "config.json").is_file():
        raise UserInputError(
            f"{name or repr(name)} is not a model folder (it has no config.json); give a folder in Hugging Face format or a hub id"
        )
    where = {"trust_remote_code": trust, "local_files_only": bool(local_only) or looks_local}
    try:
        config = AutoConfig.from_pretrained(name, **where)
    except (OSError, ValueError) as error:
        if looks_local or isinstance(error, ValueError):
            raise UserInputError(
                f"cannot read the config.json of {name} ({first_sentence(error)}); "
                "give a complete model folder, of a kind that this version of transformers knows"
            ) from error
        raise UserInputError(
            f"cannot find the model {name!r}: not a folder here, and the hub did not give it; "
            "check the spelling, or use the bundled model: reference"
        ) from error
    _refuse_other_kinds(name, config)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype or "auto", output_loading_info=True, **where
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError, EOFError) as error:
        raise UserInputError(
            f"cannot load the weights of {name} ({first_sentence(error)}); {_DOWNLOAD_AGAIN}"
        ) from error
    # Transformers fills what is missing with random numbers and only warns.
    if missing := sorted(report["missing_keys"]):
        raise UserInputError(
            f"the weights of {name} lack {missing[0]} ({len(missing)} missing in all); {_DOWNLOAD_AGAIN}"
        )
    return model, _tokenizer(name, where) if with_tokenizer else None


def _tokenizer(name: str, where: dict[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, **where)
    except Exception as error:  # the tokenizers library raises nothing more special for a broken file
        raise UserInputError(
            f"cannot load the tokenizer of {name} ({first_sentence(error)}); "
            "add its tokenizer files to the folder, or load it with tokenizer=..."
        ) from error


def _refuse_other_kinds(name: str, config: Any) -> None:
    architectures = getattr(config, "architectures", None) or []
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    named = [a for a in architectures if "CausalLM" in a or "LMHead" in a or "ConditionalGeneration" in a]
    if config.is_encoder_decoder or not causal or (architectures and not named):
        what = architectures[0] if architectures else config.model_type
        raise UnsupportedLayerError(
            f"{name} is a {what}, not a causal language model; longspan serves decoder-only models that generate text"
        )
