"""The trainings of a comparison: their configs over the given one, their commands, and what is kept of them."""

import hashlib
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from pathlib import Path

import mmseg
import mmseg_wce
import torch
from base_configs import header
from config_losses import ALREADY_OURS, OURS, Loss, losses
from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg_wce.class_weights import SCHEMES, load_statistics
from mmseg_wce.config_walk import nodes
from mmseg_wce.safe_io.json_files import read_json, write_json
from mmseg_wce.training.checkpoints import checkpoints_in
from mmseg_wce.training.preflight import PreflightError
from subprocess_runner import Failed, free_port, watch

TOOLS = Path(__file__).resolve().parent.parent
BUILT_IN, NON_IGNORE, UNWEIGHTED, HARD_PIXELS = 'built_in', 'built_in_avg_non_ignore', 'unweighted', 'hard_pixels'
NAMES = (BUILT_IN, NON_IGNORE, UNWEIGHTED, *SCHEMES, HARD_PIXELS)
"""Losses that can be compared: mmseg's, and ours without weights, by each scheme, and on hard pixels."""
# As in mmseg's configs with OHEM: pixels whose class has less than this probability, and at least a fifth of the crop.
HARD_BELOW, HARD_SHARE = 0.7, 0.2
MEANS = ('mIoU', 'mAcc', 'aAcc')
_MEBIBYTE = 2**20 / 1e6  # which mmengine logs as MB


@dataclass(frozen=True)
class Comparison:
    """A config, and where its trainings and their results go.

    Attributes:
        base: what ``_base_`` calls the config.
        file: of the config.
        config: what it says, with the options of the command line.
        trainings: folder for the work dirs of all configs.
        results: folder for what is kept of all configs.
        words: of ``--cfg-options`` on the command line.
        processes: of each training; every one has batches of its own.
    """

    base: str
    file: Path
    config: Config
    trainings: Path
    results: Path
    words: tuple[str, ...] = ()
    processes: int = 1

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def labels(self) -> Path:
        """Statistics of the training labels, of this data set."""
        return self.trainings / self.name / f'labels-{_digest(self.config.train_dataloader.dataset)}.json'

    @cached_property
    def digest(self) -> str:
        """Digest of the config, wherever the data lie, and with FusedPredictHook or not: it predicts the same."""
        return _digest(_without(self.config.to_dict(), 'data_root', 'work_dir', 'fused_predict'))


