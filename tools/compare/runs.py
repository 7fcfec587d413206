"""Trainings of a comparison: their configs, which inherit from the given one, their commands and their results."""

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
from mmseg_wce.metrics import MEANS
from mmseg_wce.safe_io.json_files import read_json, write_json
from mmseg_wce.training.checkpoints import checkpoints_in
from mmseg_wce.training.preflight import PreflightError
from subprocess_runner import Failed, free_port, watch

TOOLS = Path(__file__).resolve().parent.parent
BUILT_IN, NON_IGNORE, UNWEIGHTED, HARD_PIXELS = 'built_in', 'built_in_avg_non_ignore', 'unweighted', 'hard_pixels'
FOCAL, RARE, RARE_SQRT = 'focal', 'rare_class_sampling', 'rare_class_sampling_sqrt'
NAMES = (BUILT_IN, NON_IGNORE, UNWEIGHTED, *SCHEMES, HARD_PIXELS, FOCAL, RARE, RARE_SQRT)
"""Losses that can be compared. The first two are mmseg's; the others are ours: without weights, with those of each
scheme, on hard pixels, with focal_gamma, and with RareClassSampler (the last with square-root weights, too)."""
SCHEMES_SHOWN = ('sqrt_inverse_frequency', 'median_frequency', 'effective_number')
DEFAULT = (BUILT_IN, NON_IGNORE, UNWEIGHTED, *SCHEMES_SHOWN, HARD_PIXELS)
# As in mmseg's configs with OHEM: pixels whose class has a lower probability, and at least a fifth of the crop.
HARD_BELOW, HARD_SHARE = 0.7, 0.2
FOCAL_GAMMA = 2.0  # as published
TAUS = [i / 8 for i in range(-8, 9)]
_MEBIBYTE = 2**20 / 1e6  # mmengine logs MiB
_PATHS = 'config', 'checkpoint', 'statistics'  # of the machine, in what tools/rebalance.py writes


@dataclass(frozen=True)
class Comparison:
    """A config, and the folders of its trainings and results."""

    base: str  # its name for ``_base_``
    file: Path
    config: Config  # with ``--cfg-options`` merged into it
    trainings: Path  # folder for the work dirs of all configs
    results: Path  # folder for the results of all configs
    words: tuple[str, ...] = ()  # ``--cfg-options`` as on the command line
    processes: int = 1  # number of processes of each training; each has its own batches
    rebalanced: tuple[str, ...] = ()  # losses whose trainings are rebalanced

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def labels(self) -> Path:
        """File of the statistics of this data set's training labels."""
        return self.trainings / self.name / f'labels-{_digest(self.config.train_dataloader.dataset)}.json'

    @cached_property
    def digest(self) -> str:
        """Digest of the config without paths, and without FusedPredictHook, which does not change predictions."""
        return _digest(_without(self.config.to_dict(), 'data_root', 'work_dir', 'fused_predict'))


