"""Claims about the discriminator of log-mels: what it sees, what it learns, and what a restorer learns from it."""

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
def test_one_judge_with_a_map_a_convolution_and_logits_last(shape: tuple[int, int]) -> None:
    (maps,) = MelDiscriminator(MelDiscriminatorConfig())(torch.randn(2, *shape))
    halved = [tuple(-(-side // 2**n) for side in shape) for n in (1, 2, 3, 3)]
    assert [m.shape for m in maps[:-1]] == [(2, c, *s) for c, s in zip((16, 32, 64, 64), halved, strict=True)]
    assert maps[-1].shape == (2, halved[-1][0] * halved[-1][1])


def test_a_logit_judges_a_patch_of_47_bands_and_frames() -> None:
    mel = torch.randn(1, 128, 128, requires_grad=True)
    logits = MelDiscriminator(MelDiscriminatorConfig())(mel)[0][-1].reshape(16, 16)
    logits[8, 8].backward()
    for seen in (mel.grad[0].abs().sum(0), mel.grad[0].abs().sum(1)):
        places = seen.nonzero()
        assert int(places[-1] - places[0]) + 1 == 47


def test_it_knows_how_high_a_band_is() -> None:
    discriminator = MelDiscriminator(SMALL)
    maps = discriminator(torch.full((1, 32, 32), -6.0))[0][0]
    maps = maps[0, :, 4:-4, 4:-4]  # away from the edges, alike in every place
    assert maps.std(dim=1).amax() > 0.01
    torch.testing.assert_close(maps.std(dim=2), torch.zeros(8, 8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss", ["least_squares", "hinge"])
def test_it_learns_to_tell_smoothed_mels_from_real_ones(mels: Tensor, loss: str) -> None:
    discriminator = Adversary(MelAdversaryConfig(loss=loss), OptimizerConfig())
    for _ in range(60):
        discriminator.train_step(smoothed(mels[:4]), mels[:4], 2e-3)
    of_real, of_fake = (discriminator.discriminators(mel)[0][-1].mean(1) for mel in (mels[4:], smoothed(mels[4:])))
    assert of_real.min() > of_fake.max() + 0.3  # voices that it has not heard


def test_what_follows_its_gradient_is_less_smooth(mels: Tensor) -> None:
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
    """Mean distance of a log-mel from its own smoothed self, in nepers."""
    return float((mel - smoothed(mel)).abs().mean().detach())


def run(pair: Pair, weights: RestoringWeights, steps: int, **rules) -> list[dict[str, Tensor]]:
    """What each step of a restorer's training on one batch reported."""
    training = Training(Restorer(RESTORER), OptimizerConfig(ema_decay=0))
    if weights.adv or weights.fm:
        training.adversary = Adversary(MelAdversaryConfig(SMALL, **rules), OptimizerConfig())
    seen: list[dict[str, Tensor]] = []

    def report(_: Training, progress: StepResult) -> None:
        seen.append(progress.values)

    fit(training, Restoring(RESTORER, weights), iter(lambda: pair, None), weights, steps=steps, report=report)
    return seen


def test_weights_are_the_factors_of_the_terms(pair: Pair) -> None:
    (one,) = run(pair, RestoringWeights(mel=3, ssim=5, adv=7, fm=11), 1)
    total = 3 * one["mel"] + 5 * one["ssim"] + 7 * one["adv"] + 11 * one["fm"]
    torch.testing.assert_close(one["loss"], total)


@pytest.mark.parametrize(
    ("weights", "terms"),
    [
        (RestoringWeights(), set()),
        (RestoringWeights(ssim=1), {"ssim"}),
        (RestoringWeights(adv=1), {"adv", "discriminator_loss", "discriminator_grad_norm"}),
        (RestoringWeights(fm=1), {"adv", "fm", "discriminator_loss", "discriminator_grad_norm"}),
    ],
)
def test_a_weight_of_zero_computes_no_term(pair: Pair, weights: RestoringWeights, terms: set[str]) -> None:
    (one,) = run(pair, weights, 1)
    assert one.keys() == {"loss", "mel", "grad_norm"} | terms


def test_the_rules_of_the_adversary_hold_for_mels(pair: Pair) -> None:
    seen = run(pair, RestoringWeights(adv=1), 5, start=2, generator_steps=2)
    assert ["adv" in values for values in seen] == [False, False, True, True, True]
    assert ["discriminator_loss" in values for values in seen] == [False, False, True, False, True]


def test_the_adversary_changes_what_the_restorer_learns(pair: Pair) -> None:
    def learnt(weights: RestoringWeights) -> Tensor:
        torch.manual_seed(0)
        return run(pair, weights, 4)[-1]["mel"]

    plain = RestoringWeights()
    assert torch.equal(learnt(plain), learnt(plain))
    assert not torch.equal(learnt(plain), learnt(replace(plain, adv=1.0)))
