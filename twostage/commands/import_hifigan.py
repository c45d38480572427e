"""``twostage import-hifigan``: converts a published HiFi-GAN generator."""

from argparse import ArgumentParser, Namespace

HELP = "convert a published HiFi-GAN generator to a vocoder of this package"
EXAMPLE = "twostage import-hifigan generator_v1 config_v1.json vocoder.safetensors"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="PyTorch file with the generator's weights, loaded with weights_only"
    )
    parser.add_argument("config", metavar="CONFIG", help="JSON configuration that was published with it")
    parser.add_argument("out", metavar="OUT", help="file to write (.safetensors)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(args: Namespace) -> int:
    from twostage.models.import_hifigan import import_hifigan

    model = import_hifigan(args.weights, args.config, args.out, overwrite=args.overwrite)
    mel, size = model.config.mel, sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {size / 1e6:.2f} M parameters, {mel.sample_rate} Hz, {mel.n_mels} mels to {mel.fmax:g} Hz")
    return 0
