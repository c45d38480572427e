"""Tests of the training tasks: loss terms, gradients, precision, and overfitting one batch."""

import math
from dataclasses import replace

import pytest
import torch
from small_models import parameters_with_gradients, small_vocoder

from twostage.data.pairs import Pair
from twostage.models.features import LogMel, MelConfig
from twostage.models.restorer import Restorer, RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import Vocoder
from twostage.training.adversary import Adversary, AdversaryConfig
from twostage.training.discriminators.audio import DiscriminatorConfig
from twostage.training.losses import frame_lines, mel_l1, ssim_distance
from twostage.training.optim import OptimizerConfig
from twostage.training.tasks import (
    Finetuning,
    FinetuningWeights,
    Restoring,
    RestoringWeights,
    Vocoding,
    VocodingWeights,
    total,
)
from twostage.training.trainer import Training, fit
from twostage.utils.errors import ConfigError

MEL = MelConfig(n_mels=16)
RESTORER = RestorerConfig(mel=MEL, channels=(8, 16), time_strides=(2,), blocks=1, dilations=(1,))
VOCODER = small_vocoder(MEL, channels=16)


@pytest.fixture
def pair(speech) -> Pair:
    clean = torch.from_numpy(speech(2 * 2048)).reshape(2, 1, 2048)
    return Pair(torch.nn.functional.avg_pool1d(clean, 9, 1, 4), clean)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def joint() -> TwoStage:
    return TwoStage(TwoStageConfig(RESTORER, VOCODER))


def test_the_loss_of_restoring_is_the_l1_of_log_mels(pair):
    mel, model = LogMel(MEL), Restorer(RESTORER)
    output = Restoring(RESTORER, RestoringWeights())(model, pair)
    assert output.terms.keys() == {"mel"}
    torch.testing.assert_close(output.terms["mel"], mel_l1(model(mel(pair.degraded)), mel(pair.clean)))


def test_the_adversary_of_stage_one_compares_log_mels(pair):
    mel, model = LogMel(MEL), Restorer(RESTORER)
    output = Restoring(RESTORER, RestoringWeights())(model, pair)
    torch.testing.assert_close(output.fake, model(mel(pair.degraded)))
    assert torch.equal(output.real, mel(pair.clean))


def test_the_ssim_term_is_relative_to_the_clamp_of_the_mel(pair):
    terms = Restoring(RESTORER, RestoringWeights(ssim=1))(Restorer(RESTORER), pair._replace(degraded=pair.clean)).terms
    assert terms.keys() == {"mel", "ssim"}
    assert terms["ssim"] < 0.01  # the initial output is close to the input
    silent = pair._replace(degraded=torch.zeros_like(pair.clean))
    output = Restoring(RESTORER, RestoringWeights(ssim=1))(Restorer(RESTORER), silent)
    expected = ssim_distance(output.fake, output.real, floor=math.log(1e-5))
    torch.testing.assert_close(output.terms["ssim"], expected)
    assert expected > 0.5


def test_vocoding_uses_the_clean_side_only(pair):
    task, model = Vocoding(MEL, VocodingWeights(multi_mel=1, stft=1, intelligibility=1)), Vocoder(VOCODER)
    output, other = task(model, pair), task(model, pair._replace(degraded=torch.zeros(2, 1, 2048)))
    assert output.terms == other.terms
    assert output.terms.keys() == {"mel", "multi_mel", "stft", "intelligibility"}
    assert torch.equal(output.real, pair.clean)


def test_lines_at_the_frame_rate_are_a_term_of_both_trainings_of_the_vocoder(pair):
    output = Vocoding(MEL, VocodingWeights(frame_lines=1))(Vocoder(VOCODER), pair)
    torch.testing.assert_close(output.terms["frame_lines"], frame_lines(output.fake, MEL.hop_length, MEL.sample_rate))
    output = Finetuning(MEL, FinetuningWeights(frame_lines=1), 16)(joint(), pair)
    torch.testing.assert_close(output.terms["frame_lines"], frame_lines(output.fake, MEL.hop_length, MEL.sample_rate))


