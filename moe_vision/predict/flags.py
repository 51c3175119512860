"""The images that commands of this package read, and their flags."""

import argparse
from typing import TYPE_CHECKING, Any

import input_pipeline
from moe_vision.config import rules

if TYPE_CHECKING:
    from input_pipeline import DatasetInfo
    from moe_vision.config.schema import Config


def add_images(parser: argparse.ArgumentParser, count: int) -> None:
    """Adds --split and --images: whose images are read, and how many; `count` by default."""
    parser.add_argument(
        '--split', default='validation', help='whose images to take (default: validation)'
    )
    parser.add_argument(
        '--images',
        type=int,
        default=count,
        metavar='N',
        help=f'how many of them (default: {count})',
    )


def first_images(config: 'Config', info: 'DatasetInfo', split: str, count: int) -> dict[str, Any]:
    """The first images of a split in the order of evaluation, at most `count`, as one batch."""
    split = rules.to_score(split, info)
    size = min(count, info.split_sizes[split])
    with input_pipeline.evaluation_batches(
        config.dataset, split=split, batch_size=size, rows=range(size)
    ) as batches:
        return next(iter(batches))
