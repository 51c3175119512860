"""What a data set must say about itself: its published facts, and how to read its files.

Nothing here or in `datasets/` needs tfds: `storage.py` turns a builder into records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Example = tuple[str, bytes, int]  # (file or record name, encoded image, label)
Shard = Callable[[], Iterator[Example]]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a source holds, found without decoding it.

    Attributes:
        class_names: one per label, in label order.
        splits: stored split name -> shards. A shard is a function without arguments
            whose iterator yields (name, encoded image, label); shards are written one
            after another, so memory holds one example at a time.
        files: what the shards read. Where it is given, a preparation that was interrupted goes on
            where it stopped, as long as these files stay as they are.
    """

    class_names: tuple[str, ...]
    splits: dict[str, Sequence[Shard]]
    files: Sequence[Path] = ()


class Builder:
    """One data set. Subclass it, fill in the attributes, write `open`.

    Attributes:
        name: lower_case name; the folder below data_dir.
        version: version of what this builder writes.
        num_classes: number of labels; 0 where only the files can tell.
        image_shape: (H, W, C); H and W are None where images vary in size.
        sizes: published number of images per stored split; {} where files must tell.
        class_names: one per label, or () where only the files can tell.
        stored: split as callers ask for it -> split as it is stored.
        mean, std: per-channel normalisation of images scaled to [0, 1].
        encoding: 'png' or 'jpeg', as the stored metadata names it.
        embedded: the set needs no source and prepares itself on first use.
        wants: what `--source` must be and where that is published.
        places: paths looked at where no `--source` is given.
        published: name of a file of the source -> its published size and MD5.
    """

    name: str = ''
    version: str = '1.0.0'
    num_classes: int = 0
    image_shape: tuple[int | None, int | None, int] = (None, None, 3)
    sizes: dict[str, int] = {}
    class_names: tuple[str, ...] = ()
    stored: dict[str, str] = {'train': 'train', 'validation': 'validation', 'test': 'test'}
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    encoding: str = 'png'
    embedded: bool = False
    wants: str = ''
    places: tuple[str, ...] = ()
    published: dict[str, tuple[int, str]] = {}

    def open(self, source: Path) -> Contents:
        """Looks into `source` and returns what it holds; decodes nothing yet.

        Raises:
            DataError: the source is of the wrong kind, damaged or unsafe.
        """
        raise NotImplementedError

    def names(self) -> tuple[str, ...]:
        """Class names as far as they are known before the set is prepared."""
        return self.class_names or tuple(f'class_{i}' for i in range(self.num_classes))
