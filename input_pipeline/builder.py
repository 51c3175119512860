"""Defines `Builder`: the published facts of a data set, and how to read its files.

Nothing here or in `datasets/` needs tfds; `storage.py` turns the examples into records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

Example = tuple[str, bytes, int]  # (file or record name, encoded image, label)
Shard = Callable[[], Iterator[Example]]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a source, listed without decoding an image.

    Attributes:
        class_names: one per label, in label order.
        splits: stored split name -> shards. A shard is a function without arguments that
            returns an iterator of (name, encoded image, label). Shards are written one after
            another, so memory holds one example at a time.
        files: the files that the shards read. If they are listed, an interrupted preparation
            continues where it stopped, unless one of them has changed.
        left_out: why something in the source is not read -> names of files, and of folders with
            '/' at the end. Preparation counts and names them.
    """

    class_names: tuple[str, ...]
    splits: dict[str, Sequence[Shard]]
    files: Sequence[Path] = ()
    left_out: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


class Builder:
    """One data set. Subclass it, fill in the attributes and write `open`.

    Attributes:
        name: lower_case name; also the name of its folder in data_dir.
        version: version of the records that this builder writes.
        num_classes: number of labels; 0 if only the files show it.
        image_shape: (H, W, C); H and W are None if images vary in size.
        sizes: published number of images per stored split; {} if only the files show it.
        class_names: one per label; () if only the files show them.
        stored: split that a caller asks for -> stored split that holds it.
        mean, std: per-channel normalisation of images scaled to [0, 1].
        encoding: 'png' or 'jpeg', for the stored metadata.
        embedded: whether the set needs no source and is prepared on first use.
        wants: what `--source` must be, and where to get it.
        places: paths to try if `--source` is not given.
        published: name of a source file -> its published (bytes, MD5).
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
        """Lists what `source` holds, without decoding an image.

        Raises:
            DataError: the source is of the wrong kind, damaged or unsafe.
        """
        raise NotImplementedError

    def names(self) -> tuple[str, ...]:
        """Returns the class names; 'class_7' and so on if only the files show them."""
        return self.class_names or tuple(f'class_{i}' for i in range(self.num_classes))
