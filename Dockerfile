# syntax=docker/dockerfile:1
# The painting page on port 8000 and the notebooks on port 8888:
#   docker build -t cell-diffusion .
#   docker run --rm -p 127.0.0.1:8000:8000 -p 127.0.0.1:8888:8888 cell-diffusion
# For NVIDIA GPUs: docker build --build-arg DEVICE=cu130 -t cell-diffusion:cuda .
# and docker run --gpus all …; the CUDA libraries come with PyTorch's wheels.
ARG PYTHON=3.12

FROM node:22-bookworm-slim AS npm
WORKDIR /course/site
COPY site/package.json site/package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund

FROM python:${PYTHON}-slim-bookworm AS built
# cpu, or a version of CUDA for which PyTorch has wheels, such as cu130
ARG DEVICE=cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /course
COPY constraints.txt ./
# A build for a device, such as 2.14.1+cpu, is preferred to the same version of PyPI
RUN pip install --no-cache-dir -c constraints.txt torch torchvision \
        --extra-index-url "https://download.pytorch.org/whl/${DEVICE}"
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[site,web]' 'jupyterlab>=4,<5'
COPY --from=npm /course/site/node_modules site/node_modules
# `make site` without make: npm has done its part, and its stamp says so
RUN sha256sum site/package-lock.json | cut -d ' ' -f 1 | tr -d '\n' \
        > site/node_modules/.lock-sha256 \
    && python site/make_site.py

FROM python:${PYTHON}-slim-bookworm
RUN useradd --create-home --uid 1000 reader
COPY --from=built /venv /venv
COPY --from=built /course/_docs /course/_docs
COPY --from=built --chown=reader /course/nbs /course/nbs
COPY --from=built --chown=reader /course/img /course/img
COPY tools/serve.py /course/tools/serve.py
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
USER reader
WORKDIR /course/nbs
# Downloads, trained classifiers and runs survive where this is a volume
ENV CELL_DIFFUSION_CACHE=/home/reader/work/cache
RUN mkdir -p /home/reader/work/cache
VOLUME /home/reader/work
EXPOSE 8000 8888
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "/course/tools/serve.py", "--check"]
CMD ["python", "/course/tools/serve.py", "--host", "0.0.0.0"]
