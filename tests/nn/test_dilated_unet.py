"""Tests of the U-Net of SEANet and EBEN: skip connections of every level, and the dilations of the papers."""

import torch
from torch import nn

from twostage.nn.dilated_unet import DILATIONS, DilatedUnet


def unet() -> DilatedUnet:
    torch.manual_seed(0)
    model = DilatedUnet(2, (2, 4), 4, unit=lambda channels, dilation: nn.Identity(), activation=nn.ELU())
    return model.eval().requires_grad_(False)


def test_skip_connections_bypass_the_bottleneck() -> None:
    model, x = unet(), torch.randn(1, 2, 64)
    model.bottom = nn.Sequential(*model.bottom, nn.Threshold(1e9, 0.0))  # blocks the bottleneck
    assert (model(x) - model(torch.zeros_like(x))).abs().max() > 0.01


def test_every_level_is_added_to_the_decoder_at_the_same_rate() -> None:
    model, x = unet(), torch.randn(1, 2, 64)
    levels, level = [], x
    for down in model.downs:
        level = down(model.activation(level))
        levels.append(level)
    expected = model.bottom(level)
    for up, skip in zip(model.ups, reversed(levels), strict=True):
        expected = up(expected + skip)
    torch.testing.assert_close(model(x), expected)


def test_dilations_are_those_of_the_papers() -> None:
    assert DILATIONS == (1, 3, 9)
