"""mosec (https://mosecorg.github.io/mosec): HTTP and batching in Rust, the model in one worker process."""

from __future__ import annotations

import os
import sys
from typing import Any

from mosec import Server, Worker  # type: ignore[import-not-found]  # the peer's own environment has it

from benchmarks.serving.servers.onnx_model import MAX_BATCH, MAX_WAIT_MS, OnnxModel, feeds


class Infer(Worker):  # type: ignore[misc]  # its type is not known here
    """Decodes, runs a batch, encodes."""

    resp_mime_type = "application/json"

    def __init__(self) -> None:
        super().__init__()
        self._model = OnnxModel(os.environ["BENCH_MODEL"], int(os.environ["BENCH_THREADS"]))

    def deserialize(self, data: bytes) -> dict[str, Any]:
        """Decode one request."""
        return feeds(data)

    def serialize(self, data: list[Any]) -> bytes:
        """Encode one answer."""
        return self._model.answer(data)

    def forward(self, data: list[dict[str, Any]]) -> list[list[Any]]:
        """Run a batch."""
        return self._model.run_rows(data)


def main() -> None:
    model, port, threads = sys.argv[1:]
    os.environ |= {"BENCH_MODEL": model, "BENCH_THREADS": threads}  # its worker is a process of its own
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", port, "--log-level", "warning", "--timeout", "60000"]
    server = Server()
    server.append_worker(Infer, max_batch_size=MAX_BATCH, max_wait_time=MAX_WAIT_MS, route="/infer")
    server.run()


if __name__ == "__main__":
    main()
