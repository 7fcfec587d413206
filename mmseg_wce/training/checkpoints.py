"""What is left of a training that was killed: which checkpoints are whole, and where it can go on."""

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


_LONGEST_NOTE = 4096  # characters, as a path


@dataclass(frozen=True)
class Checkpoints:
    """What a training has written.

    Attributes:
        usable: the checkpoint to go on from: the one mmengine wrote down as the last or, where that is damaged, the one
            before it; None where there is none.
        damaged: what is newer than it and cannot be read, and why.
    """

    usable: str | None
    damaged: dict[str, str]


class _Checkpoint(NamedTuple):
    path: str
    kind: int  # which of the names: of iterations and of epochs the numbers do not compare
    step: int
    written: float  # seconds since 1970


def checkpoints_in(work_dir: str, hook: Mapping | None = None, since: float = 0) -> Checkpoints:
    """Look for the checkpoint of a local work dir that a training can go on from.

    A killed training leaves its last checkpoint cut off, or mmengine's file ``last_checkpoint`` empty.

    Args:
        work_dir: of the training; it may have been moved or copied.
        hook: config of mmengine's CheckpointHook, whose ``out_dir`` and ``filename_tmpl`` say where and how it writes.
        since: seconds since 1970. What was written before is of another training.

    Returns:
        Where to go on, and what is damaged.

    Example:
        >>> import os, tempfile, torch
        >>> from mmseg_wce.training.checkpoints import checkpoints_in
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(dict(meta={}), f'{folder}/iter_100.pth')
        ...     _ = open(f'{folder}/iter_200.pth', 'wb').write(b'cut off')
        ...     found = checkpoints_in(folder)
        >>> os.path.basename(found.usable), len(found.damaged)
        ('iter_100.pth', 1)
    """
    hook, folders = hook or {}, [Path(work_dir)]
    if out_dir := hook.get('out_dir'):
        folders.insert(0, Path(out_dir, osp.basename(osp.abspath(work_dir))))
    template = hook.get('filename_tmpl')
    names = [osp.basename(template)] if template else ['iter_{}.pth', 'epoch_{}.pth']
    patterns = [re.compile(r' *(\d+)'.join(map(re.escape, re.split(r'\{.*?\}', name)))) for name in names]

    noted = _noted(Path(work_dir))
    if noted and '://' in noted:  # another storage: reading it is mmengine's business
        return Checkpoints(None if since else noted, {})
    folders = [folder / osp.dirname(template or '') for folder in folders]
    if noted:
        noted = _where_it_is(noted, folders, patterns)
        folders.append(Path(noted).parent)
    found = [checkpoint for checkpoint in _listed(folders, patterns) if checkpoint.written >= since]
    found.sort(key=lambda checkpoint: (checkpoint.written, checkpoint.step), reverse=True)
    newer: list[_Checkpoint] = []
    if noted and (last := _checkpoint(noted, patterns)):
        rest = [checkpoint for checkpoint in found if checkpoint.kind == last.kind and checkpoint.path != noted]
        # one that was being written when the training was killed is not noted yet; others are of another training
        newer = [checkpoint for checkpoint in rest if checkpoint[2:] > last[2:] and checkpoint.written > last.written]
        found = sorted((x for x in rest if x.step < last.step), key=lambda x: (x.step, x.written), reverse=True)
    candidates = [checkpoint.path for checkpoint in found]
    if noted and _written(noted) >= since:
        candidates.insert(0, noted)
    damaged = {checkpoint.path: why for checkpoint in newer if (why := damage(checkpoint.path)) is not None}
    for path in dict.fromkeys(candidates):
        why = damage(path)
        if why is None:
            return Checkpoints(path, damaged)
        damaged[path] = why
    return Checkpoints(None, damaged)


