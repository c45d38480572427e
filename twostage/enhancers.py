"""What a checkpoint can hold: names of kinds, their settings and their modules."""

from typing import Any

from torch import nn

from twostage.baselines.bilstm import Bilstm, BilstmConfig
from twostage.baselines.bwe import Bwe, BweConfig
from twostage.baselines.dccrn import Dccrn, DccrnConfig
from twostage.baselines.eben import Eben, EbenConfig
from twostage.baselines.seanet import Seanet, SeanetConfig
from twostage.baselines.shift import Lowpass, LowpassConfig, Shift, ShiftConfig
from twostage.baselines.wave_unet import WaveUnet, WaveUnetConfig
from twostage.pipeline import TwoStage, TwoStageConfig
from twostage.restorer import Restorer, RestorerConfig
from twostage.vocoder import Vocoder, VocoderConfig

STAGES: dict[str, tuple[type[Any], type[nn.Module]]] = {
    "restorer": (RestorerConfig, Restorer),
    "vocoder": (VocoderConfig, Vocoder),
}
ENHANCERS: dict[str, tuple[type[Any], type[nn.Module]]] = {  # audio (B, 1, T) -> audio (B, 1, T)
    "two-stage": (TwoStageConfig, TwoStage),
    "lowpass": (LowpassConfig, Lowpass),
    "shift": (ShiftConfig, Shift),
    "wave-unet": (WaveUnetConfig, WaveUnet),
    "bwe": (BweConfig, Bwe),
    "dccrn": (DccrnConfig, Dccrn),
    "bilstm": (BilstmConfig, Bilstm),
    "seanet": (SeanetConfig, Seanet),
    "eben": (EbenConfig, Eben),
}
KINDS = {**STAGES, **ENHANCERS}


def kind_of(model: nn.Module) -> str:
    """Name of the kind that ``model`` is an instance of.

    >>> from twostage.vocoder import Vocoder, VocoderConfig
    >>> kind_of(Vocoder(VocoderConfig()))
    'vocoder'
    """
    return next(kind for kind, (_, module) in KINDS.items() if isinstance(model, module))