@dataclass(frozen=True)
class Run:
    """One training: with a loss of :data:`NAMES`, from a seed."""

    comparison: Comparison
    loss: str
    seed: int

    @property
    def name(self) -> str:
        return f'{self.loss}-seed{self.seed}'

    @property
    def work_dir(self) -> Path:
        return self.comparison.trainings / self.comparison.name / self.name

    @property
    def result_file(self) -> Path:
        return self.comparison.results / self.comparison.name / f'{self.name}.json'

    @property
    def predictions(self) -> Path:
        """Of the test images, in the label files' own convention."""
        return self.work_dir / 'predictions'

    @property
    def config_file(self) -> Path:
        return self.work_dir.with_suffix('.py')  # mmengine writes one of its own into the work dir

    @property
    def _started(self) -> Path:
        """Says which training the work dir is of, and the most memory it needed so far."""
        return self.work_dir / 'run.json'

    @property
    def _confusion(self) -> Path:
        return self.work_dir / 'confusion.json'

    def identity(self) -> dict:
        """What makes it another training."""
        comparison = self.comparison
        named = dict(config=comparison.file.name, options=list(comparison.words), digest=comparison.digest)
        return dict(named, processes=comparison.processes, loss=self.loss, seed=self.seed)

    def is_done(self) -> bool:
        """Whether its result is there.

        Raises:
            ValueError: what is there is no result, or that of another training; or the work dir is another training's.
        """
        for file, option in ((self.result_file, '--out'), (self._started, '--work-dir')):
            if file.exists() and (found := read_json(file).get('run')) != self.identity():
                raise ValueError(f'{str(file)!r} is of {found}, not of {self.identity()}: choose another {option}')
        return self.result_file.exists()

    def write_config(self) -> None:
        """Over the given one: the losses on pixels, the seed, and a metric that hands out every class."""
        base = self.comparison.config
        lines = header(self.comparison.base, base)
        for loss in losses_on_pixels(base):
            kept = {key: loss.settings[key] for key in ('loss_weight', 'loss_name') if key in loss.settings}
            lines.append(f'{loss.place} = {dict(self._loss_settings(), **kept)!r}')
            if self.loss == HARD_PIXELS:
                height, width = base.model.data_preprocessor.size
                sampler = dict(type='OHEMPixelSampler', thresh=HARD_BELOW, min_kept=int(HARD_SHARE * height * width))
                lines.append(f'{_head_of(loss)}.sampler = {sampler!r}')
        ignored = [node['ignore_index'] for node in nodes(base.test_evaluator) if 'ignore_index' in node]
        metric = dict(type='ClassIoUMetric', iou_metrics=['mIoU'], confusion_file=str(self._confusion.resolve()))
        if ignored:
            metric['ignore_index'] = ignored[0]
        lines.append(f'test_evaluator = {dict(_delete_=True, **metric)!r}')
        lines.append(f'randomness = dict(seed={self.seed})')
        logger = base.get('default_hooks', {}).get('logger') or dict(type='LoggerHook')
        # by epoch, all validations of a training by iterations would be of epoch 0
        lines.append(f'default_hooks = {dict(logger=dict(logger, log_metric_by_epoch=False))!r}')
        self.work_dir.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text('\n'.join(lines) + '\n')
        if not self._started.exists():
            write_json(self._started, dict(run=self.identity(), megabytes=0))

    def _loss_settings(self) -> dict:
        if self.loss in (BUILT_IN, NON_IGNORE):
            return dict(type='CrossEntropyLoss', avg_non_ignore=self.loss == NON_IGNORE)
        if self.loss in SCHEMES:
            labels = str(self.comparison.labels.resolve())
            return dict(type=OURS, class_weight=dict(statistics=labels, scheme=self.loss))
        return dict(type=OURS)

    def train_and_test(self, environment: dict[str, str], on_iteration: Callable) -> None:
        """Go on from the last checkpoint, if there is one; then test, and keep the result.

        Args:
            environment: variables for the processes.
            on_iteration: called with 'train' or 'test', the iteration, of how many, and the loss.

        Raises:
            Failed: of the training or the test, or another process is at it.
        """
        try:
            with FileLock(self.work_dir / 'lock', timeout=0):
                if not self.is_done():
                    self._train_and_test(environment, on_iteration)
        except Timeout as error:
            raise Failed(f'{self.work_dir}: another process is training it') from error

    def _train_and_test(self, environment: dict[str, str], on_iteration: Callable) -> None:
        processes = self.comparison.processes
        common = ['--work-dir', str(self.work_dir)]
        if self.comparison.words:
            common += ['--cfg-options', *self.comparison.words]

        def run(tool: str, *arguments: str) -> float:
            start = [sys.executable, str(TOOLS / f'{tool}.py')]
            if processes > 1:
                start = [str(TOOLS / 'dist_run.sh'), f'{tool}.py', str(processes)]
            variables = dict(environment, PYTHON=sys.executable, PORT=str(free_port()))
            command = [*start, str(self.config_file), *arguments, *common]
            return watch(command, self.work_dir / f'{tool}.log', partial(on_iteration, tool), variables)

        hook = self.comparison.config.get('default_hooks', {}).get('checkpoint')
        resume = ['--resume'] if checkpoints_in(str(self.work_dir), hook).usable else []
        megabytes = run('train', *resume)
        started = read_json(self._started)
        write_json(self._started, dict(started, megabytes=max(megabytes, started['megabytes'])))
        run('test', self._last_checkpoint(hook), '--out', str(self.predictions))
        self._keep(environment)

    def _last_checkpoint(self, hook: dict | None) -> str:
        """Of the end of the training, and no other."""
        found = checkpoints_in(str(self.work_dir), hook)
        for path, why in found.damaged.items():
            raise Failed(f'checkpoint {path}: {why}')
        if found.usable is None:
            raise Failed(
                f'{self.work_dir}: the training wrote no checkpoint: is there a CheckpointHook with save_last?'
            )
        last = self.comparison.config.train_cfg.get('max_iters')
        if last is not None and Path(found.usable).is_file():  # a sharded one is a folder
            step = CheckpointLoader.load_checkpoint(found.usable, 'cpu', logger='silent')['meta']['iter']
            if step != last:
                raise Failed(
                    f'{found.usable} is of iteration {step}, not of {last}: is there a CheckpointHook with save_last?'
                )
        return found.usable

    def _keep(self, environment: dict[str, str]) -> None:
        lines = [
            line
            for file in sorted(self.work_dir.glob('*/vis_data/scalars.json'))
            for line in _whole_lines(file.read_text())
        ]
        training = {line['step']: line for line in lines if 'loss' in line}  # of a step done twice, the last
        validation = {line['step']: means for line in lines if (means := _means(line))}
        times = [line['time'] for line in training.values()]
        of_gpu = [line['memory'] for line in training.values() if 'memory' in line]
        of_process = round(read_json(self._started)['megabytes']) if self.comparison.processes == 1 else None
        content = dict(
            run=self.identity(),
            environment=_environment(environment),
            **read_json(self._confusion),
            training_pixels=load_statistics(self.comparison.labels).pixels.tolist(),
            training=_columns(training, 'loss'),
            validation=_columns(validation, *MEANS),
            seconds_per_iteration=statistics.median(times) if times else None,
            megabytes=round(max(of_gpu) * _MEBIBYTE) if of_gpu else of_process,
        )
        write_json(self.result_file, content, indent=None)


