"""``twostage train-vocoder``: stage two, the GAN vocoder."""

from argparse import ArgumentParser, Namespace

from twostage.commands.options import add_training_arguments, training_settings

HELP = "train stage two, the vocoder: from log-mels of clean speech to its waveform"
EXAMPLE = """
twostage train-vocoder vocoder "data.train=[train.csv]" "data.valid=[dev.csv]" --run runs/vocoder
twostage train-vocoder vocoder hifigan_v1 mine.yaml device=cuda --run runs/v1
torchrun --nproc-per-node 2 scripts/train_vocoder.py --run runs/vocoder --resume
"""


def add_arguments(parser: ArgumentParser) -> None:
    add_training_arguments(parser)


def run(args: Namespace) -> int:
    from twostage.training.config import VocoderRun

    settings = training_settings(args, VocoderRun)
    from twostage.training.recipes import train_vocoder  # after the settings: a mistake in them shows sooner

    train_vocoder(settings, resume=args.resume)
    return 0
