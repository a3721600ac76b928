"""What every data set yields, to training and to evaluation alike."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Batch = tuple[tuple[NDArray[Any], ...], NDArray[np.int64]]
"""(the model's inputs, each (B, ...), and the class indices int64 (B,))."""
