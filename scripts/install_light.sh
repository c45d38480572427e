#!/usr/bin/env bash
# Installs twostage without PyTorch into a virtual environment of its own:
#
#   scripts/install_light.sh DIR
#
# The image of scripts/docker/light.Dockerfile is made by it. PYTHON may name another interpreter than python3.
set -euo pipefail
home="$(cd "$(dirname "$0")/.." && pwd)"
target="${1:?usage: scripts/install_light.sh DIR}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# a build writes beside the sources, which may be shared or read-only
cd "$home"
cp -r pyproject.toml README.md LICENSE twostage configs checkpoints samples "$scratch"

"${PYTHON:-python3}" -m venv "$target"
pip=("$target/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet --no-cache-dir --requirement configs/requirements-light.txt
"${pip[@]}" install --quiet --no-cache-dir --no-deps "$scratch"
# what only installs is of no use to what is installed
"${pip[@]}" uninstall --quiet --yes setuptools || true
"${pip[@]}" uninstall --quiet --yes pip