@dataclass(frozen=True)
class Run:
    """A training with a loss of :data:`NAMES` from a seed."""

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
    def rebalanced_file(self) -> Path | None:
        """File of the counts for every tau; None if this training is not rebalanced."""
        return self.result_file.with_suffix('.rebalanced.json') if self.loss in self.comparison.rebalanced else None

    @property
    def predictions(self) -> Path:
        """Folder of the predictions for the test images, encoded as the label files."""
        return self.work_dir / 'predictions'

    @property
    def config_file(self) -> Path:
        return self.work_dir.with_suffix('.py')  # in the work dir mmengine writes its own

    @property
    def _started(self) -> Path:
        """File with the identity of the training in the work dir, and its peak memory so far."""
        return self.work_dir / 'run.json'

    @property
    def _counts(self) -> Path:
        """File that tools/rebalance.py writes."""
        return self.work_dir / 'rebalance.json'

    @property
    def _confusion(self) -> Path:
        return self.work_dir / 'confusion.json'

    def identity(self) -> dict:
        """Return the settings that tell this training from others."""
        comparison = self.comparison
        return dict(
            config=comparison.file.name,
            options=list(comparison.words),
            digest=comparison.digest,
            processes=comparison.processes,
            loss=self.loss,
            seed=self.seed,
        )

    def is_done(self) -> bool:
        """Return True if the result exists; raise ValueError if it or the work dir belongs to another training."""
        files = (self.result_file, '--out'), (self.rebalanced_file, '--out'), (self._started, '--work-dir')
        for file, option in files:
            if file is not None and file.exists() and (other := read_json(file).get('run')) != self.identity():
                raise ValueError(f'{str(file)!r} is of {other}, not of {self.identity()}: choose another {option}')
        return self.result_file.exists() and (self.rebalanced_file is None or self.rebalanced_file.exists())

    def write_config(self) -> None:
        """Write a config that changes the losses on pixels, the seed, and the test metric of the given one."""
        base = self.comparison.config
        lines = header(self.comparison.base, base)
        for loss in losses_on_pixels(base):
            common = {key: loss.settings[key] for key in ('loss_weight', 'loss_name') if key in loss.settings}
            lines.append(f'{loss.place} = {dict(self._loss_settings(), **common)!r}')
            if self.loss == HARD_PIXELS:
                height, width = base.model.data_preprocessor.size
                sampler = dict(type='OHEMPixelSampler', thresh=HARD_BELOW, min_kept=int(HARD_SHARE * height * width))
                lines.append(f'{_head_place(loss)}.sampler = {sampler!r}')
        if self.loss in (RARE, RARE_SQRT):
            sampler = dict(_delete_=True, type='RareClassSampler', statistics=self._labels)
            lines.append(f'train_dataloader = {dict(sampler=sampler)!r}')
        ignored = [node['ignore_index'] for node in nodes(base.test_evaluator) if 'ignore_index' in node]
        metric = dict(type='ClassIoUMetric', iou_metrics=['mIoU'], confusion_file=str(self._confusion.resolve()))
        if ignored:
            metric['ignore_index'] = ignored[0]
        lines.append(f'test_evaluator = {dict(_delete_=True, **metric)!r}')
        lines.append(f'randomness = dict(seed={self.seed})')
        logger = base.get('default_hooks', {}).get('logger') or dict(type='LoggerHook')
        # with log_metric_by_epoch=True, all validations of an iteration-based training are logged as epoch 0
        lines.append(f'default_hooks = {dict(logger=dict(logger, log_metric_by_epoch=False))!r}')
        self.work_dir.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text('\n'.join(lines) + '\n')
        if not self._started.exists():
            write_json(self._started, dict(run=self.identity(), megabytes=0))

    def _loss_settings(self) -> dict:
        if self.loss in (BUILT_IN, NON_IGNORE):
            return dict(type='CrossEntropyLoss', avg_non_ignore=self.loss == NON_IGNORE)
        scheme = 'sqrt_inverse_frequency' if self.loss == RARE_SQRT else self.loss
        if scheme in SCHEMES:
            return dict(type=OURS, class_weight=dict(statistics=self._labels, scheme=scheme))
        return dict(type=OURS, focal_gamma=FOCAL_GAMMA) if self.loss == FOCAL else dict(type=OURS)

    @property
    def _labels(self) -> str:
        return str(self.comparison.labels.resolve())

    def train_and_test(self, environment: dict[str, str], on_iteration: Callable) -> None:
        """Train, from the last checkpoint if there is one; then test, and write the result.

        ``on_iteration`` is called with the tool, the iteration, the number of iterations, and the loss.
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
            launcher = [sys.executable, str(TOOLS / f'{tool}.py')]
            if processes > 1:
                launcher = [str(TOOLS / 'dist_run.sh'), f'{tool}.py', str(processes)]
            variables = dict(environment, PYTHON=sys.executable, PORT=str(free_port()))
            command = [*launcher, str(self.config_file), *arguments, *common]
            return watch(command, self.work_dir / f'{tool}.log', partial(on_iteration, tool), variables)

        hook = self.comparison.config.get('default_hooks', {}).get('checkpoint')
        resume = ['--resume'] if checkpoints_in(str(self.work_dir), hook).usable else []
        megabytes = run('train', *resume)
        started = read_json(self._started)
        write_json(self._started, dict(started, megabytes=max(megabytes, started['megabytes'])))
        checkpoint = self._last_checkpoint(hook)
        run('test', checkpoint, '--out', str(self.predictions))
        self._keep(environment)
        if self.rebalanced_file is not None:
            files = ['--statistics', self._labels, '--json', str(self._counts)]
            run('rebalance', checkpoint, '--report-on', 'test', '--taus', *map(str, TAUS), *files)
            self._keep_counts(environment)

    def _keep_counts(self, environment: dict[str, str]) -> None:
        counts = {key: value for key, value in read_json(self._counts).items() if key not in _PATHS}
        content = dict(run=self.identity(), environment=_environment(environment), **counts)
        write_json(self.rebalanced_file, content, indent=None)

    def _last_checkpoint(self, hook: dict | None) -> str:
        """Return the checkpoint of the last iteration; raise Failed if there is none, or a damaged one."""
        checkpoints = checkpoints_in(str(self.work_dir), hook)
        for path, reason in checkpoints.damaged.items():
            raise Failed(f'checkpoint {path}: {reason}')
        path = checkpoints.usable
        if path is None:
            raise Failed(
                f'{self.work_dir}: the training wrote no checkpoint: is there a CheckpointHook with save_last?'
            )
        last = self.comparison.config.train_cfg.get('max_iters')
        if last is not None and Path(path).is_file():  # a sharded checkpoint is a folder
            step = CheckpointLoader.load_checkpoint(path, 'cpu', logger='silent')['meta']['iter']
            if step != last:
                raise Failed(f'{path} is of iteration {step}, not of {last}: is there a CheckpointHook with save_last?')
        return path

    def _keep(self, environment: dict[str, str]) -> None:
        lines = [
            line
            for file in sorted(self.work_dir.glob('*/vis_data/scalars.json'))
            for line in _complete_lines(file.read_text())
        ]
        training = {line['step']: line for line in lines if 'loss' in line}  # the last line of each step
        validation = {line['step']: means for line in lines if (means := _means(line))}
        times = [line['time'] for line in training.values()]
        gpu_memory = [line['memory'] for line in training.values() if 'memory' in line]
        process_memory = round(read_json(self._started)['megabytes']) if self.comparison.processes == 1 else None
        content = dict(
            run=self.identity(),
            environment=_environment(environment),
            **read_json(self._confusion),
            training_pixels=load_statistics(self.comparison.labels).pixels.tolist(),
            training=_columns(training, 'loss'),
            validation=_columns(validation, *MEANS),
            seconds_per_iteration=statistics.median(times) if times else None,
            megabytes=round(max(gpu_memory) * _MEBIBYTE) if gpu_memory else process_memory,
        )
        write_json(self.result_file, content, indent=None)


def losses_on_pixels(config: Config) -> list[Loss]:
    """Return the losses that a comparison replaces: mmseg's softmax losses, and ours."""
    return [loss for loss in losses(config) if not loss.skip_reason or loss.skip_reason == ALREADY_OURS]


