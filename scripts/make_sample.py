"""Write samples/: synthetic speech (espeak-ng) through a simulated throat microphone, and the clean speech.

    python scripts/make_sample.py --overwrite

Needs the program espeak-ng. The sample contains no recording of a person, so that nobody has rights in it.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from twostage.audio import sound_files
from twostage.audio.levels import leveled
from twostage.data.simulator import PRESETS, seeded, simulate
from twostage.utils.errors import TwoStageError

TEXT = (
    "A microphone on the throat hears every word, and almost nothing of the storm outside. What is missing is the air."
)
SAMPLE_RATE = 16000
SAMPLES = Path(__file__).resolve().parent.parent / "samples"


def speak(text: str, path: Path) -> None:
    command = ["espeak-ng", "-v", "en-us+f3", "-s", "155", "-w", str(path), text]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise TwoStageError(f"espeak-ng could not speak: {error}") from error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sensor", default="throat", choices=sorted(PRESETS))
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        speak(TEXT, Path(folder) / "speech.wav")
        speech, rate = sound_files.read(Path(folder) / "speech.wav")
    clean = sound_files.resample(speech[0], rate, SAMPLE_RATE)
    clean = leveled(clean, SAMPLE_RATE)
    body = simulate(clean, SAMPLE_RATE, PRESETS[options.sensor], seeded(0, "sample"))
    body = leveled(body, SAMPLE_RATE)
    for name, sound in ("clean", clean), (options.sensor, body):
        sound_files.write(SAMPLES / f"{name}.flac", sound, SAMPLE_RATE, overwrite=options.overwrite)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TwoStageError as error:
        sys.exit(f"make_sample: error: {error}")
