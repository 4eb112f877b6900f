# One file, a target for each service: gateway, worker, worker-gpu, optimizer, monitor, archiver.
#   docker build --target worker -t aiaas-worker .
# Each image holds Python, the packages of its own extra at the pinned versions, `shared`, and its own service.

FROM python:3.11-slim AS base
# Not PYTHONUNBUFFERED: lines of the log are flushed without it, and with it Python drops what a pipe does not take at
# once, which on uvloop may be the rest of a long write.
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 \
    AIAAS_DATA_DIR=/var/lib/aiaas/data AIAAS_ARTIFACT_STORE_URL=file:///var/lib/aiaas/artifacts AIAAS_HEALTH_PORT=8101
RUN useradd --uid 10001 --create-home aiaas && install -d -o aiaas -g aiaas /var/lib/aiaas/data /var/lib/aiaas/artifacts
WORKDIR /app
COPY LICENSE ./
COPY services/__init__.py services/
COPY shared shared

# The packages first: they change less often than the code.
FROM base AS packages
COPY constraints.txt pyproject.toml ./
RUN pip install --no-cache-dir -c constraints.txt uv && uv venv /venv
ENV VIRTUAL_ENV=/venv UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1

FROM packages AS gateway-packages
RUN uv pip install -c constraints.txt -r pyproject.toml --extra gateway
FROM packages AS worker-packages
RUN uv pip install -c constraints.txt -r pyproject.toml --extra worker --extra cpu
FROM packages AS worker-gpu-packages
RUN uv pip install -c constraints.txt -r pyproject.toml --extra worker --extra gpu
FROM packages AS optimizer-packages
RUN uv pip install -c constraints.txt -r pyproject.toml --extra optimizer --extra training --extra formats --extra cpu
FROM packages AS monitor-packages
RUN uv pip install -c constraints.txt -r pyproject.toml --extra monitor
FROM packages AS archiver-packages
RUN uv pip install -c constraints.txt -r pyproject.toml --extra audit

FROM base AS gateway
COPY --from=gateway-packages /venv /venv
COPY services/gateway services/gateway
USER aiaas
EXPOSE 8080
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/v2/health/live', timeout=3)"]
CMD ["python", "-m", "services.gateway"]

FROM base AS worker
COPY --from=worker-packages /venv /venv
COPY services/worker services/worker
USER aiaas
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8101/live', timeout=3)"]
CMD ["python", "-m", "services.worker"]

# CUDA's libraries come with the packages; the driver comes from the host, through NVIDIA's container toolkit.
FROM base AS worker-gpu
ENV AIAAS_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=worker-gpu-packages /venv /venv
COPY services/worker services/worker
USER aiaas
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8101/live', timeout=3)"]
CMD ["python", "-m", "services.worker"]

FROM base AS optimizer
COPY --from=optimizer-packages /venv /venv
COPY services/optimizer services/optimizer
USER aiaas
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8101/live', timeout=3)"]
CMD ["python", "-m", "services.optimizer"]

FROM base AS monitor
COPY --from=monitor-packages /venv /venv
COPY services/monitor services/monitor
USER aiaas
EXPOSE 8090
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8090/live', timeout=3)"]
CMD ["python", "-m", "services.monitor"]

FROM base AS archiver
COPY --from=archiver-packages /venv /venv
COPY services/audit services/audit
USER aiaas
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8101/live', timeout=3)"]
CMD ["python", "-m", "services.audit"]
