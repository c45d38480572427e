"""``twostage config``: shows the settings of a training before it begins."""

from argparse import ArgumentParser, Namespace

HELP = "show the merged settings of a training with all defaults, or list the shipped settings files"
EXAMPLE = """
twostage config show train-restorer restorer adapt data.batch_size=8
twostage config list
"""
TRAININGS = ("train-restorer", "train-vocoder", "finetune", "train-enhancer")


def add_arguments(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="what")
    show = commands.add_parser(
        "show", help="print the merged settings as YAML; ??? marks required settings that are missing"
    )
    show.add_argument("training", choices=TRAININGS, metavar="TRAINING", help=", ".join(TRAININGS))
    show.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG|key=value",
        help="settings files and single settings, as for the training",
    )
    commands.add_parser("list", help="print the names of the shipped settings files")


def run(args: Namespace) -> int:
    from twostage.training.config import EnhancerRun, FinetuneRun, RestorerRun, VocoderRun, preview, shipped

    if args.what == "list":
        print("\n".join(shipped()))
        return 0
    runs = dict(zip(TRAININGS, (RestorerRun, VocoderRun, FinetuneRun, EnhancerRun), strict=True))
    files = [text for text in args.settings if "=" not in text]
    print(preview(runs[args.training], files, [text for text in args.settings if "=" in text]), end="")
    return 0
