"""Additions of ``tools/train.py`` and ``tools/test.py`` to mmseg: checks before the start, intact checkpoints."""
