"""Class weights given as a list, a file or a scheme, read safely and checked before a model is built."""

from __future__ import annotations

import io
import json
import os
import pickle
import reprlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from mmseg_wce.class_weights.schemes import class_weights
from mmseg_wce.class_weights.statistics_file import load_statistics
from mmseg_wce.safe_io.files import read_file
from mmseg_wce.safe_io.pickled_arrays import STAND_INS
from torch import Tensor

__all__ = ['ClassWeight', 'check_class_weight', 'load_class_weight']

ClassWeight = Sequence[float] | np.ndarray | Tensor | str | os.PathLike | Mapping[str, Any]


_MAX_FILE_SIZE = 1 << 18  # bytes: about 10,000 weights


def _refuse_container(_: object) -> None:
    raise pickle.UnpicklingError('it holds a dict or a set; only numbers, lists and NumPy arrays are read')


class _ArraysOnly(pickle._Unpickler):
    """Unpickler for lists, numbers and NumPy arrays; anything else could run code, or never end, while it loads.

    Python's unpickler in C would allocate a memo of any length that a file asks for. Dicts are refused because hashing
    deeply nested keys may never end.
    """

    dispatch = pickle._Unpickler.dispatch | dict.fromkeys(
        (pickle.EMPTY_DICT[0], pickle.DICT[0], pickle.EMPTY_SET[0], pickle.FROZENSET[0]), _refuse_container
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('_codecs', 'encode'):  # how protocols before 3 write bytes
            return lambda text, _: text.encode('latin1')
        if f'{module}.{name}' not in STAND_INS:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}; only numbers, lists and NumPy arrays are read')
        return STAND_INS[f'{module}.{name}']


def _read_yaml(content: bytes) -> Any:
    """Read scalars as text: a safe load expands merge keys, and a few bytes of them never end."""
    import yaml  # comes with mmengine

    parsed = yaml.load(content, Loader=yaml.BaseLoader)
    if isinstance(parsed, list) and all(isinstance(number, str) for number in parsed):
        return [float(number) for number in parsed]
    return parsed


_READERS: dict[str, Callable[[bytes], Any]] = {
    '.npy': lambda content: np.load(io.BytesIO(content), allow_pickle=False),
    '.json': json.loads,
    '.yaml': _read_yaml,
    '.yml': _read_yaml,
    '.pkl': lambda content: _ArraysOnly(io.BytesIO(content)).load(),
}


def _read_file(path: str) -> Any:
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _READERS:
        raise ValueError(f'class_weight file {path!r} has the suffix {suffix!r}; these are read: {", ".join(_READERS)}')
    try:
        content = read_file(path, _MAX_FILE_SIZE)
    except (OSError, ImportError, KeyError, ValueError) as error:  # the last three: no backend for its scheme
        raise ValueError(f'class_weight file {path!r} cannot be read from {os.getcwd()!r}: {error}') from error
    try:
        return _READERS[suffix](content)
    except Exception as error:  # every parser has its own errors; all of them mean the same here
        raise ValueError(f'class_weight file {path!r} is not a valid {suffix} file of weights: {error}') from error


def check_class_weight(class_weight: Tensor, source: str = 'class_weight', single: bool = False) -> None:
    """Raise ValueError unless the weights are one finite non-negative number per class, not all of them zero.

    Args:
        class_weight: (C,), floating point.
        source: name of the weights in the message.
        single: allow one number, as a binary cross-entropy takes it.

    Example:
        >>> import torch
        >>> from mmseg_wce.class_weights import check_class_weight
        >>> check_class_weight(torch.tensor([1.0, -2.0]))
        Traceback (most recent call last):
        ValueError: class_weight must be finite and not negative, got class 1: -2.0 (1 of 2)
    """
    if class_weight.dim() != 1 or class_weight.numel() < (1 if single else 2):
        raise ValueError(f'{source} must be one weight per class, got shape {tuple(class_weight.shape)}')
    bad = ~(torch.isfinite(class_weight) & (class_weight >= 0))
    if bad.any():
        listed = ', '.join(f'class {i}: {class_weight[i].item()}' for i in bad.nonzero().flatten().tolist()[:8])
        raise ValueError(f'{source} must be finite and not negative, got {listed} ({int(bad.sum())} of {bad.numel()})')
    if not class_weight.any():
        number = class_weight.numel()
        raise ValueError(f'{source} is zero{f" for all {number} classes" * (number > 1)}: no label would be learnt')


