"""Load NumPy arrays from untrusted pickles: numbers only, in memory that NumPy allocates.

A restricted unpickler must not allow ``numpy.ndarray`` and ``numpy.dtype``: together they can create an array of object
pointers from bytes of the file. The stand-ins here load exactly what NumPy writes for arrays and scalars of numbers,
and raise an error for everything else.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any, Literal, SupportsIndex

import numpy as np

__all__ = ['SAFE_GLOBALS', 'STAND_INS', 'PlainArray', 'PlainDtype']


class PlainDtype:
    """Stand-in for ``numpy.dtype`` in a pickle, for numbers only.

    Args:
        code: kind and size in bytes, such as 'f4'.

    Raises:
        pickle.UnpicklingError: any other dtype.
    """

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r'[biuf]\d', code):
            raise pickle.UnpicklingError(f'it holds an array of {code!r}; only integers, floats and bools are allowed')
        self._code = code
        self._order: Literal['<', '>', '=', '|'] = '='

    def __setstate__(self, state: tuple) -> None:
        self._order = state[1] if state[1] in ('<', '>', '=', '|') else '='

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(self._code).newbyteorder(self._order)


class PlainArray(np.ndarray):
    """An array of numbers that can only be filled by its pickled state. Pickles as a ``numpy.ndarray``."""

    def __new__(cls, *_: Any) -> PlainArray:
        raise pickle.UnpicklingError('it creates an array from memory that it chooses')

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, fortran_order, content = state
        super().__setstate__((version, shape, _numpy_dtype(dtype), fortran_order, content))

    def __reduce__(self) -> str | tuple:
        return self.view(np.ndarray).__reduce__()

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _numpy_dtype(dtype: PlainDtype) -> np.dtype:
    if not isinstance(dtype, PlainDtype):
        raise pickle.UnpicklingError(f'it holds an array of {dtype!r}')
    return dtype.numpy


def _ndarray(*_: Any) -> PlainArray:
    return PlainArray()


def _reconstruct(*_: Any) -> PlainArray:
    return np.ndarray.__new__(PlainArray, (0,), 'b')


def _scalar(dtype: PlainDtype, content: bytes) -> np.generic:
    return np.frombuffer(content, _numpy_dtype(dtype), count=1)[0]


def _frombuffer(content: bytes, dtype: PlainDtype, shape: tuple, order: Literal['C', 'F']) -> np.ndarray:
    return np.frombuffer(content, _numpy_dtype(dtype)).reshape(shape, order=order).copy(order)


# names in NumPy 1 and 2
STAND_INS: dict[str, Callable] = {
    'numpy.dtype': PlainDtype,
    'numpy.ndarray': _ndarray,
    **{
        f'numpy.{core}.{name}': stand_in
        for core in ('core', '_core')
        for name, stand_in in (
            ('multiarray._reconstruct', _reconstruct),
            ('multiarray.scalar', _scalar),
            ('numeric._frombuffer', _frombuffer),
        )
    },
}

# argument of torch.serialization.add_safe_globals
SAFE_GLOBALS: list = [PlainArray, PlainDtype, *((stand_in, name) for name, stand_in in STAND_INS.items())]
