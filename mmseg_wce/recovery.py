"""What is left of a training that was killed: which checkpoints are whole, and where it can go on."""

from __future__ import annotations

import os
import os.path as osp
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.runner import find_latest_checkpoint

__all__ = ['Checkpoints', 'checkpoints_in', 'damage']


@dataclass(frozen=True)
class Checkpoints:
    """What a work dir holds.

    Attributes:
        usable: the checkpoint to go on from: the one mmengine wrote down as the last, or, where that is damaged, the
            one written last of those that are whole; None where there is none.
        damaged: what is newer than it and cannot be read, and why.
    """

    usable: str | None
    damaged: dict[str, str]


def checkpoints_in(work_dir: str) -> Checkpoints:
    """Look for the checkpoint of a local work dir that a training can go on from.

    A killed training leaves its last checkpoint cut off, or mmengine's file ``last_checkpoint`` empty.
    """
    noted = find_latest_checkpoint(work_dir) if osp.isfile(osp.join(work_dir, 'last_checkpoint')) else None
    if noted and '://' in noted:  # another storage: reading it is mmengine's business
        return Checkpoints(noted, {})
    noted = noted and str(Path(noted))
    folders = dict.fromkeys([Path(noted).parent, Path(work_dir)] if noted else [Path(work_dir)])  # it may have moved
    others = [str(path) for folder in folders for kind in ('iter', 'epoch') for path in folder.glob(f'{kind}_*.pth')]
    others.sort(key=os.path.getmtime, reverse=True)
    damaged: dict[str, str] = {}
    if noted and osp.exists(noted):  # one that was being written when the training was killed is not noted yet
        unnoted = [path for path in others if osp.getmtime(path) > osp.getmtime(noted)]
        damaged = {path: why for path in unnoted if (why := damage(path)) is not None}
    for path in dict.fromkeys([noted, *others] if noted else others):
        why = damaged.get(path) or damage(path)
        if why is None:
            return Checkpoints(path, damaged)
        damaged[path] = why
    return Checkpoints(None, damaged)


def damage(path: str) -> str | None:
    """Why a checkpoint file cannot be read; None where it is whole. Reads all of it.

    PyTorch itself does not compare the checksums that it writes: a flipped bit would be a wrong weight.
    """
    if osp.isdir(path):  # sharded, of other formats
        return None
    if not osp.isfile(path):
        return 'it does not exist'
    try:
        if zipfile.is_zipfile(path):  # what torch.save writes
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            return None if bad is None else f'its part {bad!r} does not have the checksum it was written with'
        torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # every format has errors of its own
        size = osp.getsize(path)
        words = str(error).splitlines()[0][:100] if str(error) else ''
        return f'it is damaged, or no checkpoint ({size:,} bytes; {type(error).__name__}: {words})'
    return None
