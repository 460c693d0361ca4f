"""Random weights with which a network's outputs tell right from wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

SEED = 0
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def informative(make: Callable[[], nn.Module], x: Tensor) -> nn.Module:
    """What ``make`` gives, in eval mode, the same in every process; all of its layers do something to ``x``.

    As layers are initialised, many are the identity: norms without scale and shift, ConvNeXt's layer scales of 1e-6,
    ViT's head of zeros. Every parameter all of whose values are the same is drawn anew. Batch-norms get the mean and
    variance of ``x``: drawn at random, they let the values of a deep network shrink until only its biases show
    (MobileNetV2's outputs differed by 1e-7 from image to image) or grow until rounding does (EfficientNet-B0's).
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        model = make().eval()
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool(parameter.min() == parameter.max()):
                _draw(parameter)
        _set_statistics(model, x)
    return model


def _draw(parameter: Tensor) -> None:
    """Scales around 1, or around a third where they were small; shifts around 0; matrices that keep values' size."""
    value = parameter.flatten()[0].item()
    if value:
        parameter.uniform_(0.5, 1.5).mul_(1 if value >= 0.1 else 1 / 3)
    elif parameter.dim() > 1:
        parameter.normal_(0, parameter[0].numel() ** -0.5)
    else:
        parameter.normal_(0, 0.1)


def _set_statistics(model: nn.Module, x: Tensor) -> None:
    """Gives the batch-norms the statistics of ``x``.

    They are taken in float64 and rounded to bf16, so that they do not depend on the number of threads. No variance is
    far below its layer's mean: other samples than ``x`` would become very large there.
    """
    layers = _batch_norms(model)
    if not layers:
        return
    double = copy.deepcopy(model).double()
    exact = _batch_norms(double)
    for layer in exact:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average
        layer.train()
    double(x.double() if x.is_floating_point() else x)
    for layer, of_x in zip(layers, exact, strict=True):
        mean, variance = of_x.get_buffer("running_mean"), of_x.get_buffer("running_var")
        layer.get_buffer("running_mean").copy_(mean.bfloat16())
        layer.get_buffer("running_var").copy_(variance.clamp_min(0.1 * variance.mean()).bfloat16())


def _batch_norms(model: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]:
    return [layer for layer in model.modules() if isinstance(layer, NORMS) and layer.running_mean is not None]
