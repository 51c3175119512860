"""The limits at which a run is warned about, for all that judge one: training, result, report.

A layer has collapsed if fewer than half of its E experts carry its load, counted as 1 / sum q^2 of
the load q, or if an expert is dead, which is a load below 1 % of an even one. A run has collapsed
if any of its layers has, in its last evaluation.
"""

import math
from collections.abc import Sequence

DEAD = 0.01  # share of an even load, 1/E, below which an expert is dead
DROPS = 0.2  # share of choices above which a layer drops too many; default of log.warn_drop_rate
RIGHT = 0.05  # share of its images below which a class is nearly never recognised
_NAMED = 5  # most classes that a sentence names


def why_collapsed(effective: float, dead: float, num_experts: int) -> dict[str, str]:
    """Why a layer of E experts has collapsed, in words by criterion; {} if it has not.

    Args:
      effective: 1 / sum q^2 of its load q.
      dead: how many experts have a load below `DEAD` / E.

    Returns:
      'effective' and 'dead', where they apply.
    """
    of = f'of its {num_experts} experts' if num_experts else 'of its experts'
    why = {}
    if effective < num_experts / 2:
        shown = math.floor(100 * effective) / 100  # never rounded up to the limit
        why['effective'] = f'fewer than half {of} carry the load (the equivalent of {shown:g})'
    if dead > 0:
        are = 'is' if dead == 1 else 'are'
        why['dead'] = f'{dead:.0f} {of} {are} dead (below {100 * DEAD:g} % of an even load)'
    return why


def unrecognised(right: Sequence[float], images: Sequence[float]) -> list[int]:
    """The classes that are (nearly) never recognised: right on fewer than `RIGHT` of their images.

    Args:
      right: by class, how many images were predicted right.
      images: by class, how many there are; a class without images is left out.
    """
    return [
        c for c, (r, n) in enumerate(zip(right, images, strict=True)) if n > 0 and r < RIGHT * n
    ]


def majority(images: Sequence[float]) -> tuple[int, float]:
    """The most frequent class, and the accuracy of always answering it; NaN without images."""
    frequent = max(range(len(images)), key=lambda c: images[c])
    whole = sum(images)
    return frequent, images[frequent] / whole if whole > 0 else math.nan


def about_classes(
    right: Sequence[float], images: Sequence[float], names: Sequence[str], split: str
) -> list[str]:
    """Sentences on what is wrong with the accuracy by class; [] if nothing is.

    Args:
      right, images: as for `unrecognised`.
      names: of the classes.
      split: where the images are from, for the words.
    """

    def name(c: int) -> str:
        return f'‘{names[c] if c < len(names) else c}’'

    sentences = []
    frequent, baseline = majority(images)
    accuracy = sum(right) / sum(images) if sum(images) > 0 else math.nan
    if accuracy <= baseline and accuracy < 1:
        sentences.append(
            f'An accuracy of {100 * accuracy:.1f} % on the {split} set is not above that of always '
            f'answering {name(frequent)} ({100 * baseline:.1f} %).'
        )
    if lost := unrecognised(right, images):
        lost.sort(key=lambda c: (right[c] / images[c], -images[c]))
        told = [f'{name(c)} ({right[c]:.0f} of {images[c]:.0f} right)' for c in lost[:_NAMED]]
        more = f' and {len(lost) - _NAMED} more' if len(lost) > _NAMED else ''
        sentences.append(
            f'{len(lost)} of {len(images)} classes {"is" if len(lost) == 1 else "are"} (nearly) '
            f'never recognised on the {split} set: {", ".join(told)}{more}.'
        )
    return sentences
