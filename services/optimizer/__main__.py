"""`python -m services.optimizer`."""

from __future__ import annotations

from services.optimizer.settings import OptimizerSettings
from shared import logs, process
from shared.settings import read


def main() -> None:
    """Run the optimizer until SIGTERM or SIGINT."""
    from services.optimizer.app import serve  # noqa: PLC0415 - wrong settings should fail before this loads

    settings = read(OptimizerSettings)
    logs.configure("optimizer", settings)
    process.run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
