"""Tests of costs: multiply-accumulates equal those counted by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from twostage.evaluation import costs
from twostage.models.restorer import RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import Vocoder, VocoderConfig


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv1d(3, 5, 7, padding=3), (1, 3, 100), 3 * 5 * 7 * 100),
        (nn.Conv1d(4, 8, 3, stride=2, padding=1, groups=2), (1, 4, 100), 2 * 8 * 3 * 50),
        (nn.ConvTranspose1d(3, 5, 8, 4, padding=2), (1, 3, 100), 3 * 5 * 8 * 100),
        (nn.Conv2d(2, 6, 3, padding=1), (1, 2, 10, 20), 2 * 6 * 9 * 200),
        (nn.Linear(8, 9), (7, 8), 7 * 8 * 9),
        (nn.GRU(8, 16, batch_first=True), (1, 50, 8), 3 * 16 * (8 + 16) * 50),
        (nn.LSTM(8, 16, batch_first=True), (1, 50, 8), 4 * 16 * (8 + 16) * 50),
        (nn.ReLU(), (1, 100), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_macs_of_a_layer_equal_those_counted_by_hand(layer, shape, expected):
    assert costs.macs(layer, torch.zeros(shape)) == expected


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_macs_of_recurrent_layers_equal_those_of_their_steps(kind):
    layer, x = kind(3, 5, num_layers=2, bidirectional=True, batch_first=True), torch.zeros(2, 4, 3)
    counter = FlopCounterMode(display=False)
    with torch.backends.mkldnn.flags(enabled=False), torch.no_grad(), counter:  # the counter does not see fused layers
        output = layer(x)[0]
    assert costs.macs(layer, x) == counter.get_total_flops() // 2 > 0
    with costs.Recurrences():
        assert layer(x)[0].shape == output.shape


def test_macs_of_hifigan_v1_follow_from_its_sizes():
    config = VocoderConfig(
        upsample_initial_channel=512, resblock_kernel_sizes=(3, 7, 11), resblock_dilation_sizes=((1, 3, 5),) * 3
    )
    model, mel = Vocoder(config).fold(), torch.zeros(1, 80, 125)  # two seconds
    blocks = sum(
        6 * (3 + 7 + 11) * width**2 * rate for width, rate in ((256, 500), (128, 4000), (64, 8000), (32, 16000))
    )
    ups = 512 * 256 * 16 * 62.5 + 256 * 128 * 16 * 500 + 128 * 64 * 4 * 4000 + 64 * 32 * 4 * 8000
    ends = 80 * 512 * 7 * 62.5 + 32 * 7 * 16000
    assert costs.macs(model, mel) / 2 == blocks + ups + ends
    assert costs.parameters(model) == pytest.approx(13.93e6, rel=2e-3)


def test_the_cost_of_a_model_is_the_sum_of_its_stages():
    config = TwoStageConfig(
        RestorerConfig(channels=(4, 8, 8), time_strides=(2, 1), blocks=1, dilations=(1,)),
        VocoderConfig(upsample_initial_channel=16, resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1,),)),
    )
    model = TwoStage(config).fold()
    mel = torch.zeros(1, 80, 124)
    stages = costs.macs(model.restorer, mel) + costs.macs(model.vocoder, mel)
    basis = 80 * 513 * 124
    actual = costs.measure_model(model, seconds=1, repeats=1)
    assert actual.gmac == pytest.approx((stages + basis) / 1e9 / (124 * 256 / 16000), rel=1e-6)
    assert actual.parameters == costs.parameters(model.restorer) + costs.parameters(model.vocoder)
    assert 0 < actual.real_time_factor < 1
    assert (actual.device, actual.threads) == ("cpu", torch.get_num_threads())
