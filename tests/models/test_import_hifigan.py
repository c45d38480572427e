"""Tests of importing HiFi-GAN: a published generator gives the same output, and every deviation is an error."""

import json
import pickle
import warnings
from argparse import ArgumentParser

import librosa.filters
import numpy as np
import pytest
import torch
from scipy.signal.windows import hann
from torch.nn import functional as F
from unsafe_pickles import TouchesFile

from twostage.commands import import_hifigan as command
from twostage.models import checkpoint
from twostage.models.features import LogMel, MelConfig
from twostage.models.import_hifigan import import_hifigan, read_config
from twostage.utils.errors import CheckpointError, ConfigError

PUBLISHED = {
    "resblock": "1", "num_gpus": 0, "batch_size": 16, "learning_rate": 0.0002, "adam_b1": 0.8, "adam_b2": 0.99,
    "lr_decay": 0.999, "seed": 1234, "upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4],
    "upsample_initial_channel": 8, "resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3, 5], [1, 2, 3]],
    "segment_size": 8192, "num_mels": 6, "num_freq": 1025, "n_fft": 32, "hop_size": 8, "win_size": 32,
    "sampling_rate": 22050, "fmin": 0, "fmax": 8000, "fmax_for_loss": None, "num_workers": 4,
    "dist_config": {"world_size": 1},
}  # fmt: skip


def convolutions(h):
    """(name, weight shape, channels) of every convolution of the published generator, after the paper's appendix."""
    wide, mels = h["upsample_initial_channel"], h["num_mels"]
    yield "conv_pre", (wide, mels, 7), wide
    for i, kernel in enumerate(h["upsample_kernel_sizes"]):
        yield f"ups.{i}", (wide >> i, wide >> i + 1, kernel), wide >> i + 1
        for j, size in enumerate(h["resblock_kernel_sizes"]):
            block = f"resblocks.{i * len(h['resblock_kernel_sizes']) + j}"
            names = ["convs1.0", "convs1.1", "convs1.2", "convs2.0", "convs2.1", "convs2.2"]
            for name in names if h["resblock"] == "1" else ["convs.0", "convs.1"]:
                yield f"{block}.{name}", (wide >> i + 1, wide >> i + 1, size), wide >> i + 1
    yield "conv_post", (1, wide >> len(h["upsample_rates"]), 7), 1


def generator(h, seed=0):
    draw, state = torch.Generator().manual_seed(seed), {}
    for name, shape, outputs in convolutions(h):
        state[f"{name}.weight_v"] = torch.randn(shape, generator=draw)
        state[f"{name}.weight_g"] = torch.rand(shape[0], 1, 1, generator=draw) + 0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=draw)
    return state


def plain(state):
    """Weight normalization by its definition: g * v / |v|, with the norm over all axes except the first."""
    weights = {k: v for k, v in state.items() if k.endswith("bias")}
    for key, v in state.items():
        if key.endswith("weight_v"):
            length = v.flatten(1).norm(dim=1)[:, None, None]
            weights[key.replace("weight_v", "weight")] = state[key.replace("weight_v", "weight_g")] * v / length
    return weights


def published_forward(h, state, mel):
    """The published forward pass, an independent functional implementation."""
    w = plain(state)

    def conv(name, x, dilation=1):
        kernel = w[f"{name}.weight"]
        padding = (kernel.shape[-1] - 1) * dilation // 2
        return F.conv1d(x, kernel, w[f"{name}.bias"], padding=padding, dilation=dilation)

    def block(name, x, dilations):
        if h["resblock"] == "2":
            for n in range(2):
                x = conv(f"{name}.convs.{n}", F.leaky_relu(x, 0.1), dilations[n]) + x
            return x
        for n in range(3):
            inner = conv(f"{name}.convs1.{n}", F.leaky_relu(x, 0.1), dilations[n])
            x = conv(f"{name}.convs2.{n}", F.leaky_relu(inner, 0.1)) + x
        return x

    x, kinds = conv("conv_pre", mel), h["resblock_dilation_sizes"]
    for i, (rate, kernel) in enumerate(zip(h["upsample_rates"], h["upsample_kernel_sizes"], strict=True)):
        x = F.leaky_relu(x, 0.1)
        x = F.conv_transpose1d(x, w[f"ups.{i}.weight"], w[f"ups.{i}.bias"], stride=rate, padding=(kernel - rate) // 2)
        x = sum(block(f"resblocks.{i * len(kinds) + j}", x, d) for j, d in enumerate(kinds)) / len(kinds)
    return torch.tanh(conv("conv_post", F.leaky_relu(x)))  # torch's default slope, 0.01


@pytest.fixture
def write(tmp_path):
    def files(state, h=PUBLISHED, wrap=True):
        torch.save({"generator": state} if wrap else state, tmp_path / "g")
        (tmp_path / "h.json").write_text(json.dumps(h))
        return tmp_path / "g", tmp_path / "h.json", tmp_path / "out.safetensors"

    return files


@pytest.mark.parametrize("kind", ["1", "2"])
@pytest.mark.parametrize("form", ["normalized", "folded", "bare"])
def test_an_imported_generator_gives_the_published_output(write, kind, form):
    h = PUBLISHED | {"resblock": kind}
    state, mel = generator(h), torch.randn(2, 6, 9)
    weights, config, out = write(plain(state) if form == "folded" else state, h, wrap=form != "bare")
    import_hifigan(weights, config, out)
    vocoder = checkpoint.load_stage(out)
    expected = published_forward(h, state, mel)
    assert expected.shape == (2, 1, 72)
    assert expected.abs().mean() > 0.01
    torch.testing.assert_close(vocoder(mel), expected, atol=1e-5, rtol=0)
    assert vocoder.config.mel == MelConfig(22050, 32, 32, 8, 6, 0.0, 8000.0)


def test_a_missing_fmax_is_the_nyquist_frequency(write):
    assert read_config(write({}, PUBLISHED | {"fmax": None})[1]).mel.fmax == 11025


@pytest.mark.parametrize(("published", "highest"), [(None, 11025), (9000, 9000), ("left out", 11025)])
def test_the_highest_frequency_of_the_losses_is_kept(write, published, highest):
    settings = PUBLISHED | {"fmax_for_loss": published}
    if published == "left out":
        del settings["fmax_for_loss"]
    weights, config, out = write(generator(PUBLISHED), settings)
    import_hifigan(weights, config, out)
    actual = checkpoint.load_stage(out, "vocoder").config
    assert (actual.mel_of_losses.fmax, actual.mel.fmax) == (highest, 8000)


def test_the_provenance_names_the_source(write):
    weights, config, out = write(generator(PUBLISHED))
    import_hifigan(weights, config, out)
    provenance = checkpoint.read_header(out).provenance
    assert provenance["imported from"] == "g"
    assert len(provenance["sha256"]) == 64


def test_the_published_mel_differs_only_near_silence():
    audio, padding = np.random.default_rng(0).normal(size=62 * 256).astype(np.float32), 384
    basis = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=80, fmax=8000)
    for level, tolerance in ((0.05, 1e-4), (1e-4, 0.02), (1e-6, 0.02)):
        padded = np.pad(level * audio, padding, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, 1024)[::256] * hann(1024, sym=False)
        spectrum = np.fft.rfft(frames).T
        theirs = np.log(np.maximum(basis @ np.sqrt(np.abs(spectrum) ** 2 + 1e-9), 1e-5))
        ours = LogMel(MelConfig())(torch.from_numpy(level * audio)[None, None])[0].numpy()
        assert np.abs(theirs - ours).max() < tolerance


