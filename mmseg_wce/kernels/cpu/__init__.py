"""The op on the CPU, in Numba: exponentials as fast as the processor's vectors allow, in few threads that share nothing.

:mod:`.launch` turns tensors into arrays and cuts the work (:mod:`.layout`) into pieces for threads (:mod:`.threads`);
kernels (:mod:`.resized`, :mod:`.same_size`) work on a piece, and on single pixels once more in float64
(:mod:`.exact`). The same bits come out for any number of threads.
"""

from mmseg_wce.kernels.cpu.launch import DTYPES, backward, forward

__all__ = ['DTYPES', 'backward', 'forward']
