"""Find the newest intact checkpoint of a training.

mmengine's ``find_latest_checkpoint`` returns the path in ``last_checkpoint``, whatever became of that file.
"""

from __future__ import annotations

import os
import os.path as osp
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ['Checkpoints', 'checkpoint_before', 'checkpoints_in', 'damage', 'is_whole_and_finite']


_MAX_PATH_LENGTH = 4096  # characters


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of a training.

    Attributes:
        usable: the checkpoint to resume from: the one in mmengine's file ``last_checkpoint`` or, if that is damaged,
            the one before it; None if there is none.
        damaged: newer checkpoints that cannot be read, with the reasons.
    """

    usable: str | None
    damaged: dict[str, str]


class _Checkpoint(NamedTuple):
    path: str
    kind: int  # index of the file name pattern; iterations and epochs cannot be compared
    step: int
    modified: float  # seconds since 1970


def checkpoints_in(work_dir: str, hook: Mapping | None = None, since: float = 0) -> Checkpoints:
    """Find the checkpoint in a local work dir from which a training can resume.

    A killed training can leave its last checkpoint truncated, or mmengine's file ``last_checkpoint`` empty.

    Args:
        work_dir: work dir of the training; it may have been moved or copied.
        hook: config of mmengine's CheckpointHook; ``out_dir`` and ``filename_tmpl`` are the folder and the file names.
        since: seconds since 1970. Older files belong to another training.

    Returns:
        The checkpoint to resume from, and damaged ones.

    Example:
        >>> import os, tempfile, torch
        >>> from mmseg_wce.training.checkpoints import checkpoints_in
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(dict(meta={}), f'{folder}/iter_100.pth')
        ...     _ = open(f'{folder}/iter_200.pth', 'wb').write(b'cut off')
        ...     checkpoints = checkpoints_in(folder)
        >>> os.path.basename(checkpoints.usable), len(checkpoints.damaged)
        ('iter_100.pth', 1)
    """
    hook, folders = hook or {}, [Path(work_dir)]
    if out_dir := hook.get('out_dir'):
        folders.insert(0, Path(out_dir, osp.basename(osp.abspath(work_dir))))
    template = hook.get('filename_tmpl')
    names = [osp.basename(template)] if template else ['iter_{}.pth', 'epoch_{}.pth']
    patterns = [re.compile(r' *(\d+)'.join(map(re.escape, re.split(r'\{.*?\}', name)))) for name in names]

    last_path = _read_last_checkpoint(Path(work_dir))
    if last_path and '://' in last_path:  # mmengine reads other storages
        return Checkpoints(None if since else last_path, {})
    folders = [folder / osp.dirname(template or '') for folder in folders]
    if last_path:
        last_path = _locate(last_path, folders, patterns)
        folders.append(Path(last_path).parent)
    checkpoints = [x for x in _list_checkpoints(folders, patterns) if x.modified >= since]
    checkpoints.sort(key=lambda x: (x.modified, x.step), reverse=True)
    newer: list[_Checkpoint] = []
    if last_path and (last := _parse_checkpoint(last_path, patterns)):
        others = [x for x in checkpoints if x.kind == last.kind and x.path != last_path]
        # a newer one was being written when the training was killed; other higher steps are of another training
        newer = [x for x in others if x[2:] > last[2:] and x.modified > last.modified]
        checkpoints = [x for x in others if x.step < last.step]
        checkpoints.sort(key=lambda x: (x.step, x.modified), reverse=True)
    candidates = [x.path for x in checkpoints]
    if last_path and _modification_time(last_path) >= since:
        candidates.insert(0, last_path)
    damaged = {x.path: reason for x in newer if (reason := damage(x.path)) is not None}
    for path in candidates:
        reason = damage(path)
        if reason is None:
            return Checkpoints(path, damaged)
        damaged[path] = reason
    return Checkpoints(None, damaged)


def checkpoint_before(path: str) -> str | None:
    """Return the newest intact checkpoint with finite weights before another one, in the same folder.

    Args:
        path: path of a checkpoint named ``iter_100.pth`` or ``epoch_3.pth``, as mmengine does.

    Returns:
        The path; None if there is none.

    Example:
        >>> import os, tempfile, torch
        >>> from mmseg_wce.training.checkpoints import checkpoint_before
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step, weight in ((100, 1.0), (200, float('nan')), (300, float('nan'))):
        ...         torch.save(dict(state_dict=dict(weight=torch.tensor(weight))), f'{folder}/iter_{step}.pth')
        ...     os.path.basename(checkpoint_before(f'{folder}/iter_300.pth'))
        'iter_100.pth'
    """
    name = re.fullmatch(r'(.*?)(\d+)(\D*)', osp.basename(path))
    if name is None:
        return None
    pattern = re.compile(re.escape(name[1]) + r'(\d+)' + re.escape(name[3]))
    earlier = [x for x in _list_checkpoints([Path(path).parent], [pattern]) if x.step < int(name[2])]
    earlier.sort(key=lambda x: x.step, reverse=True)
    return next((x.path for x in earlier if is_whole_and_finite(x.path)), None)


def is_whole_and_finite(path: str) -> bool:
    """Return True if a local checkpoint is intact and its weights are finite; those of sharded ones are not read.

    Example:
        >>> from mmseg_wce.training.checkpoints import is_whole_and_finite
        >>> is_whole_and_finite('iter_100.pth')
        False
    """
    if damage(path) is not None:
        return False
    if osp.isdir(path):
        return True
    state = torch.load(path, map_location='cpu', weights_only=True)
    weights = state.get('state_dict', {}).values() if isinstance(state, dict) else ()
    return all(bool(weight.isfinite().all()) for weight in weights if isinstance(weight, torch.Tensor))


def _read_last_checkpoint(work_dir: Path) -> str | None:
    """Return the path in mmengine's file ``last_checkpoint``; None if the file is missing or unusable."""
    path = work_dir / 'last_checkpoint'
    if not path.is_file():  # reading a pipe would block
        return None
    try:
        with path.open(encoding='utf-8') as file:
            checkpoint = file.read(_MAX_PATH_LENGTH).strip()
    except (OSError, UnicodeDecodeError):
        return None
    # after a power failure the file may hold zero bytes
    return checkpoint if checkpoint.isprintable() and osp.basename(checkpoint) else None


