"""The way through a conversion: recognise, vet, convert, canonical form, run beside the original.

What torch itself runs (`.pt2`, TorchScript) and does not become ONNX, or another model, is kept as it is: the archive
that vetting made of it, for the torch engine of workers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from services.optimizer.conversion import architectures, keras_config, parity, program_archive, script_archive, weights
from services.optimizer.conversion.canonical import OPSET, canonical
from services.optimizer.conversion.recognise import CONFIG, recognise
from services.optimizer.conversion.source import NotConvertible
from services.optimizer.formats import TORCHS_OWN
from services.optimizer.rejections import Rejection
from services.optimizer.sandbox import signature, vet
from services.optimizer.sandbox.engine import Engine
from shared.events import Conversion
from shared.runtime_config import TORCH

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.optimizer.conversion.recognise import Recognised
    from services.optimizer.conversion.source import Loaded, Source
    from services.optimizer.messages import Job
    from shared.signature import Signature


TOKENIZER = "tokenizer.json"
"""In a bundle it is only looked at: what texts become is declared with the upload."""


_NO_ONNX_FORM: Final = frozenset(
    {
        "not_convertible",
        "not_equivalent",
        "invalid_model",
        "load_failed",
        "operator_domain",
        "unsupported_operator",
        "unsupported_opset",
    }
)
"""What may be wrong with the ONNX that was made of a program, and says nothing against the program."""


@dataclass(frozen=True)
class Converted:
    """One file, ONNX if it can be, and how it came about."""

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
    sha256 = hashlib.sha256(content).hexdigest()
    if found.format not in TORCHS_OWN:
        return _as_onnx(_source(found, content, job), found.format, sha256, job, say)
    loaded = program(found, job.threads)
    try:
        return _as_onnx(loaded.source(), found.format, sha256, job, say)
    except Rejection as rejection:
        if rejection.code not in _NO_ONNX_FORM:
            raise
        return _as_it_is(loaded, rejection, Conversion(format=found.format, sha256=sha256, engine=TORCH))


def _as_it_is(loaded: Loaded, why: Rejection, about: Conversion) -> Converted:
    """The program itself.

    Raises:
        NotConvertible: what it takes or gives can't be carried.
    """
    try:
        loaded.signature()
    except Rejection as rejection:
        raise NotConvertible(f"{why.found}. Nor can it be served as it is: {rejection.found}") from why
    return Converted(loaded.content, replace(about, how="vetted, and kept as it is", problem=why.found[:4000]))


def _as_onnx(source: Source, name: str, sha256: str, job: Job, say: Callable[[str, float], None]) -> Converted:
    """The canonical form, run beside the original.

    Raises:
        NotConvertible: it has none.
        Rejection: it is no model that can be served, or answers otherwise.
    """
    about = {"source_format": name, "source_sha256": sha256, "how": source.how}
    # A model that was one before keeps its opset: no number of it is changed.
    made = source.model if source.run is None else canonical(source.model, about)
    inline = made.SerializeToString(deterministic=True)
    del made
    say("vet", 0.6)
    model = vet.parse(inline)
    ran = _compared(inline, signature.read(model), source, job, say)
    conversion = Conversion(
        format=name,
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


def program(found: Recognised, threads: int) -> Loaded:
    """An upload of one of torch's own formats: vetted, then loaded.

    Raises:
        NotConvertible: torch does not load it, or it uses what is not taken here.
        Rejection: it does more than compute.
    """
    archive, member = found.archive, found.member
    assert archive is not None  # noqa: S101 - for the type checker: both formats are archives
    own = archive if member is None else archive.inner(member)
    if found.format == "torchscript":
        config = script_archive.takes(own, archive.read(CONFIG) if member and CONFIG in archive else None)
        clean = script_archive.vetted(own, config)
        from services.optimizer.conversion import torchscript  # noqa: PLC0415 - it loads torch

        return torchscript.Script(clean, config, threads)
    clean = program_archive.vetted(own)
    from services.optimizer.conversion import pt2  # noqa: PLC0415 - as above

    return pt2.Program(clean, threads)


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
        case "savedmodel" | "keras" | "tflite":
            if found.format == "keras" and archive is not None:
                keras_config.check(archive)
            from services.optimizer.conversion import tensorflow  # noqa: PLC0415 - as heavy as its name

            return tensorflow.convert(found.format, archive, content)
        case _:
            raise Rejection("unsupported_format", f"Nothing here converts {found.format}")