def check_hard_pixels(config: Config) -> None:
    """Raise PreflightError if a head ignores samplers or already has one, or if the size of the crops is unknown."""
    if config.model.get('data_preprocessor', {}).get('size') is None:
        raise PreflightError(f'{HARD_PIXELS} needs model.data_preprocessor.size, the size of the crops')
    for loss in losses_on_pixels(config):
        place, head = _head_place(loss), loss.head
        kind = head.type if isinstance(head.type, type) else MODELS.get(head.type)
        if kind is None or kind.loss_by_feat is not BaseDecodeHead.loss_by_feat:
            raise PreflightError(f'{place} ({head.type}) samples no pixels: leave {HARD_PIXELS} out of --losses')
        if head.get('sampler') is not None:
            raise PreflightError(f'{place} already has a sampler, which all losses then use: leave {HARD_PIXELS} out')


def _head_place(loss: Loss) -> str:
    return loss.place.partition('.loss_decode')[0]


def _without(node: object, *names: str) -> object:
    if isinstance(node, dict):
        return {key: _without(value, *names) for key, value in node.items() if key not in names}
    return [_without(value, *names) for value in node] if isinstance(node, list | tuple) else node


def _digest(node: object) -> str:
    return hashlib.sha256(json.dumps(node, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _means(line: dict) -> dict[str, float]:
    """Return the means in a log line of a validation, with any prefix; an empty dict for other lines."""
    values = {key.split('/')[-1]: value for key, value in line.items()}
    return {name: values[name] for name in MEANS} if values.keys() >= set(MEANS) else {}


def _columns(lines: dict[int, dict], *names: str) -> dict[str, list]:
    steps = sorted(lines)
    return dict(step=steps, **{name: [lines[step][name] for step in steps] for name in names})


def _complete_lines(text: str) -> Iterator[dict]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # a killed training leaves an incomplete line
            continue


def _environment(variables: dict[str, str]) -> dict[str, str]:
    cpu = dict(device='CPU', threads=variables.get('OMP_NUM_THREADS', '1'))
    return dict(
        dict(device=torch.cuda.get_device_name()) if torch.cuda.is_available() else cpu,
        torch=torch.__version__,
        mmseg=mmseg.__version__,
        mmseg_wce=mmseg_wce.__version__,
        Python=platform.python_version(),
        date=str(date.today()),
    )
