"""``twostage config``: what settings a training would have, before it begins."""

from argparse import ArgumentParser, Namespace

HELP = "show the settings of a training as files and key=value make them, with every default; list the shipped files"
EXAMPLE = """
twostage config show train-restorer restorer adapt data.batch=8
twostage config list
"""
TRAININGS = ("train-restorer", "train-vocoder", "finetune", "train-enhancer")


def add_arguments(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="what")
    show = commands.add_parser("show", help="print merged settings as YAML; ??? is what must still be given")
    show.add_argument("training", choices=TRAININGS, metavar="TRAINING", help=", ".join(TRAININGS))
    show.add_argument("settings", nargs="*", metavar="CONFIG|key=value", help="as the training takes them")
    commands.add_parser("list", help="print the names of the shipped files")


def run(args: Namespace) -> int:
    from twostage.training.config import EnhancerRun, FinetuneRun, RestorerRun, VocoderRun, preview, shipped

    if args.what == "list":
        print("\n".join(shipped()))
        return 0
    runs = dict(zip(TRAININGS, (RestorerRun, VocoderRun, FinetuneRun, EnhancerRun), strict=True))
    files = [text for text in args.settings if "=" not in text]
    print(preview(runs[args.training], files, [text for text in args.settings if "=" in text]), end="")
    return 0
