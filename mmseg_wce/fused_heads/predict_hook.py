"""Segmentors that predict classes without full-size logits: which can, and why others cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseTTAModel
from mmengine.runner import BaseLoop, Runner
from mmseg.models.decode_heads import DAHead, EncHead
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.registry import HOOKS
from mmseg_wce.fused_heads.prediction import predict, predict_by_feat, slide_inference
from mmseg_wce.hooks.models import main_head, unwrapped
from mmseg_wce.validation_loss import LossTerm, ValidationLoss, loss_terms
from torch import nn

__all__ = ['FusedPredictHook', 'add_validation_loss', 'fuse_predict']

# Methods of mmseg's that segmentors and heads may predict by. Any other may read or change full-size logits.
_SEGMENTOR_METHODS: dict[str, tuple[Any, ...]] = {
    'predict': (EncoderDecoder.predict,),
    'inference': (EncoderDecoder.inference,),
    'whole_inference': (EncoderDecoder.whole_inference,),
    'slide_inference': (EncoderDecoder.slide_inference,),
    'encode_decode': (EncoderDecoder.encode_decode, CascadeEncoderDecoder.encode_decode),
    'postprocess_result': (EncoderDecoder.postprocess_result,),
}
# Methods that lead to them. One that is replaced in an instance, as torch.compile does, still leads to them.
_STEPS: dict[str, tuple[Any, ...]] = {
    'forward': (EncoderDecoder.forward,),
    'val_step': (EncoderDecoder.val_step,),
    'test_step': (EncoderDecoder.test_step,),
}
_HEAD_METHODS: dict[str, tuple[Any, ...]] = {
    'predict': (BaseDecodeHead.predict, BaseCascadeDecodeHead.predict, EncHead.predict, DAHead.predict),
    'predict_by_feat': (BaseDecodeHead.predict_by_feat,),
}


@HOOKS.register_module()
class FusedPredictHook(Hook):
    """Lets the model predict without full-size logits in validation and test, and logs where it cannot and why.

    ``custom_hooks = [dict(type='FusedPredictHook')]``

    Predictions (``pred_sem_seg``) are mmseg's own, to the last pixel; ``seg_logits`` is no longer in the samples.
    Beside them it computes what :class:`mmseg_wce.validation_loss.ValidationLoss` adds up, where an evaluator has one.

    Args:
        keep_logits: leave ``seg_logits`` in the samples, as mmseg does, at the cost of their memory.

    Example:
        >>> import mmseg_wce
        >>> from mmseg.registry import HOOKS
        >>> HOOKS.build(dict(type='FusedPredictHook')).keep_logits
        False
    """

    priority = 'VERY_LOW'  # mmengine's PrepareTTAHook wraps the model just before a test

    def __init__(self, keep_logits: bool = False) -> None:
        self.keep_logits = keep_logits
        self._said: set[str] = set()

    def before_run(self, runner: Runner) -> None:
        loop = runner._val_loop  # built by now where a training validates; else a config, or None
        self._prepare(runner, loop if isinstance(loop, BaseLoop) else None)

    def before_val(self, runner: Runner) -> None:
        self._prepare(runner, runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        self._prepare(runner, runner.test_loop)

    def _prepare(self, runner: Runner, loop: Any) -> None:
        """Fuse the model as it is now, and let it compute what the evaluator of the loop needs."""
        model: Any = unwrapped(runner)
        self._say(runner, f'FusedPredictHook: {fuse_predict(model, self.keep_logits)}')
        metrics = getattr(getattr(loop, 'evaluator', None), 'metrics', [])
        metrics = [metric for metric in metrics if isinstance(metric, ValidationLoss)]
        if not metrics:
            return
        is_fused = _is_ours(vars(model).get('predict'))
        terms, left_out = add_validation_loss(model) if is_fused else ([], [])
        for metric in metrics:
            metric.expect([term.name for term in terms])
        if is_fused:
            keys = [key for metric in metrics for key in metric.expected_keys]
            self._say(runner, f'ValidationLoss: {_composition(model, keys, left_out)}')
        else:
            self._say(runner, 'ValidationLoss: nothing is logged, since FusedPredictHook left the model alone')
        _check_saved(runner, metrics)

    def _say(self, runner: Runner, line: str) -> None:
        """Log a line once."""
        if line not in self._said:
            self._said.add(line)
            runner.logger.info(line)


def _check_saved(runner: Runner, metrics: Sequence[ValidationLoss]) -> None:
    """Raise ValueError for a best checkpoint by a loss that is not logged, before the first validation ends with it."""
    logged = [key for metric in metrics for key in metric.expected_keys]
    saved = [key for hook in runner.hooks if isinstance(hook, CheckpointHook) for key in hook.save_best or ()]
    for key in saved:
        is_a_loss = any(key.startswith(f'{metric.prefix}/loss') for metric in metrics)
        if is_a_loss and key not in logged:
            raise ValueError(
                f'save_best={key!r} of CheckpointHook is not logged: ValidationLoss logs '
                f'{", ".join(logged) or "nothing"} for this model. Choose another metric'
            )


def _composition(model: Any, keys: Sequence[str], left_out: Sequence[str]) -> str:
    """Say which losses of a model are logged, and which not."""
    if isinstance(model.decode_head, nn.ModuleList):
        left_out = [*left_out, 'decode heads before the last']
    if getattr(model, 'with_auxiliary_head', False):
        left_out = [*left_out, 'auxiliary heads']
    lines = [f'logs {", ".join(dict.fromkeys(keys))}, the loss on the validation set' if keys else 'logs nothing']
    return '; '.join(lines + [f'left out: {line}' for line in left_out])


def fuse_predict(model: Any, keep_logits: bool = False) -> str:
    """Let a segmentor predict from the logits as its head makes them, a few channels at a time.

    Args:
        model: an mmseg segmentor.
        keep_logits: leave ``seg_logits`` in the samples.

    Returns:
        A line that says what was done, or why the model was left alone.

    Example:
        >>> import torch
        >>> from mmengine.hub import get_config
        >>> from mmengine.registry import init_default_scope
        >>> from mmseg.registry import MODELS
        >>> from mmseg_wce.fused_heads import fuse_predict
        >>> init_default_scope('mmseg')
        >>> model = MODELS.build(get_config('mmseg::_base_/models/fast_scnn.py').model).eval()
        >>> print(fuse_predict(model).partition(';')[0])
        full-size logits are not built
        >>> (sample,) = model.predict(torch.zeros(1, 3, 64, 96))
        >>> sample.pred_sem_seg.shape
        (64, 96)
    """
    head: Any = main_head(model)
    _undo(model)
    if isinstance(model, BaseTTAModel):
        _undo(model.module)
    if reason := _why_not(model, head):
        return f'left alone: {reason}'
    model.predict = partial(predict, model, keep_logits=keep_logits, terms=[])
    model.slide_inference = partial(slide_inference, model)
    head.predict_by_feat = partial(predict_by_feat, head)
    if keep_logits:
        return 'predicts from low-resolution logits; seg_logits are still built and kept (keep_logits=True)'
    return (
        "full-size logits are not built; samples have no seg_logits (dict(type='FusedPredictHook', keep_logits=True) "
        'keeps them)'
    )


def add_validation_loss(model: Any) -> tuple[list[LossTerm], list[str]]:
    """Let a fused segmentor leave in the samples what :class:`mmseg_wce.validation_loss.ValidationLoss` adds up.

    Args:
        model: one that :func:`fuse_predict` has not left alone.

    Returns:
        The terms, and a line for each loss of the last head that is left out.
    """
    terms, left_out = loss_terms(main_head(model))
    model.predict.keywords['terms'] = terms
    return terms, left_out


def _undo(model: nn.Module) -> None:
    """Let a segmentor predict as mmseg wrote it."""
    for module in (model, main_head(model)):
        for name, method in list(vars(module).items()) if module is not None else ():
            if _is_ours(method):
                delattr(module, name)


def _is_ours(method: Any) -> bool:
    return isinstance(method, partial) and method.func in (predict, slide_inference, predict_by_feat)


def _why_not(model: nn.Module, head: nn.Module | None) -> str:
    if isinstance(model, BaseTTAModel):
        return f'{type(model).__name__} reads the seg_logits of every augmented image'
    if not isinstance(model, EncoderDecoder) or head is None:
        return f'{type(model).__name__} is no EncoderDecoder'
    replaced = (
        f'{name} of its {type(module).__name__} has been replaced'
        for module, names in ((model, _SEGMENTOR_METHODS), (head, _HEAD_METHODS))
        for name in names
        if name in vars(module)
    )
    return (
        next(replaced, '')
        or _own_method(type(model), _SEGMENTOR_METHODS | _STEPS)
        or _own_method(type(head), _HEAD_METHODS)
    )


def _own_method(kind: type, known: Mapping[str, tuple[Any, ...]]) -> str:
    """Name the first method that is not one of mmseg's that are known here."""
    for name, methods in known.items():
        own = getattr(kind, name, None)
        if own not in methods:
            return f'it predicts in a way of its own ({getattr(own, "__qualname__", name)})'
    return ''
