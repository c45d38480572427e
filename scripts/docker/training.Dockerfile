# Trains, evaluates and exports; on GPUs with `docker run --gpus all`.
#
#   docker build -f scripts/docker/training.Dockerfile -t twostage-training .
#   docker run --rm --gpus all --shm-size 2g -v "$PWD:/data" twostage-training train-restorer restorer adapt \
#       init_from=base "data.train=[train.jsonl,good.jsonl]" "data.valid=[dev.jsonl]" --run runs/mine
#
# The first stage has a compiler, which pesq needs to be installed.
FROM python:3.13 AS build
COPY . /src
RUN python -m venv /twostage && /twostage/bin/pip install --no-cache-dir '/src[corpora,eval,onnx]'

FROM python:3.13-slim
COPY --from=build /twostage /twostage
WORKDIR /data
ENTRYPOINT ["/twostage/bin/twostage"]