def _locate(path: str, folders: list[Path], patterns: list[re.Pattern]) -> str:
    """Return the path of the last checkpoint in ``folders``, to which the work dir may have been moved or copied.

    A work dir without it, but with other checkpoints, resumes from those and not from the original.
    """
    local_paths = [str(folder / osp.basename(path)) for folder in folders]
    if existing := next(filter(osp.exists, local_paths), None):
        return existing
    return local_paths[0] if not osp.dirname(path) or any(_list_checkpoints(folders, patterns)) else path


def _list_checkpoints(folders: list[Path], patterns: list[re.Pattern]) -> Iterator[_Checkpoint]:
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.glob('*')):
            if (checkpoint := _parse_checkpoint(str(path), patterns)) and checkpoint.modified:
                yield checkpoint


def _parse_checkpoint(path: str, patterns: list[re.Pattern]) -> _Checkpoint | None:
    for kind, pattern in enumerate(patterns):
        if match := pattern.fullmatch(osp.basename(path)):
            return _Checkpoint(path, kind, int(match[1]) if match.lastindex else 0, _modification_time(path))
    return None


def _modification_time(path: str) -> float:
    try:
        return osp.getmtime(path)
    except OSError:  # deleted meanwhile, or a broken link
        return 0


def damage(path: str) -> str | None:
    """Return why a checkpoint file cannot be read, None if it is intact. Reads the whole file.

    PyTorch does not verify the checksums that it writes; without this check a flipped bit would change a weight.

    Example:
        >>> from mmseg_wce.training.checkpoints import damage
        >>> damage('iter_100.pth')
        'it does not exist'
    """
    if osp.isdir(path):  # sharded, by torch.distributed.checkpoint or DeepSpeed
        is_checkpoint = any(name == '.metadata' or name.endswith('.pt') for name in os.listdir(path))
        return None if is_checkpoint else 'it is a folder without a checkpoint'
    if not osp.isfile(path):
        return 'it does not exist'
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _archive_damage(archive)
        torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # each format raises different errors
        message = str(error).splitlines()[0][:100] if str(error) else ''
        return f'it is damaged, or no checkpoint ({os.stat(path).st_size:,} bytes; {type(error).__name__}: {message})'
    return None


def _archive_damage(archive: zipfile.ZipFile) -> str | None:
    parts = archive.infolist()
    if not any(osp.basename(part.filename) == 'data.pkl' for part in parts):
        return 'it is a zip archive, but not a checkpoint'
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):  # could decompress to any size
        return 'it is compressed, which torch.save does not do'
    bad = archive.testzip()
    return None if bad is None else f'its part {bad!r} does not have the checksum it was written with'
