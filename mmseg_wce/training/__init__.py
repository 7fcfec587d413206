"""What ``tools/train.py`` and ``tools/test.py`` add to mmseg: checks before the start, intact checkpoints."""
