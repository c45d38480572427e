"""``twostage train-enhancer``: one of the systems that two-stage is compared with."""

from argparse import ArgumentParser, Namespace

from twostage.commands.options import add_training_arguments, training_settings

HELP = "train a published one-stage system (twostage/models/baselines) on the same pairs"
EXAMPLE = """
twostage train-enhancer dccrn "data.train=[train.csv]" "data.valid=[dev.csv]" --run runs/dccrn
twostage train-enhancer --run runs/dccrn --resume
"""


def add_arguments(parser: ArgumentParser) -> None:
    add_training_arguments(parser)


def run(args: Namespace) -> int:
    from twostage.training.config import EnhancerRun

    settings = training_settings(args, EnhancerRun)
    from twostage.training.recipes import train_enhancer  # after the settings: a mistake in them shows sooner

    train_enhancer(settings, resume=args.resume)
    return 0
