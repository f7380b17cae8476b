"""Tensors as NumPy has them, which is what engines take and return."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

Arrays = Mapping[str, Array]
"""Tensors by name: ids and masks as int64, the rest as fp32."""
