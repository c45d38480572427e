"""Tests of settings: files and overrides are merged, and every error names the field in full."""

from pathlib import Path

import pytest
from trainings import data_overrides

from twostage.data.sensors import load_sensor
from twostage.training.adversary import AdversaryConfig, MelAdversaryConfig
from twostage.training.config import FinetuneRun, RestorerRun, VocoderRun, difference, load_config, plain, to_yaml
from twostage.training.discriminators.audio import DiscriminatorConfig
from twostage.training.discriminators.mel import MelDiscriminatorConfig
from twostage.utils.errors import ConfigError, TwoStageError
from twostage.utils.schema import build


@pytest.fixture
def overrides(corpus: Path, tmp_path: Path) -> list[str]:
    return data_overrides(corpus, tmp_path / "run")


def test_later_files_and_then_single_settings_take_precedence(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("steps: 1\nseed: 1\noptimizer: {learning_rate: 1e-3, grad_clip: 3}\n")
    (tmp_path / "b.yaml").write_text("seed: 2\noptimizer: {grad_clip: 4}\nvocoder: {upsample_initial_channel: 32}\n")
    files = [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
    settings = load_config(VocoderRun, files, [*overrides, "optimizer.grad_clip=5", "steps=9"])
    assert (settings.steps, settings.seed, settings.optimizer.learning_rate) == (9, 2, 1e-3)
    assert settings.optimizer.grad_clip == 5.0
    assert settings.vocoder.upsample_initial_channel == 32


def test_lists_become_tuples_at_any_depth(overrides: list[str]) -> None:
    settings = load_config(VocoderRun, ["vocoder", "hifigan_v3"], overrides)
    assert settings.vocoder.resblock_dilation_sizes == ((1, 2), (2, 6), (3, 12))
    assert settings.optimizer.betas == (0.8, 0.99)


def test_an_overlay_has_sections_for_each_kind_of_training(overrides: list[str]) -> None:
    assert load_config(RestorerRun, ["restorer", "tiny"], overrides).restorer.channels == (4, 8)
    assert load_config(VocoderRun, ["vocoder", "tiny"], overrides).vocoder.upsample_initial_channel == 8


def test_an_adversary_uses_only_the_discriminators_of_its_training(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text(
        "adversary: {loss: hinge, discriminator: {scales: 1}, mel_discriminator: {channels: [4, 8]}}\n"
    )
    restorer, vocoder = (
        load_config(cls, [name, str(tmp_path / "both.yaml")], overrides)
        for cls, name in ((RestorerRun, "restorer"), (VocoderRun, "vocoder"))
    )
    assert restorer.adversary == MelAdversaryConfig(MelDiscriminatorConfig((4, 8)), loss="hinge")
    assert vocoder.adversary == AdversaryConfig(DiscriminatorConfig(scales=1, width=0.25), loss="hinge")
    (tmp_path / "mistyped.yaml").write_text("adversary: {discriminators: {scales: 1}}\n")
    with pytest.raises(ConfigError, match=r"adversary\.discriminators: no such setting"):
        load_config(RestorerRun, ["restorer", str(tmp_path / "mistyped.yaml")], overrides)


def test_values_in_a_file_may_refer_to_others(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "refers.yaml").write_text("seed: 7\noptimizer: {grad_clip: '${seed}'}\nadversary: {start: '${seed}'}\n")
    settings = load_config(VocoderRun, ["vocoder", str(tmp_path / "refers.yaml")], [*overrides, "seed=9"])
    assert (settings.optimizer.grad_clip, settings.adversary.start) == (9.0, 9)


def test_settings_are_read_back_from_yaml(overrides: list[str], tmp_path: Path) -> None:
    settings = load_config(VocoderRun, ["vocoder"], overrides)
    (tmp_path / "stored.yaml").write_text(to_yaml(settings))
    assert load_config(VocoderRun, [str(tmp_path / "stored.yaml")]) == settings
    assert build(VocoderRun, plain(settings)) == settings


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.learning_rat=1", "optimizer.learning_rat: no such setting; there are learning_rate, "),
        ("optimiser.clip=1", "optimiser: no such setting"),
        ("vocoder.mel.n_mel=3", "vocoder.mel.n_mel: no such setting"),
        ("steps=many", "steps is 'many', must be of type int"),
        ("steps=0", "steps, log_every and save_every must be at least 1"),
        ("steps=1.5", "steps is 1.5, must be of type int"),
        ("adversary.adaptive=1", "adversary.adaptive is 1, must be of type bool"),
        ("adversary.adaptive=both", "adversary.adaptive is 'both', must be true, false or 'each'"),
        ("optimizer.betas=[0.9]", r"optimizer.betas is \[0.9\], must have 2 entries"),
        ("optimizer.betas=[0.9,1.5]", r"betas and ema_decay must be in \[0, 1\): .*1.5"),
        ("optimizer=3", "optimizer: 3 is not a mapping"),
        ("vocoder.upsample_rates=[8,8,2]", "vocoder.upsample_rates multiply to 128, mel.hop_length is 256"),
        ("vocoder.resblock_dilation_sizes=[[1,a],[1,3]]", r"vocoder.resblock_dilation_sizes\[0\]\[1\] is 'a'"),
        ("adversary.loss=wasserstein", "adversary.loss is 'wasserstein', must be one of least_squares, hinge"),
        ("adversary.generator_steps=0", "adversary.generator_steps is 0, must be at least 1"),
        ("adversary.discriminator.width=0.01", "discriminator.width is 0.01, must be a multiple of 1/16"),
        ("precision=float8", "precision is 'float8', must be float32 or bfloat16"),
        ("device=tpu", "device is 'tpu', must be one of auto, cpu, cuda, mps"),
        ("data.segment_length=1000", "data.segment_length is 1000, must be a multiple of mel.hop_length, 256"),
        ("data.sample_rate=8000", "data.sample_rate is 8000, mel.sample_rate 16000"),
        ("data.train=[nosuch.csv]", "data.train: nosuch.csv: no such file"),
        ("data.train=nosuch.csv", "data.train is 'nosuch.csv', must be a list"),
        ("data.train=[]", "data.train is empty, must name a manifest"),
        ("data.noise=nosuch", "data.noise: nosuch: no such folder"),
        ("data.batch_size=0", "data.batch_size is 0, must be at least 1"),
        ("valid.metrics=[pesk]", "valid.metrics: no metric 'pesk'; there are pesq, stoi"),
        ("valid.best=lsd", "valid.best is 'lsd', must be one of valid.metrics"),
        ("run_dir=", "run_dir is"),
        ("steps", "steps: no such file or shipped configuration"),
    ],
)
def test_an_invalid_setting_is_an_error_of_one_line(overrides: list[str], setting: str, message: str) -> None:
    files = ["vocoder"] if "=" in setting else ["vocoder", setting]
    with pytest.raises(ConfigError, match=message) as error:
        load_config(VocoderRun, files, [*overrides, setting] if "=" in setting else overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_stored_adversary_of_an_older_version_is_read_with_defaults(adaptive: bool) -> None:
    stored = {"adaptive": adaptive, "discriminator": {"periods": [2], "scales": 1, "width": 0.25, "resolutions": []}}
    assert build(AdversaryConfig, stored) == AdversaryConfig(DiscriminatorConfig((2,), 1, 0.25), adaptive=adaptive)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["valid.metrics=[mel_l1,stoi]"], "valid.metrics: stoi needs sound: set valid.vocoder"),
        (
            ["data.sensors=[]", "data.sensor_weights=[]"],
            "data.sensors is empty, and data.real_fraction below 1 needs simulation",
        ),
        (["restorer.output=magic"], "restorer.output is 'magic', must be 'mask' or 'mapping'"),
        (["weights.stft=1"], "weights.stft: no such setting; there are mel, delta"),
        (["weights.ssim=much"], "weights.ssim is 'much', must be of type float"),
        (["adversary.loss=wasserstein"], "adversary.loss is 'wasserstein', must be one of least_squares, hinge"),
        (["adversary.discriminator.width=1"], "adversary.discriminator: no such setting; there are loss, "),
        (["adversary.mel_discriminator.width=1"], "adversary.mel_discriminator.width: no such setting; there are chan"),
        (["adversary.mel_discriminator.channels=[]"], r"mel_discriminator.channels is \[\], must be one or more"),
        (["adversary.mel_discriminator.channels=[8,0]"], r"mel_discriminator.channels is \[8, 0\], .* at least 1"),
        (["adversary.mel_discriminator.kernel_size=4"], "mel_discriminator.kernel_size is 4, must be odd"),
    ],
)
def test_invalid_settings_of_a_restorer_are_refused(overrides: list[str], settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_config(RestorerRun, ["restorer"], [*overrides, *settings])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "models: missing"),
        (["models=[a]", "train=all"], "train is 'all', must be one of vocoder, restorer, both"),
        (["models=[a]", "weights.restored=1"], "weights.restored is 1.0, but train is vocoder"),
        (["models=[a]", "init_from=b"], "init_from is 'b'; fine-tuning starts from models"),
        (["models=[a]", "frames=0"], "frames is 0, must be at least 1"),
        (["models=[a]", "data.sensors=[]", "data.sensor_weights=[]"], "data.sensors is empty, and data.real_fraction"),
        (["models=[a]", "frames=7", "weights.frame_lines=1"], "frames is 7, weights.frame_lines needs 8"),
    ],
)
def test_invalid_settings_of_fine_tuning_are_refused(overrides: list[str], settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(FinetuneRun, ["finetune"], [*overrides, *settings])


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "\x00"])
def test_a_file_that_is_no_mapping_is_an_error_that_names_it(overrides: list[str], tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml: not "):
        load_config(VocoderRun, [str(tmp_path / "bad.yaml")], overrides)


def test_only_folders_lengths_and_intervals_may_differ_between_runs(overrides: list[str]) -> None:
    before = load_config(VocoderRun, ["vocoder"], overrides)
    allowed = [
        "run_dir=other",
        "steps=7",
        "log_every=1",
        "save_every=3",
        "threads=1",
        "valid.every=5",
        "data.prefetch=1",
    ]
    assert difference(load_config(VocoderRun, ["vocoder"], [*overrides, *allowed]), before) == ""
    changed = load_config(VocoderRun, ["vocoder"], [*overrides, "vocoder.mel.fmax=7000"])
    assert difference(changed, before) == "vocoder.mel.fmax is 7000.0, was 8000.0"


def test_values_in_messages_are_short(overrides: list[str], tmp_path: Path) -> None:
    """YAML aliases can describe a value that is small in memory and endless when it is printed."""
    bomb = "&a [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"
    for name, inner in zip("bcdefghijklmno", "abcdefghijklmn", strict=True):
        bomb = f"&{name} [{bomb}{f', *{inner}' * 9}]"
    (tmp_path / "bomb.yaml").write_text(f"frequencies: {bomb}\n")
    with pytest.raises(ConfigError, match=r"bomb\.yaml: sensor.frequencies\[0\] is \[\[\[") as error:
        load_sensor(tmp_path / "bomb.yaml")
    assert len(str(error.value)) < 1000
    (tmp_path / "bad.yaml").write_text(f"steps: {[1] * 5_000}\n")
    with pytest.raises(ConfigError, match=r"steps is \[1, 1, 1, 1, 1, 1, \.\.\.\], must be of type int"):
        load_config(VocoderRun, ["vocoder", str(tmp_path / "bad.yaml")], overrides)


@pytest.mark.parametrize("text", ["cutoff: 1" + "0" * 5000, "cutoff: 2026-02-31", "cutoff: " + "[" * 20_000])
def test_a_sensor_that_crashes_the_yaml_parser_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(TwoStageError, match=r"s\.yaml: ") as error:
        load_sensor(tmp_path / "s.yaml")
    assert "\n" not in str(error.value)
