"""Tests of model cards, the catalog of models, hub snapshots, shown settings, unknown names and shell completion."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import twostage
from twostage import cli
from twostage.inference.catalog import catalog, describe_one
from twostage.models import checkpoint, model_files
from twostage.models.card import card_header, read_card
from twostage.models.two_stage import TwoStage
from twostage.training.config import RestorerRun, load_config, preview
from twostage.utils.errors import CheckpointError, DataError

ROOT = Path(__file__).parents[2]
CARDS = sorted(ROOT.glob("checkpoints/*/CARD.md"))


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.name)
def test_every_model_card_has_the_metadata_that_hubs_read(card: Path) -> None:
    header = read_card(card.parent)
    assert header["license"] == "mit"
    assert (header["library_name"], header["pipeline_tag"]) == ("twostage", "audio-to-audio")
    assert {"en"} <= set(header["language"])
    for name in ("tags", "datasets", "metrics"):
        assert header[name], name
        assert all(isinstance(item, str) for item in header[name])
    assert card.read_text(encoding="utf-8").split("\n---\n")[1].startswith(f"# {card.parent.name}\n")


@pytest.mark.parametrize(
    "text", ["", "# a", "---\n", "---\na: b\n", "---\na: [\n---\n", "---\n- a\n---\n", "---\n!!x y\n---\n"]
)
def test_a_card_without_valid_metadata_has_an_empty_header(text: str, tmp_path: Path) -> None:
    assert card_header(text) == {}
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert read_card(tmp_path) == {}


def test_the_catalog_agrees_with_the_files() -> None:
    infos = {info.name: info for info in catalog()}
    assert list(infos)[:2] == ["default", "causal"]
    assert infos.keys() == {card.parent.name for card in CARDS}
    default, causal, base = infos["default"], infos["causal"], infos["base"]
    assert (default.kind, default.sample_rate, default.inputs, default.license) == ("two-stage", 16000, 1, "mit")
    assert default.bytes == sum(file.stat().st_size for file in (ROOT / "checkpoints/default").glob("*.safetensors"))
    assert default.parameters == sum(weight.numel() for weight in twostage.load("default").parameters())
    assert (causal.causal, causal.latency_ms) == (True, 48.0)
    assert (default.causal, default.latency_ms is not None and default.latency_ms > 1000) == (False, True)
    assert (base.kind, base.latency_ms, base.sample_rate) == ("restorer", None, 16000)


def test_models_are_listed_as_a_table_and_as_json(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "kind", "rate", "inputs", "weights", "size", "license", "latency", "runtime"]
    assert next(row for row in rows if row.startswith("causal ")).split()[-4:] == ["mit", "48", "ms", "PyTorch"]
    assert cli.main(["models", str(tiny_path), "--json"]) == 0
    (info,) = json.loads(capsys.readouterr().out)
    assert (info["name"], info["bytes"], info["license"]) == (str(tiny_path), tiny_path.stat().st_size, "")
    assert cli.main(["models", "nothing"]) == 1
    assert (
        "nothing: no such file, folder or shipped model (base, causal, causal-base, default)" in capsys.readouterr().err
    )
    assert describe_one(["default/vocoder"]).kind == "vocoder"


@pytest.fixture
def hub(tiny_path: Path, tmp_path: Path) -> Path:
    """A model in the cache layout of huggingface_hub: blobs, and snapshots whose files are links to them."""
    home = tmp_path / "models--somebody--tiny.model"
    for folder in ("blobs", "refs", "snapshots/0a1b", "snapshots/ffff", ".no_exist"):
        (home / folder).mkdir(parents=True)
    shutil.copy(tiny_path, home / "blobs" / "c0ffee")
    (home / "blobs" / "card").write_text("---\nlicense: cc-by-4.0\n---\n# tiny\n")
    (home / "snapshots/0a1b/model.safetensors").symlink_to("../../blobs/c0ffee")
    (home / "snapshots/0a1b/README.md").symlink_to("../../blobs/card")
    (home / "snapshots/ffff/model.safetensors").symlink_to("../../blobs/lost")
    (home / "refs" / "main").write_text("0a1b")
    return home


def test_a_hub_snapshot_is_loaded(hub: Path, tiny: TwoStage) -> None:
    audio = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
    expected = twostage.restore(tiny, audio, 16000)
    for path in (hub / "snapshots/0a1b", hub, hub / "snapshots/0a1b/model.safetensors"):
        np.testing.assert_array_equal(twostage.restore(twostage.load(path), audio, 16000), expected)
    info = describe_one([hub])
    assert (info.license, info.bytes) == ("cc-by-4.0", (hub / "blobs/c0ffee").stat().st_size)


def test_an_incomplete_snapshot_is_an_error_that_names_what_is_missing(hub: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"ffff/model\.safetensors: a link to .*/blobs/lost, which does not exist"
    ):
        twostage.load(hub / "snapshots/ffff")
    (hub / "refs/main").write_text("gone")
    with pytest.raises(CheckpointError, match=r"no snapshot of main; name one of 0a1b, ffff in snapshots/"):
        twostage.load(hub)
    (hub / "refs/main").write_text("../../..")
    with pytest.raises(CheckpointError, match="no snapshot of main"):
        twostage.load(hub)
    pointer = hub / "pointer.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(CheckpointError, match="a pointer of Git LFS"):
        twostage.load(pointer)


def test_a_folder_with_only_an_onnx_file_is_loaded_from_it(tiny: TwoStage, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    assert model_files.model_files(tmp_path) == [tmp_path / "model.onnx"]
    with pytest.raises(CheckpointError, match=r"model\.onnx: not an ONNX file"):
        twostage.load(tmp_path)
    checkpoint.save(tmp_path / "model.safetensors", tiny, provenance={})
    assert model_files.model_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_shown_settings_equal_those_of_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["data.batch_size=8", "restorer.mel.fmin=20"]
    assert cli.main(["config", "show", "train-restorer", "restorer", "adapt", *overrides]) == 0
    text = capsys.readouterr().out
    assert text == preview(RestorerRun, ["restorer", "adapt"], overrides)
    assert text.startswith("run_dir: ???\n")
    (tmp_path / "shown.yaml").write_text(text)
    (tmp_path / "x.csv").touch()
    all_overrides = [*overrides, "run_dir=r", *(f"data.{name}=[{tmp_path / 'x.csv'}]" for name in ("train", "valid"))]
    assert load_config(RestorerRun, [str(tmp_path / "shown.yaml")], all_overrides) == load_config(
        RestorerRun, ["restorer", "adapt"], all_overrides
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["restorer", "data.bacth=8"], "data.bacth: no such setting; there are segment_length"),
        (["restorer", "steps=many"], "steps is 'many', must be of type int"),
        (["restorer", "data=3"], "data: 3 is not a mapping"),
        (["resotrer"], "resotrer: no such file or shipped configuration (adapt, "),
    ],
)
def test_invalid_settings_are_named(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "train-restorer", *arguments]) == 1
    assert error in capsys.readouterr().err


def test_shipped_settings_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "list"]) == 0
    listed = capsys.readouterr().out.split()
    assert listed == sorted(
        {path.stem for folder in ("", "baselines/", "corpora/") for path in ROOT.glob(f"configs/{folder}*.yaml")}
    )


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    from twostage.data.sensors import load_sensor

    with pytest.raises(DataError, match="one of any, eben, throat"):
        load_sensor("toe")
    with pytest.raises(CheckpointError, match="default"):
        twostage.load("defualt")


# prints the completions that bash offers for the given words
BASH = """source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _twostage; printf '%s\\n' "${COMPREPLY[@]}" """
COMPLETIONS = [
    (["twostage", "restore-"], {"restore-corpus"}),
    (["twostage", "restore", "--de"], {"--device"}),
    (["twostage", "restore", "a.wav", "--device", ""], {"auto", "cpu", "cuda", "mps"}),
    (["twostage", "restore", "a.wav", "-o", "b.wav", "--model", "caus"], {"causal", "causal-base"}),
    (["twostage", "-q", "manifest", ""], {"scan", "pair", "align", "split", "import"}),
    (["twostage", "manifest", "align", "--max"], {"--max-delay", "--max-drift"}),
    (["twostage", "config", "show", "train-v"], {"train-vocoder"}),
    (["twostage", "train-restorer", "adap"], {"adapt"}),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The completion script of each shell."""
    folder = tmp_path_factory.mktemp("completion")
    paths = {}
    for shell in ("bash", "zsh", "fish"):
        with pytest.MonkeyPatch.context() as patch:
            paths[shell] = folder / shell
            with paths[shell].open("w") as file:
                patch.setattr("sys.stdout", file)
                assert cli.main(["completion", shell]) == 0
    return paths


@pytest.mark.parametrize(
    ("words", "completions"),
    COMPLETIONS,
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_bash_completes_commands_options_and_values(
    scripts: dict[str, Path], words: list[str], completions: set[str]
) -> None:
    command = ["bash", "-c", BASH, str(scripts["bash"]), *words]
    process = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]})
    assert set(process.stdout.split()) == completions
    assert process.stderr == ""


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
@pytest.mark.parametrize(
    ("words", "completions"),
    COMPLETIONS,
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_fish_completes_commands_options_and_values(
    scripts: dict[str, Path], words: list[str], completions: set[str], tmp_path: Path
) -> None:
    code = f"source {scripts['fish']}; complete -C '{' '.join(words)}'"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    process = subprocess.run(
        ["fish", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env=environment
    )
    assert {line.split("\t")[0] for line in process.stdout.splitlines()} == completions


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_loads_the_completion_of_bash(scripts: dict[str, Path], tmp_path: Path) -> None:
    code = f"source {scripts['zsh']}; print -r -- $_comps[twostage]"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    process = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "_bash_complete" in process.stdout
    assert "_twostage" in process.stdout
