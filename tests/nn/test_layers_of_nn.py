"""Tests of weight normalization, receptive fields, convolutions and feature maps."""

import pytest
import torch
from torch import nn

from twostage.nn.layers import Conv1d, feature_maps, fold_weight_norm, receptive_field, weight_norm


@pytest.mark.parametrize("layer", [nn.Conv1d(3, 4, 5), nn.ConvTranspose1d(3, 4, 4, 2), nn.Conv2d(2, 3, 3)])
def test_weight_normalization_and_folding_keep_the_output(layer):
    x = torch.randn(2, layer.in_channels, *[12] * (layer.weight.ndim - 2))
    before = layer(x)
    normalized = weight_norm(layer)
    torch.testing.assert_close(normalized(x), before)
    assert {name for name, _ in normalized.named_parameters()} == {
        "bias",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    }
    torch.testing.assert_close(fold_weight_norm(normalized)(x), before)


def test_weights_are_initialized_with_the_given_deviation():
    torch.manual_seed(0)
    assert float(weight_norm(nn.Conv1d(64, 64, 9), 0.01).weight.detach().std()) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(("layers", "steps"), [([], 0), ([(3, 1)], 1), ([(3, 1), (3, 3), (3, 5)], 9), ([(11, 5)], 25)])
def test_the_receptive_field_of_a_stack_of_convolutions(layers, steps):
    assert receptive_field(layers) == steps
    stack = nn.Sequential(*(nn.Conv1d(1, 1, k, dilation=d, padding=(k - 1) * d // 2, bias=False) for k, d in layers))
    for weight in stack.parameters():
        nn.init.ones_(weight)
    pulse = torch.zeros(1, 1, 101)
    pulse[..., 50] = 1
    reached = stack(pulse)[0, 0].nonzero().flatten().tolist()
    assert (reached[0], reached[-1]) == (50 - steps, 50 + steps)


@pytest.mark.parametrize("grad", [False, True], ids=["short", "long"])
@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), [(4, 2, 1), (16, 8, 1), (3, 1, 9), (3, 2, 2)])
def test_convolutions_equal_torchs_with_centered_or_causal_padding(kernel_size, stride, dilation, grad):
    torch.manual_seed(0)
    x, past = torch.randn(1, 3, 64), (kernel_size - 1) * dilation + 1 - stride
    for causal in (False, True):
        conv = Conv1d(3, 5, kernel_size, stride=stride, dilation=dilation, bias=False, causal=causal)
        assert conv.bias is None
        padded = torch.nn.functional.pad(x, (past, 0) if causal else (past // 2, past // 2))
        with torch.set_grad_enabled(grad):
            actual = conv(x)
        expected = torch.nn.functional.conv1d(padded, conv.weight, None, stride, 0, dilation)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        if causal:
            assert actual.shape == (1, 5, 64 // stride)


def test_feature_maps_are_taken_after_activations_and_logits_are_flattened():
    torch.manual_seed(0)
    hidden, last, x = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 1, 1), torch.randn(2, 1, 6, 7)
    maps = feature_maps(x, [hidden], last, 0.2)
    activated = nn.functional.leaky_relu(hidden(x), 0.2)
    torch.testing.assert_close(maps[0], activated)
    torch.testing.assert_close(maps[1], last(activated).flatten(1))
    assert maps[1].shape == (2, 4 * 5)
