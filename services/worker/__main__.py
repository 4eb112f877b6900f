"""`python -m services.worker`: run one worker, configured by the environment."""

import os

from services.worker.settings import WorkerSettings
from shared import logs, process, settings


def main() -> None:
    """Read the settings, set up logging, serve until told to stop."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # see `torch_engine`
    from services.worker.app import serve  # noqa: PLC0415 - ONNX Runtime is imported only by who runs a worker

    configured = settings.read(WorkerSettings)
    logs.configure("worker", configured)
    process.run(lambda stop: serve(configured, stop))


if __name__ == "__main__":
    main()
