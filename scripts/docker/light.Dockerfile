# Restores and streams without PyTorch.
#
#   docker build -f scripts/docker/light.Dockerfile -t twostage .
#   docker run --rm -v "$PWD:/data" twostage restore recording.wav -o restored.wav
FROM python:3.13-slim AS build
COPY . /src
RUN /src/scripts/install_light.sh /twostage

FROM python:3.13-slim
COPY --from=build /twostage /twostage
WORKDIR /data
ENTRYPOINT ["/twostage/bin/twostage"]
