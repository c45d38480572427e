"""What a checkpoint can hold: names of kinds, their settings and their modules."""

from typing import Any

from torch import nn

from twostage.baselines.bilstm import Bilstm, BilstmConfig
from twostage.baselines.bwe import Bwe, BweConfig
    "dccrn": (DccrnConfig, Dccrn),
    "bilstm": (BilstmConfig, Bilstm),