def load_class_weight(class_weight: ClassWeight | float, single: bool = False) -> Tensor:
    """Return the class weights of a config as a checked tensor.

    Args:
        class_weight: one number per class in order of the class indices, as a list, tuple, array or tensor, or the
            path of a ``.npy``, ``.json``, ``.yaml`` or ``.pkl`` file that holds such a list (any file backend of
            mmengine; pickles may hold numbers and NumPy arrays only), or
            ``dict(statistics='ade20k' or a file of tools/class_weights.py, scheme='median_frequency', ...)`` with the
            options of :func:`mmseg_wce.class_weights.class_weights`.
        single: allow one number, as a binary cross-entropy takes it, also without a list around it.

    Returns:
        (C,), float32, on CPU.

    Raises:
        TypeError: ``class_weight`` has another type, or the scheme has no such option.
        ValueError: the file is missing or not valid, a weight is negative, NaN or infinite, or all are zero.

    Example:
        >>> from mmseg_wce.class_weights import load_class_weight
        >>> load_class_weight([1, 0.5, 2])
        tensor([1.0000, 0.5000, 2.0000])
        >>> load_class_weight(dict(statistics='ade20k', scheme='enet')).shape
        torch.Size([150])
    """
    source = 'class_weight'
    error_type: type[Exception] = TypeError
    if single and _is_number(class_weight):
        class_weight = [float(class_weight)]  # type: ignore[arg-type]  # it is a number
    if isinstance(class_weight, Mapping):
        class_weight = _from_scheme(class_weight)
    if isinstance(class_weight, (str, os.PathLike)):
        path = os.fspath(class_weight)
        source, error_type, class_weight = f'class_weight file {path!r}', ValueError, _read_file(path)
    if not isinstance(class_weight, (Sequence, np.ndarray, Tensor)) or isinstance(class_weight, (str, bytes)):
        raise error_type(
            f'{source} must be a list of numbers, got {type(class_weight).__name__}: {_short_repr(class_weight)}'
        )
    weights = _as_float32(class_weight, source)
    check_class_weight(weights, source, single)
    return weights


def _from_scheme(options: Mapping[str, Any]) -> np.ndarray:
    options = dict(options)
    if not isinstance(options.get('statistics'), (str, os.PathLike)):
        raise TypeError(
            "class_weight must be a list of numbers, a file, or dict(statistics='ade20k' or a file, scheme=...), got "
            f'{_short_repr(options)}'
        )
    statistics = load_statistics(options.pop('statistics'))
    try:
        return class_weights(statistics, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(f'class_weight by a scheme: {error}') from error


def _is_number(number: Any) -> bool:
    if isinstance(number, (np.ndarray, Tensor)):
        return number.ndim == 0
    return isinstance(number, Real) and not isinstance(number, bool)


def _short_repr(value: Any) -> str:
    """Return the start of a value's repr: the full one of a list that nests one list many times would take hours."""
    return reprlib.repr(value)[:200]


def _as_float32(class_weight: Sequence[float] | np.ndarray | Tensor, source: str) -> Tensor:
    if isinstance(class_weight, Tensor):
        class_weight = class_weight.detach().cpu().double().numpy()
    elif not isinstance(class_weight, np.ndarray):  # a list may contain itself, so none is flattened
        bad_index = next((i for i, number in enumerate(class_weight) if not _is_number(number)), None)
        if bad_index is not None:
            kind, number = type(class_weight[bad_index]).__name__, _short_repr(class_weight[bad_index])
            raise ValueError(
                f'{source} must be a flat list of real numbers, got the {kind} {number} at index {bad_index}'
            )
    array = np.array(class_weight)
    if array.size and array.dtype.kind not in 'iuf':
        raise ValueError(f'{source} must hold real numbers, got {_short_repr(class_weight)} ({array.dtype})')
    with np.errstate(over='ignore'):  # too large for float32 becomes infinite, which check_class_weight refuses
        return torch.from_numpy(array.astype(np.float32))
