"""stage one, mel regression. The same as ``twostage train-restorer``, for torchrun and debuggers."""

import sys

from twostage.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-restorer", *sys.argv[1:]]))
