"""``twostage finetune``: both stages on pairs."""

from argparse import ArgumentParser, Namespace

from twostage.commands.options import add_training_arguments, training_settings

HELP = "fine-tune on pairs: the vocoder on the restorer's log-mels, or both stages jointly"
EXAMPLE = """
twostage finetune finetune mine.yaml "models=[runs/restorer,runs/vocoder]" --run runs/tuned
twostage finetune finetune mine.yaml train=both "models=[default]" --run runs/joint
"""


def add_arguments(parser: ArgumentParser) -> None:
    add_training_arguments(parser)


def run(args: Namespace) -> int:
    from twostage.training.config import FinetuneRun

    settings = training_settings(args, FinetuneRun)
    from twostage.training.recipes import finetune  # after the settings, so that errors in them appear sooner

    finetune(settings, resume=args.resume)
    return 0