def without(mapping, key):
    return {k: v for k, v in mapping.items() if k != key}


STATE = generator(PUBLISHED)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (STATE | {"extra.weight": torch.zeros(1)}, "extra.weight unexpected"),
        (without(STATE, "ups.1.bias"), "ups.1.bias missing"),
        (without(STATE, "ups.1.weight_g"), "ups.1.weight_v is there without its weight_g"),
        (without(STATE, "ups.1.weight_v"), "ups.1.weight_g is there without its weight_v"),
        (without(without(STATE, "ups.1.weight_v"), "ups.1.weight_g"), "ups.1.weight missing"),
        (STATE | {"conv_post.bias": torch.zeros(2)}, r"conv_post.bias has shape \(2,\), wanted \(1,\)"),
        (STATE | {"conv_post.bias": torch.full((1,), torch.nan)}, "conv_post.bias is not finite"),
        ({}, "holds no generator"),
    ],
)
def test_missing_unexpected_and_invalid_tensors_are_named(write, state, message):
    weights, config, out = write(state)
    with pytest.raises(CheckpointError, match=message) as error:
        import_hifigan(weights, config, out)
    assert str(weights) in str(error.value)
    assert "\n" not in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (without(PUBLISHED, "hop_size"), "hop_size: missing"),
        (PUBLISHED | {"activation": "snake"}, "activation: not a setting of the published generator"),
        (PUBLISHED | {"hop_size": 16}, "upsample_rates multiply to 8, mel.hop_length is 16"),
        (PUBLISHED | {"resblock": "3"}, "resblock is '3'"),
        (PUBLISHED | {"num_mels": "80"}, "mel.n_mels is '80'"),
        (PUBLISHED | {"resblock_dilation_sizes": [[1, 3], [1, 3]]}, "blocks of type 1 need 3 dilations"),
        ([1], "not a JSON object"),
    ],
)
def test_missing_unexpected_and_invalid_settings_are_named(write, settings, message):
    weights, config, out = write(STATE, settings)
    with pytest.raises(ConfigError, match=message) as error:
        import_hifigan(weights, config, out)
    assert str(config) in str(error.value)


def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights, config, out = write({"conv_pre.bias": TouchesFile()})
    with pytest.raises(CheckpointError, match="holds code, which is not run"):
        import_hifigan(weights, config, out)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 broken", pickle.dumps(TouchesFile(), protocol=4)])
def test_a_file_that_is_no_torch_file_is_an_error_without_warnings(write, content):
    weights, config, out = write(STATE)
    weights.write_bytes(content)
    with warnings.catch_warnings(action="error"), pytest.raises(CheckpointError, match="not a file of tensors"):
        import_hifigan(weights, config, out)


def test_missing_files_are_named(write):
    weights, config, out = write(STATE)
    with pytest.raises(CheckpointError, match="nowhere: no such file"):
        import_hifigan("nowhere", config, out)
    with pytest.raises(ConfigError, match="nowhere: No such file"):
        import_hifigan(weights, "nowhere", out)
    config.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        import_hifigan(weights, config, out)


def test_the_command_replaces_a_file_only_with_overwrite(write, capsys):
    parser = ArgumentParser()
    command.add_arguments(parser)
    args = [str(path) for path in write(STATE)]
    assert command.run(parser.parse_args(args)) == 0
    assert "22050 Hz, 6 mels to 8000 Hz" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="exists already"):
        command.run(parser.parse_args(args))
    assert command.run(parser.parse_args([*args, "--overwrite"])) == 0
