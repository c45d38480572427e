"""The kinds of models that a checkpoint can contain: their names, settings and modules."""

from typing import Any

from torch import nn

from twostage.models.baselines.bilstm import Bilstm, BilstmConfig
from twostage.models.baselines.bsrnn import Bsrnn, BsrnnConfig
from twostage.models.baselines.bwe import Bwe, BweConfig
from twostage.models.baselines.dccrn import Dccrn, DccrnConfig
from twostage.models.baselines.dpcrn import Dpcrn, DpcrnConfig
from twostage.models.baselines.eben import Eben, EbenConfig
from twostage.models.baselines.seanet import Seanet, SeanetConfig
from twostage.models.baselines.shift import Lowpass, LowpassConfig, Shift, ShiftConfig
from twostage.models.baselines.wave_unet import WaveUnet, WaveUnetConfig
from twostage.models.enhancer import EnhancerConfig, EnhancerModule
from twostage.models.restorer import Restorer, RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import Vocoder, VocoderConfig

STAGES: dict[str, tuple[type[Any], type[nn.Module]]] = {
    "restorer": (RestorerConfig, Restorer),
    "vocoder": (VocoderConfig, Vocoder),
}
ENHANCERS: dict[str, tuple[type[EnhancerConfig], type[EnhancerModule]]] = {  # audio -> audio
    "two-stage": (TwoStageConfig, TwoStage),
    "lowpass": (LowpassConfig, Lowpass),
    "shift": (ShiftConfig, Shift),
    "wave-unet": (WaveUnetConfig, WaveUnet),
    "bwe": (BweConfig, Bwe),
    "dccrn": (DccrnConfig, Dccrn),
    "dpcrn": (DpcrnConfig, Dpcrn),
    "bilstm": (BilstmConfig, Bilstm),
    "bsrnn": (BsrnnConfig, Bsrnn),
    "seanet": (SeanetConfig, Seanet),
    "eben": (EbenConfig, Eben),
}
KINDS: dict[str, tuple[type[Any], type[nn.Module]]] = {**STAGES, **ENHANCERS}


def kind_of(model: nn.Module) -> str:
    """Name of the kind that ``model`` is an instance of.

    >>> from twostage.models.vocoder import Vocoder, VocoderConfig
    >>> kind_of(Vocoder(VocoderConfig()))
    'vocoder'
    """
    return next(kind for kind, (_, module) in KINDS.items() if isinstance(model, module))
