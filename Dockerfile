# The gateway: one process, not root, with a read-only root file system.
FROM python:3.13-slim-trixie AS build
WORKDIR /gateway
# requirements-traces.lock for an image with traces.
ARG LOCK=requirements.lock
COPY ${LOCK} requirements.lock
# Wheels only, each with its hash. The image has no compiler and no installer.
RUN python -m venv --without-pip venv \
    && pip --python venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-deps --require-hashes --only-binary :all: --requirement requirements.lock
COPY LICENSE LICENSE
COPY app app
COPY adapters adapters
COPY sinks sinks
RUN python -m compileall -q app adapters sinks

FROM python:3.13-slim-trixie
# The URL of the repository from which the image is built.
ARG SOURCE=
LABEL org.opencontainers.image.title="flokit-gateway" \
    org.opencontainers.image.description="FloKit measurement gateway" \
    org.opencontainers.image.version="0.2.0" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.source="${SOURCE}"
ENV PATH=/gateway/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
# Owned by root: the gateway can read the files, but not change them.
COPY --from=build /gateway /gateway
WORKDIR /gateway
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["python", "-c", \
    "import http.client, os, sys; port = int(os.environ.get('PORT') or 8000); gateway = http.client.HTTPConnection('127.0.0.1', port, timeout=4); gateway.request('GET', '/healthz'); sys.exit(gateway.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "app"]
CMD ["serve"]
