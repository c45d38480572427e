"""Tests of files of weights: saving and loading, shipped models, training states, and errors of one line."""

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import small_vocoder
from unsafe_pickles import TouchesFile

from twostage.models import checkpoint, model_files
from twostage.models.features import MelConfig
from twostage.models.restorer import Restorer, RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import Vocoder
from twostage.utils.errors import CheckpointError, OutputError

MEL = MelConfig(n_mels=16)
RESTORER = RestorerConfig(mel=MEL, channels=(4, 8), time_strides=(2,), blocks=1, dilations=(1,))
VOCODER = small_vocoder(MEL)


def vocoder() -> Vocoder:
    torch.manual_seed(0)
    return Vocoder(VOCODER)


@pytest.fixture
def stages(tmp_path: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "r.safetensors", Restorer(RESTORER), provenance={"steps": 7})
    checkpoint.save(tmp_path / "v.safetensors", vocoder(), provenance={})
    return tmp_path / "r.safetensors", tmp_path / "v.safetensors"


def test_a_loaded_stage_has_the_same_settings_and_output(tmp_path: Path) -> None:
    model, mel = vocoder(), torch.randn(1, 16, 5)
    checkpoint.save(tmp_path / "v.safetensors", model, provenance={"steps": 3, "data": "none"})
    loaded = checkpoint.load_stage(tmp_path / "v.safetensors")
    assert loaded.config == VOCODER
    assert checkpoint.read_header(tmp_path / "v.safetensors").provenance == {"steps": 3, "data": "none"}
    assert (
        loaded.state_dict().keys() == model.state_dict().keys()
    )  # with weight normalization, to continue the training
    torch.testing.assert_close(loaded(mel), model(mel), atol=1e-6, rtol=0)


