"""The op on the CPU, in Numba: vectorised exponentials on several independent threads.

:mod:`.launch` turns tensors into arrays, cuts the work into pieces (:mod:`.layout`) and gives them to threads
(:mod:`.threads`). Kernels process a piece (:mod:`.resized_forward`, :mod:`.resized_backward`, :mod:`.same_size`), and
single pixels again in float64 (:mod:`.exact`); :mod:`.focal` takes the losses of pixels. The results are the same bits
for any number of threads.
"""

from mmseg_wce.kernels.cpu.launch import backward, focal_sum, forward

__all__ = ['backward', 'focal_sum', 'forward']
