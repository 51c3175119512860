"""Flags that the commands of this package share, and the images that some of them read."""

import argparse
from typing import TYPE_CHECKING, Any

import input_pipeline
from moe_vision.config import rules

if TYPE_CHECKING:
    from input_pipeline import DatasetInfo
    from moe_vision.config.schema import Config


def add(parser: argparse.ArgumentParser) -> None:
    """Adds --best and --trust: which weights of a run are read, and what code it may name."""
    parser.add_argument(
        '--best',
        action='store_true',
        help='use the weights that were best on validation, not the last ones',
    )
    parser.add_argument(
        '--trust',
        default='',
        metavar='MODULES',
        help="modules of your own that the run's config may import, such as my.routers,my.losses",
    )


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
