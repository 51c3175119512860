"""Splits a set into domains, each with a mark in the pixels and a permutation of the labels.

With `dataset.domains=8` the images of a set fall into eight parts of nearly equal size. An image
shows its domain as a binary code in its two top rows, and its label goes through the permutation of
its domain. So a network must read the code to know what a picture is called: a positive control for
routing, where experts that each serve some domains ought to gain.

The domain of an image depends on its place in storage alone, a permutation on the domain and the
number of classes. Both are the same for every run, arm and seed, and in evaluation.

Axes: N images, D domains, L classes, H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from input_pipeline import order
from input_pipeline.types import DataError

ROWS = 2  # of pixels that the code covers, at the top
_SEED = 20_605  # of the permutations of labels


def of_images(positions: np.ndarray, stored: int, domains: int) -> np.ndarray:
    """Returns int32 [N], the domains of the images at these stored positions.

    Args:
        positions: int [N], each in [0, stored).
        stored: images of the stored split; its domains differ in size by one at most.
        domains: D.
    """
    return (order.fixed_permutation(stored, order.DOMAINS)[positions] % domains).astype(np.int32)


def label_table(domains: int, classes: int) -> np.ndarray:
    """Returns int32 [D, L]: the label of each class in each domain. Domain 0 keeps the labels.

    No two domains have the same permutation.

    Raises:
        DataError: L classes have fewer than D permutations.
    """
    if domains > math.factorial(min(classes, 10)):
        raise DataError(
            f'domains is {domains}, but {classes} classes have only {math.factorial(classes)} '
            f'orders of their labels; allowed: 0 to {math.factorial(classes)}.'
        )
    rng = np.random.Generator(np.random.PCG64(_SEED))
    table = [tuple(range(classes))]
    while len(table) < domains:
        drawn = tuple(rng.permutation(classes).tolist())
        if drawn not in table:
            table.append(drawn)
    return np.array(table, np.int32)


def codes(domains: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Returns uint8 [D, ROWS, W, C]: the top rows of an image of each domain.

    The bits of the domain's number, the highest first, are equally wide fields of 0 or 255; columns
    that remain are 0.

    Raises:
        DataError: the image is too small for the code.
    """
    height, width, channels = shape
    bits = max(1, (domains - 1).bit_length())
    if width < bits or height <= ROWS:
        raise DataError(
            f'domains is {domains}, whose code takes {ROWS} rows of {bits} pixels or more, but '
            f'images are {height} x {width}; set image_size, or fewer domains.'
        )
    field = width // bits
    lit = np.arange(domains)[:, None] >> np.arange(bits - 1, -1, -1) & 1  # [D, bits]
    row = np.zeros((domains, width), np.uint8)
    row[:, : field * bits] = 255 * np.repeat(lit, field, axis=1)
    return np.ascontiguousarray(
        np.broadcast_to(row[:, None, :, None], (domains, ROWS, width, channels))
    )


@dataclasses.dataclass(frozen=True)
class Domains:
    """The domains of a stored split."""

    of_image: np.ndarray  # int32 [N], by stored position
    labels: np.ndarray  # int32 [D, L], from `label_table`
    codes: np.ndarray  # uint8 [D, ROWS, W, C]

    def apply(self, batch: dict[str, np.ndarray]) -> None:
        """Marks the images of a batch and permutes its labels, in place, by its 'domain'."""
        domain = batch['domain']
        batch['image'][:, :ROWS] = self.codes[domain]
        batch['label'] = self.permuted(batch['label'], domain)

    def permuted(self, labels: np.ndarray, domain: np.ndarray) -> np.ndarray:
        """Returns int32 [N], what `labels` [N] are called in the domains [N]."""
        return self.labels[domain, labels]


def of_split(
    domains: int, stored: int, classes: int, shape: tuple[int, int, int]
) -> Domains | None:
    """Returns the domains of a stored split of images of this shape, or None if there are none.

    Raises:
        DataError: as `label_table` and `codes`.
    """
    if not domains:
        return None
    return Domains(
        of_images(np.arange(stored), stored, domains),
        label_table(domains, classes),
        codes(domains, shape),
    )


def mark(images: Any, top: Any) -> Any:
    """Returns images [*, H, W, C] with `top` [*, ROWS, W, C] as their top rows (jax arrays)."""
    return images.at[..., :ROWS, :, :].set(top)
