"""MLServer (https://mlserver.readthedocs.io): an inference runtime of one's own, as its documentation tells to write.

The server itself decodes the Open Inference Protocol and batches; the runtime gets whole batches.
"""

from __future__ import annotations

from mlserver import MLModel  # type: ignore[import-not-found]  # the peer's own environment has it
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]  # as above
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]  # as above

from benchmarks.serving.servers.onnx_model import OnnxModel


class OnnxRuntime(MLModel):  # type: ignore[misc]  # its type is not known here
    """One ONNX model; `threads` is a parameter of its settings."""

    async def load(self) -> bool:
        """Open the session."""
        parameters = self.settings.parameters
        self._onnx = OnnxModel(parameters.uri, int(parameters.model_extra["threads"]))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run a batch."""
        outputs = self._onnx.run({each.name: NumpyCodec.decode_input(each) for each in payload.inputs})
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                NumpyCodec.encode_output(name, output) for name, output in zip(self._onnx.outputs, outputs, strict=True)
            ],
        )
