"""Units and thresholds that back ends share. Compiled ones have logits in units of log 2: 2^z is faster than e^z."""

import math

LOG2_E = math.log2(math.e)
LN_2 = math.log(2)
# What a logit of -inf becomes, since 0 * -inf is NaN: probability 0 after any interpolation, and finite.
MASKED = -1e36
# A sum of exponentials below this has lost digits: what was subtracted is far above the largest logit.
SMALLEST_SUM = 2.0**-57
# A loss above this either met a class at -inf or logits as large: a closer look tells which.
LARGEST_LOSS = 1e25
