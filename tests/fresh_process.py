"""For code that tests run in a process of its own."""

# Kernels need no mmseg, whose import takes seconds.
WITHOUT_MMSEG = 'import sys; sys.modules["mmseg"] = None\n'