def test_a_file_contains_folded_weights_whether_the_model_was_folded_or_not(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.safetensors", vocoder(), provenance={})
    checkpoint.save(tmp_path / "b.safetensors", vocoder().fold(), provenance={})
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == b.keys() == vocoder().fold().state_dict().keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("folded_file", [True, False])
@pytest.mark.parametrize("folded_model", [True, False])
def test_weights_load_into_folded_and_normalized_models(folded_file: bool, folded_model: bool) -> None:
    source, target, mel = vocoder(), Vocoder(VOCODER), torch.randn(1, 16, 5)
    expected = source(mel)
    tensors = (source.fold() if folded_file else source).state_dict()
    checkpoint.assign(target.fold() if folded_model else target, tensors, "file")
    torch.testing.assert_close(target(mel), expected, atol=1e-6, rtol=0)


def test_half_precision_weights_are_loaded_as_float32_and_stay_close(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "v.safetensors", vocoder(), provenance={}, dtype=torch.float16)
    loaded = checkpoint.load_stage(tmp_path / "v.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert load_file(tmp_path / "v.safetensors")["conv_pre.weight"].dtype == torch.float16
    torch.testing.assert_close(loaded(torch.ones(1, 16, 5)), vocoder()(torch.ones(1, 16, 5)), atol=1e-3, rtol=0)


def test_a_weight_too_large_for_half_precision_is_not_written(tmp_path: Path) -> None:
    model = vocoder().fold()
    torch.nn.init.constant_(model.conv_pre.weight, 1e5)
    with pytest.raises(CheckpointError, match=r"conv_pre\.weight is not finite as torch\.float16"):
        checkpoint.save(tmp_path / "v.safetensors", model, provenance={}, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_stages_in_any_order_are_loaded_as_an_enhancer_for_inference(
    stages: tuple[Path, Path], order: tuple[int, int]
) -> None:
    model = checkpoint.load(*(stages[i] for i in order))
    assert isinstance(model, TwoStage)
    assert not model.training
    assert not any("parametrizations" in key for key in model.state_dict())
    assert not any(p.requires_grad for p in model.parameters())
    assert model(torch.zeros(1, 1, 600)).shape == (1, 1, 512)


def test_a_folder_with_both_stages_and_a_file_with_both_give_the_same_output(
    stages: tuple[Path, Path], tmp_path: Path
) -> None:
    both = checkpoint.load(stages[0].parent)
    checkpoint.save(tmp_path / "one" / "both.safetensors", both, provenance={})
    audio = torch.randn(1, 1, 2000)
    assert torch.equal(checkpoint.load(tmp_path / "one")(audio), both(audio))


def test_a_shipped_model_is_loaded_by_its_name(
    stages: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / "checkpoints" / "default" / "m.safetensors", checkpoint.load(*stages), provenance={})
    monkeypatch.setattr(model_files, "SHIPPED", (tmp_path / "checkpoints",))
    assert isinstance(checkpoint.load(), TwoStage)
    assert isinstance(checkpoint.load("default"), TwoStage)
    with pytest.raises(CheckpointError, match=r"nosuch: no such file, folder or shipped model \(default\)"):
        checkpoint.load("nosuch")


def test_a_stage_of_a_shipped_model_is_combined_with_another_stage(
    stages: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "checkpoints" / "default"
    checkpoint.save(home / "vocoder.safetensors", vocoder(), provenance={})
    checkpoint.save(home / "restorer.safetensors", Restorer(RESTORER), provenance={})
    monkeypatch.setattr(model_files, "SHIPPED", (tmp_path / "checkpoints",))
    audio = torch.randn(1, 1, 600)
    combined = checkpoint.load(stages[0], "default/vocoder")
    assert torch.equal(combined(audio), checkpoint.load(stages[0], home / "vocoder.safetensors")(audio))
    with pytest.raises(CheckpointError, match=r"default/vocode: no such file, folder or shipped model \(default\)"):
        checkpoint.load(stages[0], "default/vocode")


def test_the_best_weights_of_a_run_folder_are_loaded(stages: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("last", "best"):
        checkpoint.save(tmp_path / "run" / f"{name}.safetensors", Restorer(RESTORER), provenance={"name": name})
    torch.testing.assert_close(
        checkpoint.load_stage(tmp_path / "run").state_dict(),
        checkpoint.load_stage(tmp_path / "run" / "best.safetensors").state_dict(),
    )


def test_mel_settings_of_two_stages_must_agree(stages: tuple[Path, Path], tmp_path: Path) -> None:
    other = replace(VOCODER, mel=replace(MEL, fmax=7000.0))
    checkpoint.save(tmp_path / "o.safetensors", Vocoder(other), provenance={})
    with pytest.raises(
        CheckpointError, match=r"r\.safetensors and .*o\.safetensors: .*mel\.fmax is 8000\.0 and 7000\.0"
    ):
        checkpoint.load(stages[0], tmp_path / "o.safetensors")


def test_a_single_stage_is_not_loaded_as_an_enhancer(stages: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match="holds a vocoder alone; give a restorer's file beside it"):
        checkpoint.load(stages[1])
    stages[0].write_bytes(stages[1].read_bytes())
    with pytest.raises(CheckpointError, match="wanted a restorer and a vocoder, found: vocoder, vocoder"):
        checkpoint.load(*stages)


def _damage(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    tensors = {
        key: tensor.clone() for key, tensor in load_file(path).items()
    }  # load_file maps the file, which is damaged below
    metadata = checkpoint.read_header(path)
    texts = {"format": "twostage", "kind": "vocoder", "config": json.dumps(metadata.config)}
    match kind:
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("hello")
        case "pickle":
            path.write_bytes(pickle.dumps({"a": 1}))
        case "torch":
            torch.save(tensors, path)
        case "foreign":
            save_file(tensors, path)
        case "kind":
            save_file(tensors, path, texts | {"kind": "diffusion"})
        case "no config":
            save_file(tensors, path, {"format": "twostage", "kind": "vocoder"})
        case "config":
            save_file(tensors, path, texts | {"config": json.dumps(metadata.config | {"width": 3})})
        case "list":
            save_file(tensors, path, texts | {"config": "[]"})
        case "missing":
            save_file({k: t for k, t in tensors.items() if k != "conv_pre.bias"}, path, texts)
        case "unexpected":
            save_file(tensors | {"extra": torch.ones(1)}, path, texts)
        case "shape":
            save_file(tensors | {"conv_pre.bias": torch.ones(3)}, path, texts)
        case "nan":
            save_file(tensors | {"conv_pre.bias": torch.full((8,), torch.nan)}, path, texts)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "damaged"),
        ("empty", "not a safetensors file"),
        ("text", "not a safetensors file"),
        ("pickle", "not a safetensors file"),
        ("torch", "not a safetensors file"),
        ("foreign", "not of twostage"),
        ("kind", "unknown kind: diffusion"),
        ("no config", "settings inside cannot be read"),
        ("config", "vocoder.width: no such setting"),
        ("list", "settings inside cannot be read: not a JSON object"),
        ("missing", "conv_pre.bias missing"),
        ("unexpected", "extra unexpected"),
        ("shape", r"conv_pre.bias has shape \(3,\), wanted \(8,\)"),
        ("nan", "conv_pre.bias is not finite"),
    ],
)
def test_an_unusable_file_is_an_error_of_one_line_that_names_it(
    stages: tuple[Path, Path], kind: str, message: str
) -> None:
    _damage(stages[1], kind)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint.load_stage(stages[1])
    assert str(error.value).startswith(str(stages[1]))
    assert "\n" not in str(error.value)


@pytest.fixture(params=["shipped name", "folder of two", "folder of one", "file of both"])
def both(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, TwoStage]:
    """(path or name, model) of both stages, in every way in which they can be stored."""
    torch.manual_seed(1)
    model, home = TwoStage(TwoStageConfig(RESTORER, VOCODER)), tmp_path / "checkpoints" / "default"
    if request.param in ("shipped name", "folder of two"):
        checkpoint.save(home / "a.safetensors", model.restorer, provenance={})
        checkpoint.save(home / "b.safetensors", model.vocoder, provenance={})
    else:
        checkpoint.save(home / "both.safetensors", model, provenance={})
    monkeypatch.setattr(model_files, "SHIPPED", (tmp_path / "checkpoints",))
    names = {"shipped name": "default", "file of both": str(home / "both.safetensors")}
    return names.get(request.param, str(home)), model


@pytest.mark.parametrize("kind", ["restorer", "vocoder"])
def test_one_stage_is_loaded_from_a_path_with_both(both: tuple[str, TwoStage], kind: str) -> None:
    expected = checkpoint.plain_state(getattr(both[1], kind))
    for folded in (True, False):
        stage = checkpoint.load_stage(both[0], kind, folded=folded)
        assert stage.config == getattr(both[1].config, kind)
        torch.testing.assert_close(checkpoint.plain_state(stage), expected, atol=1e-6, rtol=0)
    torch.manual_seed(2)
    target = Restorer(RESTORER) if kind == "restorer" else Vocoder(VOCODER)
    checkpoint.initialize(target, both[0])
    torch.testing.assert_close(checkpoint.plain_state(target), expected, atol=1e-6, rtol=0)


def test_a_model_is_loaded_for_training(both: tuple[str, TwoStage]) -> None:
    model = checkpoint.load_for_training(both[0])
    assert isinstance(model, TwoStage)
    assert any("parametrizations" in key for key in model.state_dict())
    assert all(p.requires_grad for p in model.parameters())


def test_a_missing_stage_is_an_error_that_names_it(stages: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"r\.safetensors: holds a restorer, wanted a vocoder"):
        checkpoint.initialize(vocoder(), stages[0])
    with pytest.raises(CheckpointError, match=r"holds 2 \.safetensors files, wanted one"):
        checkpoint.load_stage(stages[0].parent)
    stages[1].write_bytes(stages[0].read_bytes())
    with pytest.raises(CheckpointError, match=r"holds 0 \.safetensors files with a vocoder, wanted one"):
        checkpoint.load_stage(stages[0].parent, "vocoder")


def test_a_training_state_is_loaded_and_no_temporary_file_is_left(tmp_path: Path) -> None:
    state = {"step": 3, "model": vocoder().state_dict(), "rng": torch.get_rng_state()}
    checkpoint.save_state(tmp_path / "state.pt", state)
    loaded = checkpoint.load_state(tmp_path / "state.pt")
    assert loaded["step"] == 3
    assert torch.equal(loaded["rng"], state["rng"])
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize(
    "content", [b"", b"rubbish", b"PK\x03\x04", pickle.dumps(RunsCode()), pickle.dumps({"step": RunsCode()})]
)
def test_an_invalid_training_state_is_an_error_of_one_line_and_its_code_does_not_run(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt: not a training state") as error:
        checkpoint.load_state(tmp_path / "state.pt")
    assert "\n" not in str(error.value)


def test_code_in_a_torch_archive_does_not_run(tmp_path: Path) -> None:
    torch.save({"step": 1, "model": TouchesFile(tmp_path / "ran")}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt: not a training state, damaged, or it holds code"):
        checkpoint.load_state(tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "state.pt", weights_only=False)  # without the check, it would run
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7])
def test_a_flipped_bit_in_a_training_state_is_detected(tmp_path: Path, fraction: float) -> None:
    """torch.load would return wrong values without an error."""
    checkpoint.save_state(tmp_path / "state.pt", {"step": 3, "model": vocoder().state_dict()})
    data = bytearray((tmp_path / "state.pt").read_bytes())
    data[int(fraction * len(data))] ^= 1
    (tmp_path / "state.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"state\.pt: not a training state, damaged"):
        checkpoint.load_state(tmp_path / "state.pt")


def test_a_flipped_bit_in_weights_is_detected(stages: tuple[Path, Path]) -> None:
    data = bytearray(stages[1].read_bytes())
    data[-100] ^= 1
    stages[1].write_bytes(data)
    with pytest.raises(CheckpointError, match=r"v\.safetensors: damaged, the weights are not those that were written"):
        checkpoint.load_stage(stages[1])


def test_weights_of_older_versions_without_a_checksum_are_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "v.safetensors", vocoder(), provenance={})
    with safe_open(tmp_path / "v.safetensors", framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    assert len(metadata.pop("sha256")) == 64
    save_file(tensors, tmp_path / "old.safetensors", metadata)
    loaded = checkpoint.load_stage(tmp_path / "old.safetensors")
    torch.testing.assert_close(checkpoint.plain_state(loaded), tensors, atol=1e-6, rtol=0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of file size")
def test_a_state_that_cannot_be_written_is_an_error_and_leaves_the_previous_one(tmp_path: Path) -> None:
    import resource

    state = {"step": 3, "model": vocoder().state_dict()}
    checkpoint.save_state(tmp_path / "state.pt", state)
    before, limits = (tmp_path / "state.pt").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"state\.pt: cannot be written \(File too large\)"):
            checkpoint.save_state(tmp_path / "state.pt", state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"state.pt": before}


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"mel": 1' + "0" * 5000 + "}"])
def test_settings_that_crash_parsers_are_short_errors(tmp_path: Path, text: str) -> None:
    metadata = {"format": "twostage", "kind": "vocoder", "config": text}
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: settings inside cannot be read") as error:
        checkpoint.load_stage(tmp_path / "x.safetensors")
    assert len(str(error.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["default", "causal"])
def test_a_loaded_model_can_be_pickled(name: str) -> None:
    """torch.save and spawned workers do so."""
    model = checkpoint.load(name)
    unpickled = pickle.loads(pickle.dumps(model))
    sound = 0.1 * torch.randn(1, 1, 4096, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpickled(sound), model(sound))
