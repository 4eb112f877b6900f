"""The way through a conversion: recognise, vet, convert, canonical form, run beside the original."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.optimizer.conversion import architectures, keras_config, parity, program_archive, script_archive, weights
from services.optimizer.conversion.canonical import OPSET, canonical
from services.optimizer.conversion.recognise import CONFIG, recognise
from services.optimizer.rejections import Rejection
from services.optimizer.sandbox import signature, vet
from services.optimizer.sandbox.engine import Engine
from shared.events import Conversion

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.optimizer.conversion.recognise import Recognised
    from services.optimizer.conversion.source import Source
    from services.optimizer.messages import Job
    from shared.signature import Signature


TOKENIZER = "tokenizer.json"
"""In a bundle it is only looked at: what texts become is declared with the upload."""


@dataclass(frozen=True)
class Converted:
    """One ONNX file, and how it came about."""

    content: bytes
    conversion: Conversion


def convert(content: bytes, expected: str, job: Job, say: Callable[[str, float], None]) -> Converted:
    """Make one ONNX file of an upload of the format `expected`.

    Raises:
        NotConvertible: it has no ONNX form.
        Rejection: something is wrong with it.
    """
    say("recognise", 0.05)
    limit_bytes = job.limits.file_bytes // 2
    found = recognise(content, limit_bytes)
    if found.format != expected:
        raise Rejection("unsupported_format", f"The file is {found.format}, and was taken for {expected}")
    if found.archive is not None and TOKENIZER in found.archive:
        from services.optimizer.sandbox import tokenizer  # noqa: PLC0415 - most models bring none

        say("tokenizer", 0.08)
        tokenizer.vet_content(found.archive.read(TOKENIZER))
    say("convert", 0.1)
    source = _source(found, content, job)
    sha256 = hashlib.sha256(content).hexdigest()
    about = {"source_format": found.format, "source_sha256": sha256, "how": source.how}
    # A model that was one before keeps its opset: no number of it is changed.
    made = source.model if source.run is None else canonical(source.model, about)
    inline = made.SerializeToString(deterministic=True)
    del made
    say("vet", 0.6)
    model = vet.parse(inline)
    ran = _compared(inline, signature.read(model), source, job, say)
    conversion = Conversion(
        format=found.format,
        sha256=sha256,
        how=source.how[:4000],
        opset=OPSET if source.run is not None else max(each.version for each in model.opset_import),
        shapes=ran.shapes if ran else (),
        max_abs_error=ran.max_abs_error if ran else 0.0,
        rtol=parity.RTOL if ran else 0.0,
        atol=parity.ATOL if ran else 0.0,
    )
    return Converted(inline, conversion)


def _compared(
    inline: bytes, found: Signature, source: Source, job: Job, say: Callable[[str, float], None]
) -> parity.Parity | None:
    if source.run is None:
        return None
    say("compare", 0.7)
    engine = Engine(inline, found, threads=job.threads, run_timeout_s=job.run_timeout_s)
    return parity.compare(engine, found, source.run, source.settings)


def _source(found: Recognised, content: bytes, job: Job) -> Source:
    """By format; each pays for its own imports."""
    archive, member = found.archive, found.member
    match found.format:
        case "onnx-bundle" if archive is not None and member is not None:
            from services.optimizer.conversion import onnx_bundle  # noqa: PLC0415

            return onnx_bundle.convert(archive, member)
        case "safetensors" if archive is not None and member is not None:
            config, tensors = architectures.parse(archive.read(CONFIG)), weights.read(archive.read(member))
            from services.optimizer.conversion import networks  # noqa: PLC0415 - it loads torch

            return networks.convert(config, tensors, job.threads)
        case "pt2" if archive is not None:
            clean = program_archive.vetted(archive if member is None else archive.inner(member))
            from services.optimizer.conversion import pt2  # noqa: PLC0415 - it loads torch

            return pt2.convert(clean, job.threads)
        case "torchscript" if archive is not None:
            script = archive if member is None else archive.inner(member)
            clean = script_archive.vetted(script)
            takes = script_archive.takes(script, archive.read(CONFIG) if member and CONFIG in archive else None)
            from services.optimizer.conversion import torchscript  # noqa: PLC0415 - it loads torch

            return torchscript.convert(clean, takes, job.threads)
        case "savedmodel" | "keras" | "tflite":
            if found.format == "keras" and archive is not None:
                keras_config.check(archive)
            from services.optimizer.conversion import tensorflow  # noqa: PLC0415 - as heavy as its name

            return tensorflow.convert(found.format, archive, content)
        case _:
            raise Rejection("unsupported_format", f"Nothing here converts {found.format}")
