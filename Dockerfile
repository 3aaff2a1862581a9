# syntax=docker/dockerfile:1
# The command line in an image: docker build -t vpmu . && docker run --rm -v "$PWD:/data" vpmu run scenario.toml
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
RUN python -m venv /opt/vpmu
ENV PATH=/opt/vpmu/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements.lock ./
RUN pip install --require-hashes --no-deps -r requirements.lock
COPY . .
RUN pip install --no-deps --no-build-isolation .

FROM ${BASE}
# numba's cache is keyed by the CPU's name and features. Fixed, the kernels that are compiled here are found on
# whatever machine the image runs on. A fleet of one kind may build with e.g. CPU_NAME=x86-64-v3.
ARG CPU_NAME=generic
ARG CPU_FEATURES=
ENV NUMBA_CPU_NAME=${CPU_NAME} \
    NUMBA_CPU_FEATURES=${CPU_FEATURES} \
    VPMU_CACHE_DIR=/var/cache/vpmu \
    PATH=/opt/vpmu/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 1000 vpmu && install -d -o vpmu -m 1777 /var/cache/vpmu /data
COPY --from=build /opt/vpmu /opt/vpmu
COPY --chown=vpmu examples /usr/share/vpmu/examples
USER vpmu
# Whoever runs the image (--user) has to be able to write beside the compiled kernels: numba asks for that.
RUN vpmu compile && chmod -R a+rwX /var/cache/vpmu
WORKDIR /data
# A scheduler or worker is healthy if it can be asked; what has no cluster has nothing to ask for.
HEALTHCHECK --interval=30s --timeout=20s --start-period=20s \
    CMD test -z "$VPMU_SCHEDULER" || vpmu cluster status --at-least 0
ENTRYPOINT ["vpmu"]
CMD ["--help"]
