"""Reads a user's own images: train/<class>/*.jpg, with test/<class>/ or val/<class>/ beside it."""

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


def _printable(path: Path) -> str:
    return os.fsencode(path).decode('utf-8', 'replace')


class ImageFolder(Builder):
    """A user's own images, one folder per class."""

    name = 'image_folder'
    encoding = 'jpeg'
    wants = 'a folder with train/<class>/*.jpg (or png, webp, bmp, tif) and test/ or val/ beside'

    def open(self, source: Path) -> Contents:
        """Lists the images; the classes are the folders of train/ in alphabetical order.

        If there is no folder test/, val/ serves as the test split.
        """
        if not (source / 'train').is_dir():
            raise DataError(f'{source} has no folder train/; wanted: {self.wants}.')
        classes = [p.name for p in _visible(source / 'train') if p.is_dir()]
        if not classes:
            raise DataError(f'{source}/train has no class folders; wanted: {self.wants}.')
        if unprintable := [c for c in classes if not c.isprintable()]:
            raise DataError(
                f'{source}/train: the name of class folder {unprintable[0]!r} is not printable; '
                'rename it.'
            )
        labels = {name: i for i, name in enumerate(classes)}
        folders = {'train': 'train', 'test': 'test', 'validation': 'val'}
        if not (source / 'test').is_dir():
            folders = {'train': 'train', 'test': 'val'}
        splits: dict[str, Sequence[Shard]] = {}
        files: list[Path] = []
        for split, folder in folders.items():
            images = self._images(source / folder, labels)
            used = {label for _, label in images}
            if folder == 'train' and len(used) < len(classes):
                empty = next(c for c in classes if labels[c] not in used)
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
                raise DataError(f'{_printable(path)}: train/ has no class of this name.')
            files = [f for f in _visible(path) if f.suffix.lower() in _SUFFIXES and f.is_file()]
            images += [(f, labels[path.name]) for f in files]
        return images

    def _shard(self, source: Path, images: list[tuple[Path, int]]) -> Iterator[Example]:
        for path, label in images:
            try:
                data = path.read_bytes()
            except OSError as error:
                raise DataError(f'{_printable(path)} cannot be read: {error.strerror}.') from error
            yield _printable(path.relative_to(source)), data, label
