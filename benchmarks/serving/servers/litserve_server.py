"""LitServe (https://lightning.ai/docs/litserve): FastAPI in front, the model in a worker process behind ZeroMQ."""

# Annotations are for LitServe to read, so they must not be strings.
import sys
from typing import Any

import litserve  # type: ignore[import-not-found]  # the peer's own environment has it
from fastapi import Response

from benchmarks.serving.servers.onnx_model import MAX_BATCH, MAX_WAIT_MS, OnnxModel, arrays


class Infer(litserve.LitAPI):  # type: ignore[misc]  # its type is not known here
    """Decodes, runs a batch, encodes."""

    def __init__(self, path: str, threads: int) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=MAX_WAIT_MS / 1000, api_path="/infer")
        self._path = path
        self._threads = threads

    def setup(self, _device: str) -> None:
        """Open the session."""
        self._model = OnnxModel(self._path, self._threads)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Its JSON was read in front; what travels to the worker is pickled."""
        return arrays(request)

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Leave it to `predict`, which knows the inputs' names."""
        return inputs

    def predict(self, x: list[dict[str, Any]]) -> list[list[Any]]:
        """Run a batch."""
        return self._model.run_rows(x)

    def unbatch(self, output: list[list[Any]]) -> list[list[Any]]:
        """Taken apart already."""
        return output

    def encode_response(self, output: list[Any]) -> Response:
        """Encode one answer."""
        return Response(self._model.answer(output), media_type="application/json")


def main() -> None:
    model, port, threads = sys.argv[1:]
    server = litserve.LitServer(Infer(model, int(threads)), accelerator="cpu", fast_queue=True, timeout=60)
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False, access_log=False)


if __name__ == "__main__":
    main()
