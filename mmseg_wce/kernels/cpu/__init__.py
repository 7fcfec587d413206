"""The op on the CPU, in Numba: exponentials as fast as vector instructions allow, on a few threads that share nothing.

:mod:`.launch` turns tensors into arrays, and cuts the work (:mod:`.layout`) into pieces for threads (:mod:`.threads`).
Kernels work on a piece (:mod:`.resized_forward`, :mod:`.resized_backward`, :mod:`.same_size`), and on single pixels
once more in float64 (:mod:`.exact`). The same bits come out for any number of threads.
"""

from mmseg_wce.kernels.cpu.launch import backward, forward

__all__ = ['backward', 'forward']
