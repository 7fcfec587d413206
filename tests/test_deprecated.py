import subprocess
import sys

import pytest

SCRIPT = """
import warnings
warnings.simplefilter('always')
with warnings.catch_warnings(record=True) as caught:
    import mmseg_wce
    assert not [w for w in caught if 'mmseg_wce' in str(w.message)]
"""
IMPORT = """
with warnings.catch_warnings(record=True) as caught:
    {line}
    {check}
print(*(w.message for w in caught if w.category is DeprecationWarning and 'mmseg_wce' in str(w.message)), sep='; ')
"""
# line, what holds after it, and its warnings; one after the other in one process, which takes seconds to start
IMPORTS = [
    (
        'from mmseg_wce.labels import raise_pending, valid_pixels',
        'assert valid_pixels is mmseg_wce.targets.valid_pixels',
        'mmseg_wce.labels is now mmseg_wce.targets',
    ),
    (
        'from mmseg_wce.label_files import in_folder, of_config, scan',
        'assert of_config is mmseg_wce.dataset_checks.from_config',
        'mmseg_wce.label_files is now mmseg_wce.dataset_checks',
    ),
    (
        'from mmseg_wce.fusion import FusedLossHook, fuse_decode_heads',
        'assert fuse_decode_heads is mmseg_wce.fused_heads.fuse_decode_heads',
        'mmseg_wce.fusion is now mmseg_wce.fused_heads',
    ),
    (
        'from mmseg_wce.binary import *',
        'assert weighted_binary_cross_entropy is mmseg_wce.functional.weighted_binary_cross_entropy',
        'mmseg_wce.binary is now mmseg_wce.functional',
    ),
    (
        'mmseg_wce.resuming',
        'assert mmseg_wce.resuming.check_can_go_on is mmseg_wce.training.resuming.check_can_go_on',
        'mmseg_wce.resuming is now mmseg_wce.training.resuming',
    ),
    ('from mmseg_wce import labels', 'assert labels.explain is mmseg_wce.targets.explain', ''),  # warned already
    (
        'import mmseg_wce.label_files.listing',
        'assert mmseg_wce.label_files.listing.in_folder is mmseg_wce.dataset_checks.from_folder',
        'mmseg_wce.label_files.listing is now mmseg_wce.dataset_checks.discovery',
    ),
    (
        'from mmseg_wce.recovery import checkpoints_in',
        'assert checkpoints_in is mmseg_wce.training.checkpoints.checkpoints_in',
        'mmseg_wce.recovery is now mmseg_wce.training.checkpoints',
    ),
    (
        'from mmseg_wce.preflight import load_config',
        'assert load_config is mmseg_wce.training.preflight.load_config',
        'mmseg_wce.preflight is now mmseg_wce.training.preflight',
    ),
    (
        'from mmseg_wce.class_weights.statistics import Convention',
        'assert Convention is mmseg_wce.class_weights.LabelEncoding',
        'mmseg_wce.class_weights.statistics.Convention is now mmseg_wce.class_weights.statistics.LabelEncoding',
    ),
    (
        'import mmseg_wce.class_weights',
        'assert mmseg_wce.class_weights.Convention is mmseg_wce.class_weights.LabelEncoding',
        'mmseg_wce.class_weights.Convention is now mmseg_wce.class_weights.LabelEncoding',
    ),
]


def test_old_imports_work_and_name_the_new_ones():
    code = SCRIPT + ''.join(IMPORT.format(line=line, check=check) for line, check, _ in IMPORTS)

    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-len(IMPORTS) :] == [message for *_, message in IMPORTS]


def test_unknown_modules_stay_unknown():
    with pytest.raises(ModuleNotFoundError, match=r'mmseg_wce\.label_files\.nowhere'):
        __import__('mmseg_wce.label_files.nowhere')
