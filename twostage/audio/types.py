"""The type of audio in arrays: full scale is 1."""

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]
AnyAudio = NDArray[np.floating]  # of any precision
