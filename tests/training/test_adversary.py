"""Tests of the adversary: losses, gradients, schedules, adaptive weights and state."""

import copy
from functools import partial

import pytest
import torch
from small_models import small_vocoder

from twostage.data.pairs import Pair
from twostage.models.features import MelConfig
from twostage.models.vocoder import Vocoder
from twostage.training import losses
from twostage.training.adversary import Adversary, AdversaryConfig
from twostage.training.discriminators.audio import DiscriminatorConfig, Discriminators
from twostage.training.loss_balancer import LossBalancer
from twostage.training.optim import OptimizerConfig
from twostage.training.tasks import Vocoding, VocodingWeights
from twostage.training.trainer import Training, _factors, fit

DISCRIMINATORS = DiscriminatorConfig(periods=(2,), scales=1, width=0.0625)
SPECTRAL = DiscriminatorConfig(periods=(), scales=0, resolutions=(128, 256), width=0.125)
MELGAN = DiscriminatorConfig(periods=(), scales=0, melgan=2, width=0.125)
BANDS = DiscriminatorConfig(periods=(), scales=0, bands=3, width=0.125)
MEL = MelConfig(n_mels=16)
VOCODER = small_vocoder(MEL)


def adversary(**settings) -> Adversary:
    torch.manual_seed(0)
    return Adversary(AdversaryConfig(DISCRIMINATORS, **settings), OptimizerConfig())


@pytest.fixture
def sound(speech):
    real = torch.from_numpy(speech(2 * 1024)).reshape(2, 1, 1024)
    return real.flip(-1) * 0.5, real


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


def has_changed(before, module) -> bool:
    return any(not torch.equal(before[key], tensor) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    "discriminators", [DISCRIMINATORS, SPECTRAL, MELGAN, BANDS], ids=["waveform", "spectrogram", "melgan", "bands"]
)
def test_discriminators_learn_to_distinguish_real_from_fake(sound, discriminators):
    torch.manual_seed(0)
    discriminator = Adversary(AdversaryConfig(discriminators), OptimizerConfig())
    first = discriminator.train_step(*sound, 2e-3)["discriminator_loss"]
    for _ in range(30):
        last = discriminator.train_step(*sound, 2e-3)["discriminator_loss"]
    assert last < 0.6 * first


def test_each_step_gives_gradients_to_its_own_model_only(sound):
    discriminator, (fake, real) = adversary(), sound
    fake = fake.clone().requires_grad_()
    discriminator.train_step(fake, real, 1e-3)
    assert fake.grad is None
    sum(discriminator.generator_loss(fake, real).values()).backward()
    assert fake.grad.abs().sum() > 0
    assert all(p.grad is None for p in discriminator.discriminators.parameters())
    assert all(p.requires_grad for p in discriminator.discriminators.parameters())  # they can be trained again


def test_freezing_the_discriminators_keeps_the_gradient_of_the_generator_bitwise(sound):
    discriminator, (fake, real) = adversary(), sound
    discriminator.discriminators.eval()  # no power iteration between the two computations
    frozen, plain = fake.clone().requires_grad_(), fake.clone().requires_grad_()
    sum(discriminator.generator_loss(frozen, real).values()).backward()
    of_real, of_fake = discriminator.discriminators(real), discriminator.discriminators(plain)
    (losses.generator_least_squares(of_fake) + losses.feature_matching(of_real, of_fake)).backward()
    assert torch.equal(frozen.grad, plain.grad)


def test_feature_matching_is_computed_only_on_request(sound):
    assert adversary().generator_loss(*sound, matching=False).keys() == {"adv"}
    assert adversary().generator_loss(*sound).keys() == {"adv", "fm"}


@pytest.mark.parametrize("logits", [True, False])
def test_feature_matching_includes_logits_according_to_the_settings(sound, logits):
    discriminator = adversary(match_logits=logits)
    discriminator.discriminators.eval()
    of_fake, of_real = (discriminator.discriminators(audio) for audio in sound)
    expected = losses.feature_matching(of_real, of_fake, logits=logits).detach()
    torch.testing.assert_close(discriminator.generator_loss(*sound)["fm"], expected)
    assert float(expected) != pytest.approx(
        float(losses.feature_matching(of_real, of_fake, logits=not logits).detach()), rel=1e-3
    )


