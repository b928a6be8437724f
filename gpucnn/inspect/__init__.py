"""Inspect a network: its size and cost, its features, attributions and mistakes.

Functions return NumPy arrays (activations: arrays on the model's device).  Given a path, they also
write a PNG, which requires matplotlib.  Images are (N, H, W, C), normalised as in training.
"""

from gpucnn.inspect import draw, page
from gpucnn.inspect.advice import Advice
from gpucnn.inspect.analysis import Analysis, analyze
from gpucnn.inspect.attribution import grad_cam, input_gradient, occlusion, saliency
from gpucnn.inspect.features import (
    Strongest,
    before_relu,
    feature_maps,
    filter_pictures,
    first_layer_filters,
    pixel_layers,
    strongest_images,
)
from gpucnn.inspect.forward import activations
from gpucnn.inspect.history import (
    UpdateRatios,
    training_curves,
    update_ratio,
    update_ratio_histograms,
    weight_histograms,
)
from gpucnn.inspect.maximize import deep_dream, maximize_activation
from gpucnn.inspect.memory import Memory, training_memory
from gpucnn.inspect.mistakes import Predictions, confusion_chart, mistakes_page, predict

__all__ = [
    "Advice",
    "Analysis",
    "Memory",
    "Predictions",
    "Strongest",
    "UpdateRatios",
    "activations",
    "analyze",
    "before_relu",
    "confusion_chart",
    "deep_dream",
    "draw",
    "feature_maps",
    "filter_pictures",
    "first_layer_filters",
    "grad_cam",
    "input_gradient",
    "maximize_activation",
    "mistakes_page",
    "occlusion",
    "page",
    "pixel_layers",
    "predict",
    "saliency",
    "strongest_images",
    "training_curves",
    "training_memory",
    "update_ratio",
    "update_ratio_histograms",
    "weight_histograms",
]