def test_the_vocoder_is_fine_tuned_on_the_middle_frames_of_the_restorer(pair):
    model = joint()
    output = Finetuning(MEL, FinetuningWeights(), frames=4)(model, pair)
    assert output.fake.shape == (2, 1, 4 * 256)
    assert torch.equal(output.real, pair.clean[..., 2 * 256 : 6 * 256])
    restored = model.restorer(model.mel(pair.degraded))
    torch.testing.assert_close(output.fake, model.vocoder(restored[..., 2:6]))


@pytest.mark.parametrize("trained", [{"vocoder"}, {"restorer"}, {"restorer", "vocoder"}])
def test_gradients_reach_exactly_the_trained_stages(pair, trained):
    model, weights = joint(), FinetuningWeights(restored=0 if trained == {"vocoder"} else 1, adv=0, fm=0)
    torch.nn.init.normal_(model.restorer.conv_post.bias)
    for part in ("restorer", "vocoder"):
        getattr(model, part).requires_grad_(part in trained)
    total(Finetuning(MEL, weights, frames=8)(model, pair).terms, weights).backward()
    reached = parameters_with_gradients(model)
    expected = {name for name, p in model.named_parameters() if name.split(".")[0] in trained}
    assert reached == expected


@pytest.mark.parametrize(
    ("task", "model"),
    [
        (Restoring(RESTORER, RestoringWeights(delta=1, intelligibility=1, ssim=1)), lambda: Restorer(RESTORER)),
        (Vocoding(MEL, VocodingWeights(multi_mel=1, stft=1)), lambda: Vocoder(VOCODER)),
        (Finetuning(MEL, FinetuningWeights(restored=1), 4), joint),
    ],
)
def test_terms_are_float32_under_autocast(pair, task, model):
    model = model()  # here, with the seed of the test
    with torch.autocast("cpu", torch.bfloat16):
        output = task(model, pair)
    assert {term.dtype for term in output.terms.values()} == {torch.float32}
    for term, exact in zip(output.terms.values(), task(model, pair).terms.values(), strict=True):
        torch.testing.assert_close(term, exact, atol=0.02, rtol=0.05)


def test_the_total_is_the_weighted_sum():
    terms = {"mel": torch.tensor(2.0), "adv": torch.tensor(3.0), "fm": torch.tensor(5.0)}
    assert total(terms, VocodingWeights(mel=45, adv=1, fm=2)) == 45 * 2 + 3 + 10


def test_every_term_needs_a_weight_and_every_weight_a_term():
    terms = {"mel": torch.tensor(1.0)}
    with pytest.raises(ConfigError, match=r"weights.adv is 1.0, but there is no loss term of that name: mel"):
        total(terms, VocodingWeights())
    with pytest.raises(ConfigError, match="loss term stft has no weight; weights has mel, delta"):
        total(terms | {"stft": torch.tensor(1.0)}, RestoringWeights())
    assert total(terms, VocodingWeights(), pending=("adv", "fm")) == 45
    assert total(terms, VocodingWeights(adv=0, fm=0)) == 45


def losses_on_one_batch(model, task, pair, weights, steps, *, rate=2e-3, adversary=None):
    """The mel term of the first and of the last of some steps on one batch."""
    mel_losses = []
    config = OptimizerConfig(learning_rate=rate, betas=(0.9, 0.99), ema_decay=0)
    training = Training(model, config, adversary)
    fit(
        training,
        task,
        iter(lambda: pair, None),
        weights,
        steps=steps,
        report=lambda _, p: mel_losses.append(float(p.values["mel"])),
    )
    return mel_losses[0], mel_losses[-1]


def test_stage_one_overfits_one_batch(pair):
    first, last = losses_on_one_batch(
        Restorer(RESTORER), Restoring(RESTORER, RestoringWeights()), pair, RestoringWeights(), 80, rate=5e-3
    )
    assert last < 0.4 * first


