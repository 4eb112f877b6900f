"""The platform's services as children: which port each gets, and what it reads it from."""

from __future__ import annotations

import os
import ssl
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.cli.local import probes
from services.cli.local.ports import LOOPBACK
from services.cli.local.supervisor import ChildSpec
from services.cli.trust import trust

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.cli.local.settings import LocalStackSettings

_USUAL_HEALTH_PORT = 8101


@dataclass(frozen=True, slots=True)
class Service:
    """A child to be: its port is chosen when the stack starts and stays the same for as long as the stack lives.

    `port_variable` (and `host_variable`, if it has one) tell it where to listen; `GET ready_path` answers 200 there. It
    speaks HTTPS if `tls_variable` is set.
    """

    name: str
    argv: tuple[str, ...]
    usual_port: int
    port_variable: str
    ready_path: str = "/ready"
    host_variable: str | None = None
    tls_variable: str | None = None
    shares_port_of: str | None = None
    """An earlier service whose port this one listens on as well; the kernel spreads connections over them."""
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def scheme(self) -> str:
        """What it speaks on its port."""
        variable = self.tls_variable
        return "https" if variable and (self.env.get(variable) or os.environ.get(variable)) else "http"

    def spec(self, settings: LocalStackSettings, port: int, environment: Mapping[str, str]) -> ChildSpec:
        """What to run. The instance name is the child's own and outlives restarts; so does its state directory."""
        state_dir = settings.root / "state" / self.name
        state_dir.mkdir(parents=True, exist_ok=True)
        own = {
            "AIAAS_INSTANCE": self.name,
            "AIAAS_DATA_DIR": str(state_dir),
            self.port_variable: str(port),
            **({self.host_variable: LOOPBACK} if self.host_variable else {}),
        }
        return ChildSpec(
            name=self.name,
            argv=self.argv,
            probe=probes.http(port, self.ready_path, _our_own() if self.scheme == "https" else None),
            log_path=settings.root / "logs" / f"{self.name}.log",
            env={"PYTHONUNBUFFERED": "1", **environment, **own, **self.env},
            ready_timeout_s=settings.ready_timeout_s,
            stop_timeout_s=settings.stop_timeout_s,
            backoff=settings.backoff(),
        )


def standard_services(workers: int = 1, gateways: int = 1) -> list[Service]:
    """Gateways (on one port), workers, optimizer, monitor and archiver."""
    return [
        *(
            Service(
                "gateway" if number == 1 else f"gateway-{number}",
                _module("gateway"),
                8080,
                "AIAAS_GATEWAY_PORT",
                "/v2/health/ready",
                host_variable="AIAAS_GATEWAY_HOST",
                tls_variable="AIAAS_GATEWAY_TLS_CERTFILE",
                shares_port_of=None if number == 1 else "gateway",
                env={"AIAAS_GATEWAY_SHARES_PORT": "true"} if gateways > 1 else {},
            )
            for number in range(1, gateways + 1)
        ),
        *(
            Service(
                f"worker-{number}",
                _module("worker"),
                _USUAL_HEALTH_PORT,
                "AIAAS_HEALTH_PORT",
                env={"AIAAS_STATIC_MEMBERSHIP": "true"},  # the stack guarantees that the name is unique
            )
            for number in range(1, workers + 1)
        ),
        Service("optimizer", _module("optimizer"), _USUAL_HEALTH_PORT, "AIAAS_HEALTH_PORT"),
        Service(
            "monitor",
            _module("monitor"),
            8090,
            "AIAAS_MONITOR_PORT",
            host_variable="AIAAS_MONITOR_HOST",
            tls_variable="AIAAS_MONITOR_TLS_CERTFILE",
        ),
        Service("archiver", _module("audit"), _USUAL_HEALTH_PORT, "AIAAS_HEALTH_PORT"),
    ]


def _our_own() -> ssl.SSLContext:
    """A child that we started ourselves on the loopback interface is not asked for its name."""
    context = trust()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"services.{name}")
