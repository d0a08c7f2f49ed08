"""Text embeddings from any text encoder of the transformers library, each computed once and cached on disk.

Models are loaded from safetensors files only, and no code from a model is executed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from modalities.hub import offline_hub
from multisagd.libraries import failed_import, importing
from multisagd.logs import quiet

CACHED_IN_MEMORY = 512
"""Number of captions whose embeddings are kept in memory: up to about 600 MB with the largest encoders."""


class TextEncoder:
    """A text encoder: `encoder(texts)` returns float32 (batch, tokens, width), with rows of zeros as padding.

    It returns the last hidden states of the tokens, including special tokens before and after the text. It uses the
    encoder of encoder-decoder models (T5), and the text encoder of image-text models (CLIP). Captions are encoded one
    by one, so that an embedding does not depend on the rest of the batch. An empty caption has no tokens.

    `name` is a model id on the Hub or a local folder. `cache` is a folder of embeddings, one safetensors file per
    caption, named by a hash of the model's weights and the tokens, in 256 subfolders; damaged files are replaced.
    Captions are truncated to `max_tokens`. The encoder is thread-safe. If `trusted` is False, because the settings came
    with another person's run, the model is looked up on this machine only, and nothing is cached.

    Raises:
        ValueError: If transformers is not installed, the model cannot be loaded from safetensors, or `max_tokens` is
            below 1 or above the model's maximum.
        OSError: If the cache folder cannot be created.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        max_tokens: int = 77,
        cache: Path | None = None,
        device: str | None = None,
        trusted: bool = True,
    ) -> None:
        self.name, self.max_tokens = name, max_tokens
        self._tokenizer, self._model = _load(name, revision, trusted)
        # Relative positions (T5) have no limit; some models reserve a few entries in their table of positions.
        positions = getattr(self._model.config, "max_position_embeddings", None)
        longest = max_tokens if positions is None else min(positions, self._tokenizer.model_max_length)
        if not 1 <= max_tokens <= longest:
            raise ValueError(f"max_tokens={max_tokens} of {name} must be from 1 to {longest}")
        self._model.to(device or "cpu")
        self.fingerprint = _fingerprint(self._model)
        self.cache = None if cache is None or not trusted else cache / self.fingerprint
        if self.cache is not None:
            self.cache.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._embedding = lru_cache(CACHED_IN_MEMORY)(self._find)

    @property
    def width(self) -> int:
        """Width of an embedding: its number of features."""
        return int(self._model.config.hidden_size)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings `(batch, tokens, width)` of captions, zero-padded to the longest, on the CPU."""
        embeddings = [self._embedding(text.strip()) for text in texts]
        return torch.nn.utils.rnn.pad_sequence(embeddings, batch_first=True)

    def _find(self, text: str) -> Tensor:
        if not text:
            return torch.zeros(0, self.width)
        with self._lock:  # a tokenizer changes its state when it truncates
            tokens: list[int] = self._tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        if self.cache is None:
            return self._compute(tokens)
        # The name is a hash of the tokens, not of the text, so that it depends on the tokenizer and max_tokens too.
        name = hashlib.sha256(repr(tokens).encode()).hexdigest()
        path = self.cache / name[:2] / f"{name}.safetensors"
        embedding = _read(path, (len(tokens), self.width))
        if embedding is None:
            embedding = self._compute(tokens)
            _write(path, embedding)
        return embedding

    @torch.no_grad()
    def _compute(self, tokens: list[int]) -> Tensor:
        ids = torch.tensor([tokens], device=self._model.device)
        with self._lock:
            states: Tensor = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return states[0].float().cpu()


def _load(name: str, revision: str | None, fetch: bool) -> tuple[Any, Any]:
    """Return the tokenizer and the encoder, in float32 and evaluation mode."""
    with importing("transformers", "text"):
        import transformers  # takes seconds
    options = {"revision": revision, "trust_remote_code": False}
    try:
        # `local_files_only` does not prevent all requests of the library, which looks up models by name.
        with offline_hub(not fetch):
            return _loaded(transformers, name, {**options, "local_files_only": not fetch})
    except (OSError, ValueError, KeyError, SafetensorError, RecursionError) as error:
        if (failure := failed_import(error)) is not None:
            raise failure from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        fetched = f"; a run's configuration downloads nothing: add text_model={name}" if not fetch else ""
        raise ValueError(
            f"cannot load the text encoder {name!r} ({reason}): specify a model on the Hugging Face Hub, or a local "
            f"folder with config.json, tokenizer files and weights as safetensors{fetched}"
        ) from error


def _loaded(transformers: Any, name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
    config = transformers.AutoConfig.from_pretrained(name, **options)
    config = getattr(config, "text_config", config)
    known = type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
    kind = transformers.AutoModelForTextEncoding if known else transformers.AutoModel
    # Extra weights in a file are not an error; missing weights are initialised with torch's generator.
    with quiet("transformers"), torch.random.fork_rng(devices=()):
        model, facts = kind.from_pretrained(
            name, **options, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    # A pooler maps the tokens to one vector; it is not used here, and many files omit it.
    missing = sorted(key for key in facts["missing_keys"] if "pooler" not in key)
    if missing:
        raise ValueError(f"the weights of the text encoder {name!r} are incomplete: {', '.join(missing[:3])}, …")
    encoder = model.get_encoder() if model.config.is_encoder_decoder and not known else model
    return tokenizer, encoder.eval().requires_grad_(False)


def _fingerprint(model: torch.nn.Module) -> str:
    """Return a hash of the names and shapes of a model's weights, and of about 1,000 evenly spaced values of each."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.flatten()
        values = flat[:: max(1, flat.numel() // 1000)].double().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:32]


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """Return a cached embedding, or None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            embedding: Tensor = file.get_tensor("embedding")
            intact = (file.metadata() or {}).get("sha256") == _checksum(embedding)
    except (OSError, SafetensorError):
        return None
    return embedding if intact and embedding.shape == shape else None


def _write(path: Path, embedding: Tensor) -> None:
    """Cache an embedding atomically, because other threads and runs may read the same folder."""
    path.parent.mkdir(exist_ok=True)
    data = save({"embedding": embedding.contiguous()}, {"sha256": _checksum(embedding)})
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    # `mkstemp` creates files that only their owner can read, but caches are often shared.
    Path(partial).chmod(path.parent.stat().st_mode & 0o666)
    Path(partial).replace(path)


def _checksum(embedding: Tensor) -> str:
    return hashlib.sha256(embedding.numpy().tobytes()).hexdigest()
