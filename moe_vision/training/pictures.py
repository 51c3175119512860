"""Collects the images that a report shows: the first of a split, and the worst mistakes."""

import base64
import math
from typing import Any

import numpy as np

import input_pipeline
from input_pipeline import DatasetConfig
from input_pipeline.reader import Item

_SAMPLES = 24  # images that the report shows with their experts
_MISTAKES = 24  # images that it shows because they were mistaken most confidently
_THUMBNAIL = 96  # longest side of a mistake's picture


def samples(data: DatasetConfig, split: str, out: dict[str, Any]) -> list[dict[str, Any]]:
    """The first images of a split, with what was computed for the first batch."""
    count = min(_SAMPLES, int(out['valid'].sum()))
    return [
        {**shown(index, item, int(out['prediction'][i])), 'layers': _routes(out, i)}
        for i, (index, item) in enumerate(
            input_pipeline.evaluation_items(data, split, range(count))
        )
    ]


def mistakes(
    data: DatasetConfig,
    split: str,
    truth: np.ndarray,
    predicted: np.ndarray,
    probability: np.ndarray,
) -> list[dict[str, Any]]:
    """The images that were mistaken with the highest probability of the wrong class, in order.

    Args:
      truth, predicted, probability: of all images in the order of evaluation.
    """
    wrong = np.flatnonzero(truth != predicted)
    places = wrong[np.argsort(-probability[wrong], kind='stable')][:_MISTAKES]
    items = input_pipeline.evaluation_items(data, split, places.tolist())
    return [
        shown(index, item, int(predicted[place]), _THUMBNAIL)
        | {'probability': float(probability[place])}
        for place, (index, item) in zip(places.tolist(), items, strict=True)
    ]


def shown(index: int, item: Item, prediction: int, longest: int = 0) -> dict[str, Any]:
    """An image as the report shows it: 'index' is its place in the split, 'file' its name.

    Args:
      longest: shrink the picture to this side at most; 0 keeps it.
    """
    import cv2

    assert item.image is not None  # the evaluation would have stopped
    image = item.image[..., ::-1] if item.image.shape[-1] == 3 else item.image
    if 0 < longest < max(image.shape[:2]):
        height, width = (max(round(n * longest / max(image.shape[:2])), 1) for n in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return {
        'index': index,
        'file': item.key,
        'image_png': base64.b64encode(cv2.imencode('.png', image)[1].tobytes()).decode(),
        'label': item.label,
        'prediction': prediction,
    }


def _routes(out: dict[str, Any], i: int) -> dict[str, Any]:
    """The experts, gates and kept choices of image i of a batch, by layer."""
    layers = {}
    for name, choice in out['choices'].items():
        tokens = len(choice['expert']) // len(out['label'])
        own = slice(i * tokens, (i + 1) * tokens)
        side = math.isqrt(tokens)
        layers[name] = {
            'grid': None if tokens == 1 else [side, side] if side * side == tokens else None,
            'experts': choice['expert'][own].tolist(),
            'gates': choice['gate'][own].astype(float).round(4).tolist(),
            'kept': choice['kept'][own].tolist(),
        }
    return layers
