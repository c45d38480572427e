"""``twostage train-restorer``: stage one, mel regression."""

from argparse import ArgumentParser, Namespace

from twostage.commands.options import add_training_arguments, training_settings

HELP = "train stage one, the restorer: from log-mels of bone-conducted speech to those of clean speech"
EXAMPLE = """
twostage train-restorer restorer "data.train=[train.csv]" "data.valid=[dev.csv]" --run runs/restorer
twostage train-restorer --run runs/restorer --resume
"""


def add_arguments(parser: ArgumentParser) -> None:
    add_training_arguments(parser)


def run(args: Namespace) -> int:
    from twostage.training.config import RestorerRun

    settings = training_settings(args, RestorerRun)
    from twostage.training.recipes import train_restorer  # after the settings: a mistake in them shows sooner

    train_restorer(settings, resume=args.resume)
    return 0
