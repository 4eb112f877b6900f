"""`python -m services.audit`: one archiver."""

from __future__ import annotations


def main() -> None:
    """Run an archiver until it is told to stop."""
    from services.audit.app import serve  # noqa: PLC0415 - heavy imports stay out of whoever imports this
    from services.audit.settings import AuditSettings  # noqa: PLC0415 - as above
    from shared import logs, process  # noqa: PLC0415 - as above
    from shared.settings import read  # noqa: PLC0415 - as above

    settings = read(AuditSettings)
    logs.configure("archiver", settings)
    process.give_way(settings.background_niceness)
    process.run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
