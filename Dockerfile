# gpucnn with the simulated GPU's compiler.  It runs on the CPU:
#
#     docker build -t gpucnn . && docker run --rm gpucnn
#
# and on an NVIDIA GPU, where the host has the driver and NVIDIA's container toolkit.  CuPy brings the
# rest of CUDA:
#
#     docker build -t gpucnn:cuda --build-arg EXTRAS=cuda13,data,plot .
#     docker run --rm --gpus all gpucnn:cuda
#
# Training, with the data and the results in the current folder:
#
#     docker run --rm -v "$PWD:/work" gpucnn python /opt/examples/train_alexnet_cifar10.py --data data

ARG PYTHON=3.13
FROM python:${PYTHON}-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# What .devcontainer uses: the compiler and git, without gpucnn
FROM base AS dev
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*

FROM base AS wheel
COPY . /source
RUN pip wheel --no-deps --wheel-dir /wheels /source

FROM base
ARG EXTRAS=data,plot
# hadolint ignore=DL3013
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    set -- /wheels/gpucnn-*.whl && pip install "$1[$EXTRAS]"
COPY examples /opt/examples
RUN useradd --create-home --uid 1000 gpucnn && install -d -o gpucnn /work
USER 1000
WORKDIR /work
CMD ["gpucnn", "doctor"]
