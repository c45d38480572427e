"""Write the discriminators of a training without the rest of its state: ``save_discriminators.py STATE.pt OUT.pt``.

They are saved in half precision. A later training starts from them with ``adversary.init_from``.
"""

import argparse

import torch

from twostage.models import checkpoint


def save_discriminators(state_path: str, out: str) -> int:
    """Write ``out`` and return its number of weights. Raises CheckpointError if the state has no discriminators."""
    weights = {key: weight.to(torch.float16) for key, weight in checkpoint.load_discriminators(state_path).items()}
    step = checkpoint.load_state(state_path)["step"]
    checkpoint.save_state(out, {"step": step, "adversary": {"discriminators": weights}})
    return sum(weight.numel() for weight in weights.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", metavar="STATE.pt", help="state of a training with discriminators")
    parser.add_argument("out", metavar="OUT.pt", help="file to write")
    arguments = parser.parse_args()
    count = save_discriminators(arguments.state, arguments.out)
    print(f"{arguments.out}: {count / 1e6:.2f} M weights")


if __name__ == "__main__":
    main()
