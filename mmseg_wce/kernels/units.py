"""Units and thresholds shared by the back ends. Compiled ones keep logits in units of log 2: 2^z is faster than e^z."""

import math

LOG2_E = math.log2(math.e)
LN_2 = math.log(2)
# Finite replacement for a logit of -inf, since 0 * -inf is NaN. Its probability is 0 after any interpolation.
MASKED = -1e36
# A smaller sum of exponentials has lost digits: the subtracted maximum is far above the largest logit.
SMALLEST_SUM = 2.0**-57
# A larger loss comes from a class at -inf or from logits of that size. Computing it in float64 tells which.
LARGEST_LOSS = 1e25
# Labels are counted below 0, for each value of a mask file (0 to 255), for larger invalid ones, and for larger classes.
NUM_LABEL_BINS = 259