def test_losses_are_computed_in_float32_under_autocast(sound):
    torch.manual_seed(0)
    precision = partial(torch.autocast, "cpu", torch.bfloat16)
    discriminator = Adversary(AdversaryConfig(DISCRIMINATORS), OptimizerConfig(), precision=precision)
    assert {loss.dtype for loss in discriminator.generator_loss(*sound).values()} == {torch.float32}
    assert discriminator.train_step(*sound, 1e-3)["discriminator_loss"].dtype == torch.float32


@pytest.mark.parametrize(
    ("loss", "discriminator_loss", "generator_loss"),
    [
        ("least_squares", losses.discriminator_least_squares, losses.generator_least_squares),
        ("hinge", losses.discriminator_hinge, losses.generator_hinge),
        ("bounded_hinge", losses.discriminator_hinge, losses.generator_bounded_hinge),
    ],
)
def test_the_configured_loss_is_used(sound, loss, discriminator_loss, generator_loss):
    discriminator, (fake, real) = adversary(loss=loss), sound
    discriminator.discriminators.eval()
    of_fake, of_real = discriminator.discriminators(fake), discriminator.discriminators(real)
    torch.testing.assert_close(discriminator.generator_loss(fake, real)["adv"], generator_loss(of_fake))
    torch.testing.assert_close(
        discriminator.train_step(fake, real, 0.0)["discriminator_loss"], discriminator_loss(of_real, of_fake).detach()
    )


def test_spectral_normalization_is_part_of_the_state(sound):
    original, loaded = adversary(), Adversary(AdversaryConfig(DISCRIMINATORS), OptimizerConfig())
    original.train_step(*sound, 1e-3)
    loaded.load_state_dict(copy.deepcopy(original.state_dict()))
    assert any(key.endswith("_u") for key in original.state_dict()["discriminators"])
    for discriminator in (original, loaded):
        discriminator.train_step(*sound, 1e-3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            original.discriminators.state_dict().values(), loaded.discriminators.state_dict().values(), strict=True
        )
    )


def run(sound, steps, weights=None, rate=1e-3, **settings):
    """Train on one batch; return whether discriminators were trained and the values of each step, and the training."""
    weights = weights or VocodingWeights()
    torch.manual_seed(1)
    training = Training(Vocoder(VOCODER), OptimizerConfig(learning_rate=rate, ema_decay=0), adversary(**settings))
    reported = []

    def report(_, progress):
        reported.append(progress.values)

    last_layer = training.model.conv_post.parametrizations.weight.original1 if settings.get("adaptive") else None
    pairs = iter(lambda: Pair(sound[0], sound[1]), None)
    fit(training, Vocoding(MEL, weights), pairs, weights, steps=steps, report=report, last_layer=last_layer)
    return ["discriminator_loss" in values for values in reported], reported, training


@pytest.mark.parametrize(
    ("settings", "learned"),
    [
        ({}, [True] * 6),
        ({"generator_steps": 3}, [True, False, False, True, False, False]),
        ({"start": 4}, [False] * 4 + [True] * 2),
        ({"start": 1, "generator_steps": 2}, [False, True, False, True, False, True]),
    ],
)
def test_the_discriminators_are_trained_at_the_configured_steps(sound, settings, learned):
    assert run(sound, 6, **settings)[0] == learned


def test_only_content_losses_are_used_before_the_adversary_starts(sound):
    _, reported, training = run(sound, 3, start=3)
    assert all(values.keys() == {"loss", "mel", "grad_norm"} for values in reported)
    assert not has_changed(state(adversary().discriminators), training.adversary.discriminators)
    for values in reported:
        torch.testing.assert_close(values["loss"], 45 * values["mel"])


