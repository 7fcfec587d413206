import subprocess
import sys

import pytest

SCRIPT = """
import warnings
warnings.simplefilter('always')
with warnings.catch_warnings(record=True) as caught:
    import mmseg_wce
    assert not [w for w in caught if 'mmseg_wce' in str(w.message)]
    {line}
print(*(w.message for w in caught if w.category is DeprecationWarning and 'mmseg_wce' in str(w.message)), sep='; ')
"""


@pytest.mark.parametrize(
    ('line', 'check', 'message'),
    [
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
            'from mmseg_wce import labels',
            'assert labels.explain is mmseg_wce.targets.explain',
            'mmseg_wce.labels is now mmseg_wce.targets',
        ),
        (
            'import mmseg_wce.label_files.listing',
            'assert mmseg_wce.label_files.listing.in_folder is mmseg_wce.dataset_checks.from_folder',
            'mmseg_wce.label_files is now mmseg_wce.dataset_checks; mmseg_wce.label_files.listing is now '
            'mmseg_wce.dataset_checks.discovery',
        ),
    ],
)
def test_old_import_works_and_names_the_new_one(line, check, message):
    code = SCRIPT.format(line=f'{line}\n    {check}')

    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == message


def test_unknown_modules_stay_unknown():
    with pytest.raises(ModuleNotFoundError, match=r'mmseg_wce\.label_files\.nowhere'):
        __import__('mmseg_wce.label_files.nowhere')
