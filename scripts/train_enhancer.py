"""a one-stage system of the field. The same as ``twostage train-enhancer``, for torchrun and debuggers."""

import sys

from twostage.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-enhancer", *sys.argv[1:]]))
