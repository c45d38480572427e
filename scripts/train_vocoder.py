"""stage two, the GAN vocoder. The same as ``twostage train-vocoder``, for torchrun and debuggers."""

import sys

from twostage.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-vocoder", *sys.argv[1:]]))