def losses_on_pixels(config: Config) -> list[Loss]:
    """Those that a comparison replaces: mmseg's softmax losses, and ours."""
    return [loss for loss in losses(config) if not loss.stays or loss.stays == ALREADY_OURS]


def check_hard_pixels(config: Config) -> None:
    """Raise PreflightError where a sampler would do nothing, or take another's place."""
    if config.model.get('data_preprocessor', {}).get('size') is None:
        raise PreflightError(f'{HARD_PIXELS} needs model.data_preprocessor.size, the size of the crops')
    for loss in losses_on_pixels(config):
        place = _head_of(loss)
        head = _at(config, place)
        kind = head.type if isinstance(head.type, type) else MODELS.get(head.type)
        if kind is None or kind.loss_by_feat is not BaseDecodeHead.loss_by_feat:
            raise PreflightError(f'{place} ({head.type}) samples no pixels: leave {HARD_PIXELS} out of --losses')
        if head.get('sampler') is not None:
            raise PreflightError(f'{place} has a sampler of its own, as all rows have then: leave {HARD_PIXELS} out')


def _head_of(loss: Loss) -> str:
    return loss.place.partition('.loss_decode')[0]


def _at(config: Config, place: str) -> Config:
    """The part that stands at a place such as ``model.auxiliary_head[0]``."""
    part = config
    for name in place.replace('[', '.').replace(']', '').split('.'):
        part = part[int(name)] if isinstance(part, list | tuple) else part[name]
    return part


def _without(part: object, *names: str) -> object:
    if isinstance(part, dict):
        return {key: _without(value, *names) for key, value in part.items() if key not in names}
    return [_without(value, *names) for value in part] if isinstance(part, list | tuple) else part


def _digest(part: object) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _means(line: dict) -> dict[str, float]:
    """Those of a validation, whatever prefix its metric has; empty for another line."""
    found = {key.split('/')[-1]: value for key, value in line.items()}
    return {name: found[name] for name in MEANS} if found.keys() >= set(MEANS) else {}


def _columns(lines: dict[int, dict], *names: str) -> dict[str, list]:
    steps = sorted(lines)
    return dict(step=steps, **{name: [lines[step][name] for step in steps] for name in names})


def _whole_lines(text: str) -> Iterator[dict]:
    """A training that was killed leaves half a line."""
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _environment(variables: dict[str, str]) -> dict[str, str]:
    of_cpu = dict(device='CPU', threads=variables.get('OMP_NUM_THREADS', '1'))
    return dict(
        dict(device=torch.cuda.get_device_name()) if torch.cuda.is_available() else of_cpu,
        torch=torch.__version__,
        mmseg=mmseg.__version__,
        mmseg_wce=mmseg_wce.__version__,
        Python=platform.python_version(),
        date=str(date.today()),
    )
