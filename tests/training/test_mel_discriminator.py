"""Tests of the discriminator of log-mels: feature maps, receptive field, training, and use in a restorer's training."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.data.pairs import Pair
from twostage.models.features import LogMel, MelConfig
from twostage.models.restorer import Restorer, RestorerConfig
from twostage.training.adversary import Adversary, MelAdversaryConfig
from twostage.training.discriminators.mel import MelDiscriminator, MelDiscriminatorConfig
from twostage.training.optim import OptimizerConfig
from twostage.training.tasks import Restoring, RestoringWeights
from twostage.training.trainer import StepResult, Training, fit

MEL = MelConfig(n_mels=32)
RESTORER = RestorerConfig(mel=MEL, channels=(4, 8), time_strides=(2,), blocks=1, dilations=(1,))
SMALL = MelDiscriminatorConfig(channels=(8, 16))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def mels(speech) -> Tensor:
    """Log-mels (6, n_mels, 40) of six voices."""
    clean = torch.stack([torch.from_numpy(speech(40 * 256, seed=seed)) for seed in range(6)])
    return LogMel(MEL)(clean[:, None])


@pytest.fixture
def pair(speech) -> Pair:
    clean = torch.from_numpy(speech(2 * 4096)).reshape(2, 1, 4096)
    return Pair(F.avg_pool1d(clean, 9, 1, 4), clean)


def smoothed(mel: Tensor) -> Tensor:
    return F.avg_pool2d(mel, 5, 1, 2, count_include_pad=False)


@pytest.mark.parametrize("shape", [(80, 96), (16, 8), (30, 1)])
def test_there_is_one_discriminator_with_a_map_per_convolution_and_logits_last(shape: tuple[int, int]) -> None:
    (maps,) = MelDiscriminator(MelDiscriminatorConfig())(torch.randn(2, *shape))
    halved = [tuple(-(-side // 2**n) for side in shape) for n in (1, 2, 3, 3)]
    assert [m.shape for m in maps[:-1]] == [(2, c, *s) for c, s in zip((16, 32, 64, 64), halved, strict=True)]
    assert maps[-1].shape == (2, halved[-1][0] * halved[-1][1])


def test_a_logit_depends_on_a_patch_of_47_bands_and_frames() -> None:
    mel = torch.randn(1, 128, 128, requires_grad=True)
    logits = MelDiscriminator(MelDiscriminatorConfig())(mel)[0][-1].reshape(16, 16)
    logits[8, 8].backward()
    for gradient in (mel.grad[0].abs().sum(0), mel.grad[0].abs().sum(1)):
        positions = gradient.nonzero()
        assert int(positions[-1] - positions[0]) + 1 == 47


def test_the_discriminator_has_the_frequency_of_a_band_as_input() -> None:
    discriminator = MelDiscriminator(SMALL)
    maps = discriminator(torch.full((1, 32, 32), -6.0))[0][0]
    maps = maps[0, :, 4:-4, 4:-4]  # without the edges
    assert maps.std(dim=1).amax() > 0.01
    torch.testing.assert_close(maps.std(dim=2), torch.zeros(8, 8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss", ["least_squares", "hinge"])
def test_the_discriminator_learns_to_distinguish_smoothed_mels_from_real_ones(mels: Tensor, loss: str) -> None:
    discriminator = Adversary(MelAdversaryConfig(loss=loss), OptimizerConfig())
    for _ in range(60):
        discriminator.train_step(smoothed(mels[:4]), mels[:4], 2e-3)
    of_real, of_fake = (discriminator.discriminators(mel)[0][-1].mean(1) for mel in (mels[4:], smoothed(mels[4:])))
    assert of_real.min() > of_fake.max() + 0.3  # voices that are not in the training


def test_mels_that_follow_its_gradient_become_less_smooth(mels: Tensor) -> None:
    discriminator = Adversary(MelAdversaryConfig(), OptimizerConfig())
    for _ in range(60):
        discriminator.train_step(smoothed(mels[:4]), mels[:4], 2e-3)
    fake = smoothed(mels[4:]).requires_grad_()
    before = roughness(fake)
    optimizer = torch.optim.Adam([fake], 0.02)
    for _ in range(20):
        optimizer.zero_grad()
        discriminator.generator_loss(fake, mels[4:], matching=False)["adv"].backward()
        optimizer.step()
    assert roughness(fake) > 1.2 * before


def roughness(mel: Tensor) -> float:
    """Mean distance of a log-mel from its smoothed form, in nepers."""
    return float((mel - smoothed(mel)).abs().mean().detach())


def run(pair: Pair, weights: RestoringWeights, steps: int, **rules) -> list[dict[str, Tensor]]:
    """The values that each step of a restorer's training on one batch reported."""
    training = Training(Restorer(RESTORER), OptimizerConfig(ema_decay=0))
    if weights.adv or weights.fm:
        training.adversary = Adversary(MelAdversaryConfig(SMALL, **rules), OptimizerConfig())
    reported: list[dict[str, Tensor]] = []

    def report(_: Training, progress: StepResult) -> None:
        reported.append(progress.values)

    fit(training, Restoring(RESTORER, weights), iter(lambda: pair, None), weights, steps=steps, report=report)
    return reported


def test_the_loss_is_the_weighted_sum_of_its_terms(pair: Pair) -> None:
    (values,) = run(pair, RestoringWeights(mel=3, ssim=5, adv=7, fm=11), 1)
    total = 3 * values["mel"] + 5 * values["ssim"] + 7 * values["adv"] + 11 * values["fm"]
    torch.testing.assert_close(values["loss"], total)


@pytest.mark.parametrize(
    ("weights", "terms"),
    [
        (RestoringWeights(), set()),
        (RestoringWeights(ssim=1), {"ssim"}),
        (RestoringWeights(adv=1), {"adv", "discriminator_loss", "discriminator_grad_norm"}),
        (RestoringWeights(fm=1), {"adv", "fm", "discriminator_loss", "discriminator_grad_norm"}),
    ],
)
def test_terms_with_a_weight_of_zero_are_not_computed(pair: Pair, weights: RestoringWeights, terms: set[str]) -> None:
    (values,) = run(pair, weights, 1)
    assert values.keys() == {"loss", "mel", "grad_norm"} | terms


def test_start_and_generator_steps_of_the_adversary_apply_to_mels(pair: Pair) -> None:
    reported = run(pair, RestoringWeights(adv=1), 5, start=2, generator_steps=2)
    assert ["adv" in values for values in reported] == [False, False, True, True, True]
    assert ["discriminator_loss" in values for values in reported] == [False, False, True, False, True]


def test_the_adversary_changes_the_training_of_the_restorer(pair: Pair) -> None:
    def final_loss(weights: RestoringWeights) -> Tensor:
        torch.manual_seed(0)
        return run(pair, weights, 4)[-1]["mel"]

    plain = RestoringWeights()
    assert torch.equal(final_loss(plain), final_loss(plain))
    assert not torch.equal(final_loss(plain), final_loss(replace(plain, adv=1.0)))
