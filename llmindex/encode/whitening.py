"""A linear map behind the pooling: centre the vectors, damp their strongest directions, keep the leading ones.

The vectors of a language model vary most along a few directions that say little, and lie off the origin. Whitening
(Su et al. 2021, arXiv 2103.15316) divides each principal component by its standard deviation; that lifts the weakest,
which are noise, as high as the rest. Here the division is by the root of that, and the weakest are dropped: vectors
get better and shorter at once. The map belongs to an adapter, and is fitted on the texts that the adapter was trained
on.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmindex.encode.adapter import WHITENING_NAME
from llmindex.errors import AdapterError
from llmindex.records import Vectors

_POWER = 0.25
"""Of the variance that a component is divided by; 0.5 would be whitening in full."""


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """The map.

    Attributes:
        mean: ``(D,) float32``, of pooled vectors of unit length.
        matrix: ``(dim, D) float32``, by falling variance, so that a cut keeps what matters most.
    """

    mean: Tensor
    matrix: Tensor

    @classmethod
    def fit(cls, vectors: Vectors, dim: int) -> "Whitening":
        """The map for vectors like these ``(n, D) float32`` of unit length, to at most ``dim`` values.

        A direction needs some vectors to be known by: no more than a quarter as many are kept.
        """
        exact = vectors.astype(np.float64)
        mean = exact.mean(axis=0)
        variances, directions = np.linalg.eigh(np.cov((exact - mean).T))
        variances, directions = variances[::-1], directions[:, ::-1].T
        known = int((variances > 1e-6 * variances[0]).sum())  # the others are rounding
        kept = max(1, min(dim, len(vectors) // 4, known))
        variances, directions = variances[:kept], directions[:kept]
        # The sign of an eigenvector is left to the library: fix it.
        signs = np.sign(directions[np.arange(kept), np.abs(directions).argmax(axis=1)])
        scales = signs * np.maximum(variances, 1e-12) ** -_POWER
        matrix = directions * scales[:, None]
        return cls(torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(matrix.astype(np.float32)))

    @classmethod
    def load(cls, folder: Path, width: int) -> "Whitening":
        """Read an adapter's map for pooled vectors of ``width`` values.

        Raises:
            AdapterError: it is missing or damaged, or for vectors of another length.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = folder / WHITENING_NAME
        try:
            tensors = load_file(file)
            whitening = cls(tensors["mean"].float(), tensors["matrix"].float())
        except (OSError, SafetensorError, KeyError) as error:
            raise AdapterError(f"{file} is missing or damaged: {error}") from error
        if whitening.mean.shape != (width,) or whitening.matrix.shape[1:] != (width,):
            raise AdapterError(f"{file} is damaged, or for another model: its vectors do not have {width:,} values")
        return whitening

    def save(self, file: Path) -> None:
        """Write it as safetensors; :meth:`load` finds it beside an adapter's weights, as ``WHITENING_NAME``."""
        from safetensors.torch import save

        # save_file gives a file that its owner alone can read.
        file.write_bytes(save({"mean": self.mean, "matrix": self.matrix.contiguous()}))

    @property
    def dim(self) -> int:
        """How many values come out."""
        return len(self.matrix)

    def to(self, device: torch.device) -> "Whitening":
        """The same on a device."""
        return Whitening(self.mean.to(device), self.matrix.to(device))

    def __call__(self, pooled_BD: Tensor) -> Tensor:
        """Map pooled vectors ``(B, D) float32`` to ``(B, dim)``, not yet of unit length."""
        unit_BD = torch.nn.functional.normalize(pooled_BD, dim=1)
        return (unit_BD - self.mean) @ self.matrix.T
