"""Compile kernels once for all sizes of images.

Triton compiles a kernel anew for integers and addresses that are divisible by 16 and those that are not, which helps
kernels whose threads load several neighbouring numbers at once. These load one, and photos have any size.
"""

from functools import partial

import triton

_SIZES = (
    'height width H W tiles programs pixels chunks strips bands band_rows cell_rows cell_columns ignore_index '
    'row_step row_shift row_denominator row_inverse column_step column_shift column_denominator column_inverse'
)
# A stride of 1 is worth a kernel of its own.
_STRIDES = 'stride_n stride_c stride_h stride_w grad_stride_n grad_stride_c grad_stride_h grad_stride_w'
_POINTERS = (
    'logits max_logit target smoothing_weight smoothing_sum class_weight nll smooth correct log_sums origins '
    'fine_log_sums flag grad_nll grad_smooth grad_loss_sum grad_smooth_sum gradient partial_sums loss_sum smooth_sum '
    'counts num_invalid report slope gamma'
)

kernel = partial(
    triton.jit,
    do_not_specialize=_SIZES.split(),
    do_not_specialize_on_alignment=f'{_STRIDES} {_POINTERS}'.split(),
)
