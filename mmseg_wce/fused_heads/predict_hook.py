"""Make segmentors predict without full-size logits, or explain why they cannot."""

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
from mmseg_wce.fused_heads.prediction import Rebalancing, predict, predict_by_feat, slide_inference
from mmseg_wce.model_walk import heads_of, main_head, unwrap_model
from mmseg_wce.validation_loss import LossTerm, ValidationLoss, loss_terms
from torch import Tensor, nn

__all__ = ['FusedPredictHook', 'add_rebalancing', 'add_validation_loss', 'fuse_predict']

# Supported methods of mmseg's segmentors and heads. Any other method may read or change full-size logits.
_SEGMENTOR_METHODS: dict[str, tuple[Any, ...]] = {
    'predict': (EncoderDecoder.predict,),
    'inference': (EncoderDecoder.inference,),
    'whole_inference': (EncoderDecoder.whole_inference,),
    'slide_inference': (EncoderDecoder.slide_inference,),
    'encode_decode': (EncoderDecoder.encode_decode, CascadeEncoderDecoder.encode_decode),
    'postprocess_result': (EncoderDecoder.postprocess_result,),
}
# Methods that call them. torch.compile replaces these in the instance, which is supported.
_CALLERS: dict[str, tuple[Any, ...]] = {
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
    """Hook that makes the model predict without full-size logits in validation and test; logs why if it cannot.

    ``custom_hooks = [dict(type='FusedPredictHook')]``

    Predictions (``pred_sem_seg``) equal mmseg's in every pixel; the samples have no ``seg_logits``. If an evaluator has
    a :class:`mmseg_wce.validation_loss.ValidationLoss`, its sums are computed along with the predictions.

    Args:
        keep_logits: keep ``seg_logits`` in the samples, as mmseg does, at the cost of their memory.

    Example:
        >>> import mmseg_wce
        >>> from mmseg.registry import HOOKS
        >>> HOOKS.build(dict(type='FusedPredictHook')).keep_logits
        False
    """

    priority = 'VERY_LOW'  # after mmengine's PrepareTTAHook, which wraps the model before a test

    def __init__(self, keep_logits: bool = False) -> None:
        self.keep_logits = keep_logits
        self._logged_lines: set[str] = set()

    def before_run(self, runner: Runner) -> None:
        loop = runner._val_loop  # already built if a training validates; else a config, or None
        self._prepare(runner, loop if isinstance(loop, BaseLoop) else None)

    def before_val(self, runner: Runner) -> None:
        self._prepare(runner, runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        self._prepare(runner, runner.test_loop)

    def _prepare(self, runner: Runner, loop: Any) -> None:
        """Fuse the model, and make it compute the losses that the evaluator of the loop needs."""
        model: Any = unwrap_model(runner)
        self._log_once(runner, f'FusedPredictHook: {fuse_predict(model, self.keep_logits)}')
        metrics = getattr(getattr(loop, 'evaluator', None), 'metrics', [])
        metrics = [metric for metric in metrics if isinstance(metric, ValidationLoss)]
        if not metrics:
            return
        is_fused = _is_fused_method(vars(model).get('predict'))
        terms, left_out = add_validation_loss(model) if is_fused else ([], [])
        for metric in metrics:
            metric.expect([term.name for term in terms])
        keys = [key for metric in metrics for key in metric.expected_keys]
        if is_fused:
            self._log_once(runner, f'ValidationLoss: {_describe_losses(model, keys, left_out)}')
        else:
            self._log_once(runner, 'ValidationLoss: nothing is logged, since FusedPredictHook left the model alone')
        _check_saved(runner, metrics, keys)

    def _log_once(self, runner: Runner, line: str) -> None:
        if line not in self._logged_lines:
            self._logged_lines.add(line)
            runner.logger.info(line)


def _check_saved(runner: Runner, metrics: Sequence[ValidationLoss], logged: Sequence[str]) -> None:
    """Raise ValueError if ``save_best`` names a loss that is not logged; mmengine would only raise in validation."""
    save_best = [key for hook in runner.hooks if isinstance(hook, CheckpointHook) for key in hook.save_best or ()]
    for key in save_best:
        is_loss = any(key.startswith(f'{metric.prefix}/loss') for metric in metrics)
        if is_loss and key not in logged:
            raise ValueError(
                f'save_best={key!r} of CheckpointHook is not logged: ValidationLoss logs '
                f'{", ".join(logged) or "nothing"} for this model. Choose another metric'
            )


def _describe_losses(model: Any, keys: Sequence[str], left_out: Sequence[str]) -> str:
    """Describe which losses of a model are logged, and which are left out."""
    names = [name for name, _ in heads_of(model)]
    if 'decode_head' not in names:
        left_out = [*left_out, 'decode heads before the last']
    if any(name.startswith('auxiliary_head') for name in names):
        left_out = [*left_out, 'auxiliary heads']
    lines = [f'logs {", ".join(dict.fromkeys(keys))}, the loss on the validation set' if keys else 'logs nothing']
    return '; '.join(lines + [f'left out: {line}' for line in left_out])


def fuse_predict(model: Any, keep_logits: bool = False) -> str:
    """Make a segmentor predict from the low-resolution logits of its head, a few channels at a time.

    Args:
        model: mmseg segmentor.
        keep_logits: keep ``seg_logits`` in the samples.

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
    _restore_methods(model)
    if isinstance(model, BaseTTAModel):
        _restore_methods(model.module)
    if reason := _unsupported_reason(model, head):
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
    """Make a fused segmentor store the sums for :class:`mmseg_wce.validation_loss.ValidationLoss` in the samples.

    Args:
        model: a model that :func:`fuse_predict` has fused.

    Returns:
        The loss terms, and a line for each loss of the last head that is left out.
    """
    terms, left_out = loss_terms(main_head(model))
    model.predict.keywords['terms'] = terms
    return terms, left_out


def add_rebalancing(model: Any, offsets: Tensor, unchanged: int) -> None:
    """Make a fused segmentor also predict with offsets added to its logits.

    The samples get ``rebalanced_classes``, the predictions for each row of offsets
    (:class:`mmseg_wce.rebalanced_argmax.RebalancedClasses`).

    Args:
        model: a model that :func:`fuse_predict` has fused.
        offsets: (T, channels), :func:`mmseg_wce.class_weights.class_offsets` of ascending tau.
        unchanged: index of the row for tau 0, whose predictions become ``pred_sem_seg``.

    Raises:
        ValueError: row ``unchanged`` is not all 0.
    """
    if offsets[unchanged].any():
        raise ValueError(f'offsets[{unchanged}] must be all 0, for pred_sem_seg: got {offsets[unchanged].tolist()}')
    model.predict.keywords['rebalancing'] = Rebalancing(offsets, unchanged)


def _restore_methods(model: nn.Module) -> None:
    """Restore mmseg's prediction methods."""
    for module in (model, main_head(model)):
        for name, method in list(vars(module).items()) if module is not None else ():
            if _is_fused_method(method):
                delattr(module, name)


def _is_fused_method(method: Any) -> bool:
    return isinstance(method, partial) and method.func in (predict, slide_inference, predict_by_feat)


def _unsupported_reason(model: nn.Module, head: nn.Module | None) -> str:
    if isinstance(model, BaseTTAModel):
        return f'{type(model).__name__} reads the seg_logits of every augmented image'
    if not isinstance(model, EncoderDecoder) or head is None:
        return f'{type(model).__name__} is not an EncoderDecoder'
    replaced_methods = (
        f'{name} of its {type(module).__name__} has been replaced'
        for module, names in ((model, _SEGMENTOR_METHODS), (head, _HEAD_METHODS))
        for name in names
        if name in vars(module)
    )
    return (
        next(replaced_methods, '')
        or _find_override(type(model), _SEGMENTOR_METHODS | _CALLERS)
        or _find_override(type(head), _HEAD_METHODS)
    )


def _find_override(cls: type, supported: Mapping[str, tuple[Any, ...]]) -> str:
    """Return a reason that names the first method that is not supported; empty if all are."""
    for name, methods in supported.items():
        method = getattr(cls, name, None)
        if method not in methods:
            return f'it overrides a method that predicts ({getattr(method, "__qualname__", name)})'
    return ''