def test_the_loss_is_the_weighted_sum_of_its_terms(sound):
    _, reported, _ = run(sound, 1, VocodingWeights(mel=3, stft=5, adv=7, fm=11))
    values = reported[0]
    torch.testing.assert_close(
        values["loss"], 3 * values["mel"] + 5 * values["stft"] + 7 * values["adv"] + 11 * values["fm"]
    )


def test_the_adaptive_weight_equalizes_gradients_at_the_last_layer(sound):
    weights = VocodingWeights(mel=0.1, fm=0.1)  # small, so that the weight stays below its bound of 1e4
    _, reported, _ = run(sound, 1, weights, rate=1e-9, adaptive=True)
    _, _, training = run(sound, 0)
    values, layer = reported[0], training.model.conv_post.parametrizations.weight.original1
    output = Vocoding(MEL, weights)(training.model, Pair(*sound))
    training.adversary.train_step(output.fake, output.real, 1e-9)
    generator_losses = training.adversary.generator_loss(output.fake, output.real)
    content, adversarial = 0.1 * output.terms["mel"] + 0.1 * generator_losses["fm"], generator_losses["adv"]
    lengths = [torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in (content, adversarial)]
    torch.testing.assert_close(values["adaptive_adv"], lengths[0] / (lengths[1] + 1e-4), rtol=0.02, atol=0)
    assert 1 < values["adaptive_adv"] < 1e4


def test_the_adaptive_weight_does_not_include_the_weight_of_the_adversarial_loss():
    layer = torch.ones(1, requires_grad=True)
    terms = {"mel": 2 * layer.sum(), "adv": 1 * layer.sum()}
    weights = VocodingWeights(mel=3, adv=50, fm=0)
    factors = _factors(adversary(adaptive=True), terms, weights, layer)
    assert float(factors["adv"]) == pytest.approx(6, rel=1e-3)  # the weight of 50 is applied in addition


def test_balanced_losses_have_equal_averaged_gradients_at_the_last_layer(sound):
    weights = VocodingWeights()
    _, _, training = run(sound, 0)
    layer = training.model.conv_post.parametrizations.weight.original1
    output = Vocoding(MEL, weights)(training.model, Pair(*sound))
    losses = output.terms | training.adversary.generator_loss(output.fake, output.real)
    balancer = LossBalancer()
    for scale, length in ((1e3, 1), (3e3, 3 / 1.2)):  # three times as long, of which the running average takes a tenth
        scaled = {name: scale * loss for name, loss in losses.items()}
        factors = balancer.factors(scaled, layer)
        for name, loss in scaled.items():
            (gradient,) = torch.autograd.grad(factors[name] * loss, layer, retain_graph=True)
            assert float(gradient.norm()) == pytest.approx(length, rel=0.02), name


def test_a_training_balances_each_loss_and_stores_the_averaged_lengths(sound):
    weights = VocodingWeights(mel=3, adv=1, fm=0)
    _, reported, training = run(sound, 3, weights, adaptive="each")
    last = reported[-1]
    assert {name for name in last if name.startswith("adaptive")} == {"adaptive_mel", "adaptive_adv"}
    expected = 3 * last["mel"] * last["adaptive_mel"] + last["adv"] * last["adaptive_adv"]
    torch.testing.assert_close(last["loss"], expected)
    stored = training.adversary.state_dict()
    loaded = adversary(adaptive="each")
    loaded.load_state_dict(stored)
    assert loaded.balancer.lengths == training.adversary.balancer.lengths != {}
    del stored["lengths"]  # as in states of older versions
    loaded.load_state_dict(stored)
    assert loaded.balancer.lengths == {}


def test_without_balancing_no_lengths_are_stored(sound):
    for adaptive in (False, True):
        assert run(sound, 1, adaptive=adaptive)[2].adversary.balancer.lengths == {}


@pytest.mark.parametrize("width", [0.0625, 0.25, 1.0])
def test_width_scales_the_channels(width):
    with torch.device("meta"):
        discriminator = Discriminators(DiscriminatorConfig(width=width))
    assert discriminator.mpd.discriminators[0].convs[-1].out_channels == 1024 * width
    assert discriminator.msd.discriminators[0].convs[-1].out_channels == 1024 * width
