"""both stages on pairs. The same as ``twostage finetune``, for torchrun and debuggers."""

import sys

from twostage.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