@pytest.mark.slow
@pytest.mark.parametrize("adversarial", [False, True])
def test_stage_two_overfits_one_batch(pair, adversarial):
    weights = VocodingWeights() if adversarial else VocodingWeights(adv=0, fm=0)
    discriminators = AdversaryConfig(DiscriminatorConfig(periods=(3,), scales=1, width=0.0625))
    adversary = Adversary(discriminators, OptimizerConfig()) if adversarial else None
    model = Vocoder(VOCODER)
    first, last = losses_on_one_batch(model, Vocoding(MEL, weights), pair, weights, 50, rate=1e-2, adversary=adversary)
    assert last < 0.6 * first


def test_both_stages_overfit_one_batch(pair):
    weights = FinetuningWeights(restored=10, adv=0, fm=0)
    first, last = losses_on_one_batch(joint(), Finetuning(MEL, weights, 4), pair, weights, 60, rate=1e-2)
    assert last < 0.6 * first


def test_the_mask_learns_to_fill_a_silent_band(speech):
    config = replace(RESTORER, output="mask")
    mel = LogMel(MEL)(torch.from_numpy(speech(8192))[None, None])
    silent = mel.clone()
    silent[:, 8:] = math.log(MEL.clamp)
    model = Restorer(config)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(120):
        loss = mel_l1(model(silent), mel)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gap = (mel - silent)[:, 8:].mean()
    filled = (model(silent) - silent)[:, 8:].mean()
    assert gap > 2.0  # nepers, far from silence
    assert filled > 0.8 * gap


class Recorder(torch.nn.Module):
    """Calls a model and keeps what it was called with, and whether gradients were computed."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, []

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        self.calls.append((args, kwargs, torch.is_grad_enabled()))
        return self.model(*args, **kwargs)


def test_the_vocoder_gets_the_degraded_waveform_as_its_sensor_input(pair):
    vocoder = Recorder(Vocoder(replace(VOCODER, sensor_input=True)))
    Vocoding(MEL, VocodingWeights())(vocoder, pair)
    ((mel,), kwargs, _) = vocoder.calls[0]
    torch.testing.assert_close(mel, LogMel(MEL)(pair.clean))
    assert torch.equal(kwargs["sensor"], pair.degraded)


def test_fine_tuning_gives_the_vocoder_the_sensor_of_its_frames(pair):
    model = joint()
    model.vocoder = Recorder(model.vocoder)
    Finetuning(MEL, FinetuningWeights(), frames=4)(model, pair)
    ((mel,), kwargs, _) = model.vocoder.calls[0]
    assert mel.shape[-1] == 4
    assert torch.equal(kwargs["sensor"], pair.degraded[..., 2 * 256 : 6 * 256])


@pytest.mark.parametrize("frozen", [True, False])
def test_a_restorer_is_run_with_gradients_only_if_it_learns(pair, frozen):
    model = joint()
    model.restorer = Recorder(model.restorer.requires_grad_(not frozen))
    Finetuning(MEL, FinetuningWeights(), frames=4)(model, pair)
    assert [gradients for _, _, gradients in model.restorer.calls] == [not frozen]


def test_restored_log_mels_are_compared_with_the_clean_ones(pair):
    model, mel = joint(), LogMel(MEL)
    terms = Finetuning(MEL, FinetuningWeights(restored=1), frames=4)(model, pair).terms
    torch.testing.assert_close(terms["restored"], mel_l1(model.restorer(mel(pair.degraded)), mel(pair.clean)))


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
def test_restoring_aims_at_the_quantile(pair, quantile):
    mel, model = LogMel(MEL), Restorer(RESTORER)
    fake, real = model(mel(pair.degraded)), mel(pair.clean)
    term = Restoring(RESTORER, RestoringWeights(), quantile)(model, pair).terms["mel"]
    torch.testing.assert_close(
        term, 2 * (quantile * (real - fake).relu() + (1 - quantile) * (fake - real).relu()).mean()
    )
