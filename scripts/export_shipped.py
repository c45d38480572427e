"""Write the ONNX files of the shipped models, which run without PyTorch: ``python scripts/export_shipped.py``.

Run it after replacing a shipped model. The files contain no weights but read those of the safetensors files beside
them; a causal model becomes a streaming step. Each is compared with PyTorch before it replaces the old file.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from twostage.export.onnx import export
from twostage.export.shared_weights import share_weights
from twostage.models import checkpoint
from twostage.models.model_files import STEP, stage_files

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"


def export_shipped(name: str, home: Path = CHECKPOINTS) -> Path:
    """Write ``model.onnx``, or ``step.onnx`` for a causal model, into the folder of the model; return the path."""
    files = [file.resolve() for file in stage_files(home / name)]
    model = checkpoint.load(*files)
    target = files[0].with_name(STEP if model.causal else "model.onnx")
    with TemporaryDirectory() as folder:
        whole = Path(folder, "whole.onnx")
        export(model, whole, stream=model.causal, provenance=checkpoint.provenances(*files))
        difference = share_weights(model, whole, target, files)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB, within {difference:.1g} of PyTorch's")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="shipped models (default: all that restore)")
    for name in parser.parse_args().names or checkpoint.shipped():
        export_shipped(name)


if __name__ == "__main__":
    main()
