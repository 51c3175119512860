"""A user's own images: train/<class>/*.jpg, and test/<class>/ or val/<class>/ beside it."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from input_pipeline.builder import Builder, Contents, Example, Shard
from input_pipeline.types import DataError

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')
_SHARD = 4096  # images


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith('.'))


def _text(path: Path) -> str:
    return os.fsencode(path).decode('utf-8', 'replace')


class ImageFolder(Builder):
    """Images of a user's own, one folder for each class."""

    name = 'image_folder'
    encoding = 'jpeg'
    wants = 'a folder with train/<class>/*.jpg (or png, webp, bmp, tif) and test/ or val/ beside'

    def open(self, source: Path) -> Contents:
        """Lists the folders; classes are the folders of train/ in alphabetical order.

        A folder val/ serves as test where there is no test/.
        """
        if not (source / 'train').is_dir():
            raise DataError(f'{source} has no folder train/; wanted: {self.wants}.')
        classes = [p.name for p in _visible(source / 'train') if p.is_dir()]
        if not classes:
            raise DataError(f'{source}/train has no class folders; wanted: {self.wants}.')
        if odd := [c for c in classes if not c.isprintable()]:
            raise DataError(f'class folder {odd[0]!r} of {source}/train has no printable name.')
        labels = {name: i for i, name in enumerate(classes)}
        folders = {'train': 'train', 'test': 'test', 'validation': 'val'}
        if not (source / 'test').is_dir():
            folders = {'train': 'train', 'test': 'val'}
        splits: dict[str, Sequence[Shard]] = {}
        files: list[Path] = []
        for split, folder in folders.items():
            images = self._images(source / folder, labels)
            if folder == 'train' and len({label for _, label in images}) < len(classes):
                empty = next(c for c in classes if labels[c] not in {lab for _, lab in images})
                raise DataError(f'{source}/train/{empty} holds no images ({", ".join(_SUFFIXES)}).')
            parts = [images[i : i + _SHARD] for i in range(0, len(images), _SHARD)]
            files += [path for path, _ in images]
            if parts:
                splits[split] = [functools.partial(self._shard, source, part) for part in parts]
        return Contents(tuple(classes), splits, files)

    def _images(self, folder: Path, labels: dict[str, int]) -> list[tuple[Path, int]]:
        if not folder.is_dir():
            return []
        images = []
        for path in _visible(folder):
            if not path.is_dir():
                continue
            if path.name not in labels:
                raise DataError(f'{_text(path)}: train/ has no class of that name.')
            files = [f for f in _visible(path) if f.suffix.lower() in _SUFFIXES and f.is_file()]
            images += [(f, labels[path.name]) for f in files]
        return images

    def _shard(self, source: Path, images: list[tuple[Path, int]]) -> Iterator[Example]:
        for path, label in images:
            try:
                data = path.read_bytes()
            except OSError as error:
                raise DataError(f'{_text(path)} cannot be read: {error.strerror}.') from error
            yield _text(path.relative_to(source)), data, label
