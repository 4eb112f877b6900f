"""`python -m services.gateway`: read the configuration, serve until told to stop."""

from __future__ import annotations

from shared import logs, process
from shared.settings import read


def main() -> None:
    """Run the gateway from environment variables."""
    from services.gateway.app import serve  # noqa: PLC0415 - wrong configuration is told before the web framework loads
    from services.gateway.settings import GatewaySettings  # noqa: PLC0415 - as above

    settings = read(GatewaySettings)
    logs.configure("gateway", settings)
    process.run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
