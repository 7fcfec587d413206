"""Class weights as users write them, a list or a file, read safely and checked before a model is built on them."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from mmseg_wce.plain_arrays import STAND_INS
from torch import Tensor

__all__ = ['ClassWeight', 'check_class_weight', 'count_pixels', 'inverse_sqrt_frequency', 'load_class_weight']

ClassWeight = Sequence[float] | np.ndarray | Tensor | str | os.PathLike


class _ArraysOnly(pickle.Unpickler):
    """Unpickles lists, dicts, numbers and NumPy arrays; anything else could run code while it loads."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('_codecs', 'encode'):  # how protocols before 3 write bytes
            return lambda text, _: text.encode('latin1')
        if f'{module}.{name}' not in STAND_INS:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}; only numbers, lists and NumPy arrays are read')
        return STAND_INS[f'{module}.{name}']


def _read_yaml(content: bytes) -> Any:
    import yaml  # comes with mmengine

    return yaml.safe_load(content)


_READERS = {
    '.npy': lambda content: np.load(io.BytesIO(content), allow_pickle=False),
    '.json': json.loads,
    '.yaml': _read_yaml,
    '.yml': _read_yaml,
    '.pkl': lambda content: _ArraysOnly(io.BytesIO(content)).load(),
}


def _read_file(path: str) -> Any:
    from mmengine import fileio  # local paths and every storage that mmengine knows

    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _READERS:
        raise ValueError(f'class_weight file {path!r} has the suffix {suffix!r}; these are read: {", ".join(_READERS)}')
    try:
        content = fileio.get(path)
    except (OSError, ImportError, KeyError, ValueError) as error:  # the last three: no backend for its scheme
        raise ValueError(f'class_weight file {path!r} cannot be read from {os.getcwd()!r}: {error}') from error
    try:
        return _READERS[suffix](content)
    except Exception as error:  # every parser has its own errors; all of them mean the same here
        raise ValueError(f'class_weight file {path!r} is not a valid {suffix} file of weights: {error}') from error


def check_class_weight(class_weight: Tensor, source: str = 'class_weight') -> None:
    """Raise ValueError unless the weights are one finite non-negative number per class, not all of them zero.

    Args:
        class_weight: (C,), floating point.
        source: how to call it in the message.
    """
    if class_weight.dim() != 1 or class_weight.numel() < 2:
        raise ValueError(f'{source} must be one weight per class, got shape {tuple(class_weight.shape)}')
    bad = ~(torch.isfinite(class_weight) & (class_weight >= 0))
    if bad.any():
        listed = ', '.join(f'class {i}: {class_weight[i].item()}' for i in bad.nonzero().flatten().tolist()[:8])
        raise ValueError(f'{source} must be finite and not negative, got {listed} ({int(bad.sum())} of {bad.numel()})')
    if not class_weight.any():
        raise ValueError(f'{source} is zero for all {class_weight.numel()} classes: nothing would count')


def load_class_weight(class_weight: ClassWeight) -> Tensor:
    """Weights of a config as a checked tensor.

    Args:
        class_weight: one number per class in order of the class indices, as a list, tuple, array or tensor, or the
            path of a ``.npy``, ``.json``, ``.yaml`` or ``.pkl`` file that holds such a list (any file backend of
            mmengine; pickles may hold numbers and NumPy arrays only).

    Returns:
        (C,), float32, on CPU.

    Raises:
        TypeError: it is none of these.
        ValueError: the file is missing or does not hold a list of real numbers, or a weight is negative, NaN or
            infinite, or all are zero.
    """
    source, complaint = 'class_weight', TypeError
    if isinstance(class_weight, (str, os.PathLike)):
        path = os.fspath(class_weight)
        source, complaint, class_weight = f'class_weight file {path!r}', ValueError, _read_file(path)
    if not isinstance(class_weight, (Sequence, np.ndarray, Tensor)) or isinstance(class_weight, (str, bytes)):
        raise complaint(f'{source} must be a list of numbers, got {type(class_weight).__name__}: {class_weight!r:.80}')
    weights = _as_float32(class_weight, source)
    check_class_weight(weights, source)
    return weights


def _as_float32(class_weight: Sequence[float] | np.ndarray | Tensor, source: str) -> Tensor:
    if isinstance(class_weight, Tensor):
        class_weight = class_weight.detach().cpu().double().numpy()
    try:
        array = np.array(class_weight)
    except ValueError as error:
        raise ValueError(f'{source} must be a flat list of numbers: {error}') from error
    if array.size and array.dtype.kind not in 'iuf':
        raise ValueError(f'{source} must be a flat list of real numbers, got {class_weight!r:.200} ({array.dtype})')
    with np.errstate(over='ignore'):  # too large for float32 is infinite, which is refused with its class
        return torch.from_numpy(array.astype(np.float32))


def count_pixels(label_maps: Iterable[np.ndarray], num_classes: int) -> np.ndarray:
    """Pixels of each class.

    Args:
        label_maps: integer arrays of any shape as the loss gets them: classes in [0, num_classes), the rest ignored.
        num_classes: C.

    Returns:
        (C,), int64.
    """
    counts = np.zeros(num_classes, np.int64)
    for labels in label_maps:
        counts += np.bincount(labels[(labels >= 0) & (labels < num_classes)], minlength=num_classes)
    return counts


def inverse_sqrt_frequency(pixel_counts: np.ndarray) -> np.ndarray:
    """w_c = p_c^(-1/2) / sum_k p_k^(1/2), p_c being the class's share of pixels: the mean weight of a pixel is 1.

    Args:
        pixel_counts: (C,), not all zero.

    Returns:
        (C,), float64; 0 for a class without pixels.
    """
    share = pixel_counts / pixel_counts.sum()
    inverse = np.divide(1.0, np.sqrt(share), out=np.zeros_like(share), where=share > 0)
    return inverse / np.sqrt(share).sum()