def checkpoint_before(path: str) -> str | None:
    """Return the newest whole checkpoint before another one, in the same folder, whose weights are finite.

    Args:
        path: of a checkpoint named as mmengine names them, ``iter_100.pth`` or ``epoch_3.pth``.

    Returns:
        Its path; None where there is none.

    Example:
        >>> import os, tempfile, torch
        >>> from mmseg_wce.training.checkpoints import checkpoint_before
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step, weight in ((100, 1.0), (200, float('nan')), (300, float('nan'))):
        ...         torch.save(dict(state_dict=dict(weight=torch.tensor(weight))), f'{folder}/iter_{step}.pth')
        ...     os.path.basename(checkpoint_before(f'{folder}/iter_300.pth'))
        'iter_100.pth'
    """
    name = osp.basename(path)
    step = re.search(r'(\d+)(?=\D*$)', name)
    if step is None:
        return None
    pattern = re.compile(re.escape(name[: step.start()]) + r'(\d+)' + re.escape(name[step.end() :]))
    steps = {int(m[1]): str(p) for p in Path(path).parent.glob('*') if (m := pattern.fullmatch(p.name))}
    earlier = (steps[number] for number in sorted(steps, reverse=True) if number < int(step[1]))
    return next(filter(is_whole_and_finite, earlier), None)


def is_whole_and_finite(path: str) -> bool:
    """Return True for a checkpoint that can be read and whose weights are finite; of a sharded one they are not read.

    Args:
        path: of a local file or folder.

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


def _noted(work_dir: Path) -> str | None:
    """The checkpoint that mmengine wrote down; None where it wrote nothing of use."""
    path = work_dir / 'last_checkpoint'
    if not path.is_file():  # a pipe would wait for ever
        return None
    try:
        with path.open(encoding='utf-8') as file:
            noted = file.read(_LONGEST_NOTE).strip()
    except (OSError, UnicodeDecodeError):
        return None
    return noted if noted.isprintable() and osp.basename(noted) else None  # a machine that lost power leaves zeros


def _where_it_is(noted: str, folders: list[Path], patterns: list[re.Pattern]) -> str:
    """In the folder it was moved or copied to. A copy without it goes on from what it has, not from the original."""
    here = [str(folder / osp.basename(noted)) for folder in folders]
    if found := next(filter(osp.exists, here), None):
        return found
    return here[0] if not osp.dirname(noted) or any(_listed(folders, patterns)) else noted


def _listed(folders: list[Path], patterns: list[re.Pattern]) -> Iterator[_Checkpoint]:
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.glob('*')):
            if (checkpoint := _checkpoint(str(path), patterns)) and checkpoint.written:
                yield checkpoint


def _checkpoint(path: str, patterns: list[re.Pattern]) -> _Checkpoint | None:
    for kind, pattern in enumerate(patterns):
        if match := pattern.fullmatch(osp.basename(path)):
            return _Checkpoint(path, kind, int(match[1]) if match.lastindex else 0, _written(path))
    return None


def _written(path: str) -> float:
    try:
        return osp.getmtime(path)
    except OSError:  # deleted in between, or a link to nowhere
        return 0


def damage(path: str) -> str | None:
    """Why a checkpoint file cannot be read; None where it is whole. Reads all of it.

    PyTorch itself does not compare the checksums that it writes: a flipped bit would be a wrong weight.

    Example:
        >>> from mmseg_wce.training.checkpoints import damage
        >>> damage('iter_100.pth')
        'it does not exist'
    """
    if osp.isdir(path):  # sharded: by torch.distributed.checkpoint, or by DeepSpeed
        whole = any(name == '.metadata' or name.endswith('.pt') for name in os.listdir(path))
        return None if whole else 'it is a folder without a checkpoint'
    if not osp.isfile(path):
        return 'it does not exist'
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _damage_of_archive(archive)
        torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # every format has errors of its own
        words = str(error).splitlines()[0][:100] if str(error) else ''
        return f'it is damaged, or no checkpoint ({os.stat(path).st_size:,} bytes; {type(error).__name__}: {words})'
    return None


def _damage_of_archive(archive: zipfile.ZipFile) -> str | None:
    parts = archive.infolist()
    if not any(osp.basename(part.filename) == 'data.pkl' for part in parts):
        return 'it is a zip archive, but no checkpoint'
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):  # it could unpack to any size
        return 'it is compressed, which torch.save does not do'
    bad = archive.testzip()
    return None if bad is None else f'its part {bad!r} does not have the checksum it was written with'
