# Two images of one file: `locum` (the last stage), which is coordinator, node and command line, and `gateway`, which is
# nginx and nothing of ours. For a GPU: --build-arg TORCH_INDEX=https://pypi.org/simple
FROM python:3.11-slim-bookworm AS base
# A volume takes its owner from the folder that it is mounted on, so every such folder is here.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin locum \
 && install -d -o locum -g locum -m 700 /site /data /coordinator /access /gateway /etc/locum/gateway \
 && install -d -o locum -g locum -m 755 /authority /public /reports


# What the package needs, in a file of its own: the step that installs it is kept while that stays the same.
FROM base AS wanted
COPY pyproject.toml ./
RUN python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], *project["optional-dependencies"]["postgres"], "setuptools", sep="\n")' > wanted.txt


FROM base AS build
RUN python -m venv /opt/locum
ENV PATH=/opt/locum/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY requirements.lock ./
# PyTorch first and from one index alone: the small build for processors, unless another index is named.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --constraint requirements.lock --no-deps --retries 1 --index-url "$TORCH_INDEX" torch
COPY --from=wanted wanted.txt ./
RUN pip install --constraint requirements.lock --requirement wanted.txt
# torch/bin/torch_shm_manager stays: `import torch` wants it.
RUN cd /opt/locum/lib/python3.11/site-packages \
 && find torch/bin -mindepth 1 ! -name torch_shm_manager -delete \
 && rm -rf torch/include torch/share/cmake torch/test uv ../../../bin/uv ../../../bin/uvx \
 && find . -name '*.a' -delete \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && find . -type d -name include -prune -exec rm -rf {} +
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY pages pages
COPY strategies strategies
COPY node node
COPY coordinator coordinator
RUN pip install --no-deps --no-build-isolation . \
 && pip uninstall --quiet --yes pip


FROM base AS gateway
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends nginx-light \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*
COPY deploy/gateway.conf /etc/locum/gateway.conf
USER locum
EXPOSE 8443
CMD ["nginx", "-e", "stderr", "-c", "/etc/locum/gateway.conf"]


# What the last stage keeps of Debian and Python: no pip, no documentation, nothing that runs as another user.
FROM base AS trimmed
RUN rm -rf /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/ensurepip /usr/local/bin/pip* \
      /usr/lib/python3*/ensurepip /usr/lib/python3/dist-packages/pip* /usr/share/python-wheels /usr/bin/pip* \
      /usr/share/doc /usr/share/man /usr/share/locale /usr/local/share /var/cache/* /var/lib/apt/lists/* /var/log/* \
 && find / -xdev -perm /6000 -type f -exec chmod a-s {} +


FROM scratch AS locum
COPY --from=trimmed / /
COPY --from=build /opt/locum /opt/locum
ENV PATH=/opt/locum/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/tmp \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp FLWR_HOME=/tmp/flwr \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
USER locum
WORKDIR /tmp
CMD ["locum", "--help"]
