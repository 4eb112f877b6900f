"""Why an upload can't be served: every code that `ModelRejected` may carry, and what its owner can do about it.

A reason is what was found, followed by the advice of its code. Codes are stable; sentences may change.
"""

from __future__ import annotations

from typing import Final

_EXPORT: Final = (
    "From PyTorch, torch.onnx.export(model, args, 'model.onnx', dynamo=True, opset_version=20) writes an ONNX file; "
    "scikit-learn models convert with skl2onnx, TensorFlow and Keras with tf2onnx"
)

ADVICE: Final[dict[str, str]] = {
    # The file, before anything looks into it.
    "model_too_large": "Upload a smaller file, or have the operator raise AIAAS_MAX_MODEL_BYTES",
    "artifact_not_found": "Upload the file again; an upstream system must store it before it announces it",
    "digest_mismatch": "The stored bytes are not those that were announced: upload the file again",
    "invalid_artifact": "Announce a URI within the platform's own artifact store, or upload through the gateway",
    # What is in it.
    "unsupported_format": (
        f"docs/formats.md lists what is taken; one ONNX file always is. {_EXPORT}. Pickles, joblib files and whole "
        "models (.pt) are converted at home: `aiaas models convert FILE --trust`"
    ),
    "format_not_allowed": (
        "Loading it can run what is in the file, so the operator has to allow it, by that variable; or export the "
        "model to ONNX where it was trained"
    ),
    "unsafe_archive": (
        "A bundle is a zip or an uncompressed tar of plain files with relative names; make it anew from the files alone"
    ),
    "invalid_bundle": "docs/formats.md shows what a bundle holds, file by file",
    "unsafe_model": (
        "Only what computes is taken: no pickles, no custom or Python operators, nothing that reads or writes files. "
        "Export the model to ONNX where it was trained"
    ),
    "not_convertible": f"Convert it where it was trained. {_EXPORT}",
    "not_equivalent": (
        "The model is not deterministic, or an operator converts wrongly: export it where it was trained and compare"
    ),
    "invalid_model": "onnx.checker.check_model(path, full_check=True) shows such problems at home: export it again",
    "external_data": (
        "Upload a zip of the ONNX file and the files that it names, or one file with its tensors inside: "
        "onnx.save(onnx.load('model.onnx'), 'inline.onnx', save_as_external_data=False)"
    ),
    "operator_domain": (
        "Only operators of ai.onnx, ai.onnx.ml and com.microsoft run here, and functions defined in the file itself; "
        "export without custom operators"
    ),
    "unsupported_opset": "Export again with opset_version=20",
    "unsupported_operator": "ONNX Runtime has no kernel for it: export with another opset_version or datatype",
    "unsupported_input": (
        "Inputs and outputs must be dense tensors of a known rank, with printable names, in a datatype of the Open "
        "Inference Protocol"
    ),
    "processing_mismatch": (
        "Steps name the model's own inputs and outputs as they are in the file, and fill them in their datatypes and "
        "shapes: correct the declaration and upload again"
    ),
    "tokenizer_unusable": (
        "tokenizers.Tokenizer.from_file('tokenizer.json').encode('text') shows the same at home; look at the regular "
        "expressions in the file if it is slow"
    ),
    # How it behaves.
    "load_failed": "onnxruntime.InferenceSession(path) shows the same at home: export it again",
    "execution_failed": (
        "It did not run on any input that was tried: name the free dimensions that must be equal alike, and give "
        "the others fixed sizes"
    ),
    "run_timeout": "Look for a Loop that does not end, or have the operator raise AIAAS_RUN_TIMEOUT_S",
    "out_of_memory": "Look for tensors of enormous shapes, or have the operator raise AIAAS_SANDBOX_MEMORY_BYTES",
    "data_unusable": (
        "numpy.savez(file, **{input: rows, ..., 'label': classes}) makes a data set: an array for each input of the "
        "model, by its name, with rows along the first axis"
    ),
    "not_exportable": (
        "docs/export.md lists the operators that torch and TensorFlow formats cover; format onnx gives every version"
    ),
    "not_trained": "Look at the data, the operators that can be trained, and the learning rate",
    "vet_timeout": "Upload a smaller model, or have the operator raise AIAAS_JOB_TIMEOUT_S",
    "vet_crashed": "The process that examined the file died of it. Try whether onnxruntime loads and runs it at home",
    "optimizer_crashed": "Optimizers died whenever they worked on it. Have the operator look at their logs",
}


class Rejection(Exception):
    """The model can't be served: a code of `ADVICE`, and what was found."""

    def __init__(self, code: str, found: str) -> None:
        super().__init__(f"{code}: {found}")
        self.code = code
        self.found = found


_MAX_FOUND_CHARS: Final = 1500


def reason(code: str, found: str) -> str:
    """The sentences that the uploader reads: what was found, and what to do."""
    return f"{found[:_MAX_FOUND_CHARS].strip().rstrip('.')}. {ADVICE[code]}."
