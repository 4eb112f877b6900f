"""`python -m services.monitor`: one monitor."""

from __future__ import annotations


def main() -> None:
    """Run a monitor until it is told to stop."""
    from services.monitor.app import serve  # noqa: PLC0415 - heavy imports stay out of whoever imports this
    from services.monitor.settings import MonitorSettings  # noqa: PLC0415 - as above
    from shared import logs, process  # noqa: PLC0415 - as above
    from shared.settings import read  # noqa: PLC0415 - as above

    settings = read(MonitorSettings)
    logs.configure("monitor", settings)
    process.give_way(settings.background_niceness)
    process.run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
