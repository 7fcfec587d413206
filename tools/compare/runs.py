"""The trainings of a comparison: their configs over the given one, their commands, and what is kept of them."""

import json
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import torch
from convert_config import ALREADY_OURS, OURS, Loss, header, losses
from mmengine.config import Config
from mmseg_wce.class_weights import SCHEMES, load_statistics
from mmseg_wce.class_weights.statistics_file import write_json
from mmseg_wce.recovery import checkpoints_in
from watched import free_port, watch

TOOLS = Path(__file__).resolve().parent.parent
BUILT_IN, NON_IGNORE, UNWEIGHTED, HARD_PIXELS = 'built_in', 'built_in_avg_non_ignore', 'unweighted', 'hard_pixels'
NAMES = (BUILT_IN, NON_IGNORE, UNWEIGHTED, *SCHEMES, HARD_PIXELS)
"""Losses that can be compared: mmseg's, and ours without weights, by each scheme, and on hard pixels."""
# As in mmseg's configs with OHEM: pixels whose class has less than this probability, and at least a fifth of the crop.
HARD_BELOW, HARD_SHARE = 0.7, 0.2


@dataclass(frozen=True)
class Comparison:
    """A config, and where its trainings and their results go.

    Attributes:
        file: config file.
        config: what it says, with the options of the command line.
        trainings: folder for the work dirs of all configs.
        results: folder for what is kept of all configs.
        words: of ``--cfg-options`` on the command line.
    """

    file: Path
    config: Config
    trainings: Path
    results: Path
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def labels(self) -> Path:
        """Statistics of the training labels."""
        return self.trainings / self.name / 'labels.json'


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
    def _config_file(self) -> Path:
        return self.work_dir.with_suffix('.py')  # mmengine writes one of its own into the work dir

    @property
    def _confusion(self) -> Path:
        return self.work_dir / 'confusion.json'

    def identity(self) -> dict:
        """What makes it another training."""
        comparison = self.comparison
        return dict(config=comparison.file.name, options=list(comparison.words), loss=self.loss, seed=self.seed)

    def is_done(self) -> bool:
        """Whether its result is there.

        Raises:
            ValueError: what is there is the result of another training.
        """
        if not self.result_file.exists():
            return False
        found, wanted = json.loads(self.result_file.read_text())['run'], self.identity()
        if found != wanted:
            raise ValueError(f'{str(self.result_file)!r} is of {found}, not of {wanted}: choose another --out')
        return True

    def write_config(self) -> None:
        """Over the given one: the losses on pixels, the seed, and a metric that hands out every class."""
        base = self.comparison.config
        lines = header(str(self.comparison.file.resolve()), base)
        for loss in losses_on_pixels(base):
            kept = {key: loss.settings[key] for key in ('loss_weight', 'loss_name') if key in loss.settings}
            lines.append(f'{loss.place} = {dict(self._loss_settings(), **kept)!r}')
            if self.loss == HARD_PIXELS:
                height, width = base.model.data_preprocessor.size
                sampler = dict(type='OHEMPixelSampler', thresh=HARD_BELOW, min_kept=int(HARD_SHARE * height * width))
                lines.append(f'{loss.place.partition(".loss_decode")[0]}.sampler = {sampler!r}')
        metric = dict(type='ClassIoUMetric', iou_metrics=['mIoU'], confusion_file=str(self._confusion.resolve()))
        lines += [f'test_evaluator = {dict(_delete_=True, **metric)!r}', f'randomness = dict(seed={self.seed})']
        self._config_file.parent.mkdir(parents=True, exist_ok=True)
        self._config_file.write_text('\n'.join(lines) + '\n')

    def _loss_settings(self) -> dict:
        if self.loss in (BUILT_IN, NON_IGNORE):
            return dict(type='CrossEntropyLoss', avg_non_ignore=self.loss == NON_IGNORE)
        if self.loss in SCHEMES:
            labels = str(self.comparison.labels.resolve())
            return dict(type=OURS, class_weight=dict(statistics=labels, scheme=self.loss))
        return dict(type=OURS)

    def train_and_test(self, processes: int, environment: dict[str, str], on_iteration: Callable) -> None:
        """Go on from the last checkpoint, if there is one; then test, and keep the result.

        Args:
            processes: 1, or so many by the launcher.
            environment: variables for them.
            on_iteration: called with 'train' or 'test', the iteration, of how many, and the loss.

        Raises:
            Failed: of the training or the test.
        """
        common = ['--work-dir', str(self.work_dir)]
        if self.comparison.words:
            common += ['--cfg-options', *self.comparison.words]

        def run(tool: str, *arguments: str) -> float:
            start = [sys.executable, str(TOOLS / f'{tool}.py')]
            if processes > 1:
                start = [str(TOOLS / 'dist_run.sh'), f'{tool}.py', str(processes)]
            variables = dict(environment, PYTHON=sys.executable, PORT=str(free_port()))
            command = [*start, str(self._config_file), *arguments, *common]
            return watch(command, self.work_dir / f'{tool}.log', partial(on_iteration, tool), variables)

        resume = ['--resume'] if checkpoints_in(str(self.work_dir)).usable else []
        megabytes = run('train', *resume)
        run('test', checkpoints_in(str(self.work_dir)).usable, '--out', str(self.predictions))
        self._keep(megabytes)

    def _keep(self, megabytes: float) -> None:
        lines = [
            json.loads(line)
            for file in sorted(self.work_dir.glob('*/vis_data/scalars.json'))
            for line in file.read_text().splitlines()
        ]
        training = {line['step']: line for line in lines if 'loss' in line}  # of a step done twice, the last
        validation = {line['step']: line for line in lines if 'mIoU' in line}
        times = [line['time'] for line in training.values()]
        of_gpu = [line['memory'] for line in training.values() if 'memory' in line]
        content = dict(
            run=self.identity(),
            environment=_environment(),
            **json.loads(self._confusion.read_text()),
            training_pixels=load_statistics(self.comparison.labels).pixels.tolist(),
            training=_columns(training, 'loss'),
            validation=_columns(validation, 'mIoU', 'mAcc', 'aAcc'),
            seconds_per_iteration=statistics.median(times) if times else None,
            megabytes=max(of_gpu) if of_gpu else round(megabytes),
        )
        write_json(self.result_file, content, indent=None)


def losses_on_pixels(config: Config) -> list[Loss]:
    """Those that a comparison replaces: mmseg's softmax losses, and ours."""
    return [loss for loss in losses(config) if not loss.stays or loss.stays == ALREADY_OURS]


def _columns(lines: dict[int, dict], *names: str) -> dict[str, list]:
    steps = sorted(lines)
    return dict(step=steps, **{name: [lines[step][name] for step in steps] for name in names})


def _environment() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    return dict(device=device, torch=torch.__version__, python=platform.python_version(), date=str(date.today()))
