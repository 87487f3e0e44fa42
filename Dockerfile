# One image for all that runs in a cluster: which program it is, the command says. docs/deploy.md
#
#   docker build -t modelcache .
#   buildah build --build-arg BASE=… --build-context wheels=DIRECTORY -t modelcache .

# any of Debian, or like it, with Python 3.11 to 3.13 as `python3` and its venv module
ARG BASE=python:3.13-slim-bookworm

# packages that are here already, for where no index can be reached: `--build-context wheels=DIRECTORY`, with PIP_NO_INDEX=1
FROM scratch AS wheels
COPY LICENSE /

FROM ${BASE} AS build
ARG EXTRAS=s3,gcs,fsspec,azure,agent,otel
# as pip's own variables; a configuration with credentials: `--secret id=pip,src=FILE`, which no layer keeps
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_INDEX
COPY . /src
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/build \
 && python3 -m venv --without-pip /opt/modelcache \
 && /opt/build/bin/pip --python /opt/modelcache/bin/python --disable-pip-version-check --no-input \
      install --no-cache-dir --no-compile --only-binary=:all: --no-binary=modelcache -f /wheels \
      --constraint=/src/constraints.txt "modelcache[${EXTRAS}] @ file:///src" \
 && find /opt/modelcache/lib -regex '.*/botocore/data/[^/]+' -type d \
      ! -name s3 ! -name sts ! -name 'sso*' ! -name signin -prune -exec rm -r {} + \
 && find /opt/modelcache/lib -path '*/azure/*/aio' -prune -exec rm -r {} + \
 && find /opt/modelcache/lib -path '*/pygments/lexers/*.py' \
      ! -name __init__.py ! -name _mapping.py ! -name python.py ! -name special.py -delete \
 && /opt/modelcache/bin/python -m compileall -q --invalidation-mode=unchecked-hash /opt/modelcache/lib

FROM ${BASE}
LABEL org.opencontainers.image.title="modelcache" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/modelcache /opt/modelcache
# the root file system is read-only: what writes gets a volume, and Python has its bytecode
ENV PATH=/opt/modelcache/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# a number, for `runAsNonRoot` to believe; nobody of the base
USER 65532:65532
CMD ["modelcache", "--help"]
