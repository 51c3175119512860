"""Reads Tiny ImageNet, 64x64 photographs of 200 classes, from its published zip."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from input_pipeline import archives
from input_pipeline.builder import Builder, Contents, Example, Shard
from input_pipeline.types import DataError

_TOP = 'tiny-imagenet-200'
_SHARD = 10000  # images


class TinyImagenet(Builder):
    """64x64 photographs of 200 classes; the published validation images serve as test."""

    name = 'tiny_imagenet'
    num_classes = 200
    image_shape = (64, 64, 3)
    sizes = {'train': 100000, 'validation': 10000}
    stored = {'train': 'train', 'test': 'validation'}
    mean, std = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
    encoding = 'jpeg'
    wants = 'tiny-imagenet-200.zip, published at cs231n.stanford.edu'

    def open(self, source: Path) -> Contents:
        """Lists the images in the zip `source`, or in the one in that folder."""
        path = archives.pick(source, ('tiny-imagenet-200.zip',), self.wants)
        names = sorted(archives.zip_names(path))
        lists = {f'{_TOP}/wnids.txt', f'{_TOP}/val/val_annotations.txt'}
        if missing := lists - set(names):
            raise DataError(f'{path} lacks {min(missing)}; wanted: {self.wants}.')
        content = {n: data.decode('utf-8', 'replace') for n, data in archives.zip_read(path, lists)}
        classes = sorted(content[f'{_TOP}/wnids.txt'].split())
        labels = {wnid: i for i, wnid in enumerate(classes)}
        val_wnids = {}
        for line in content[f'{_TOP}/val/val_annotations.txt'].splitlines():
            if fields := line.split():
                val_wnids[fields[0]] = fields[1] if len(fields) > 1 else ''

        def label(name: str) -> int:
            pure = PurePosixPath(name)
            wnid = val_wnids.get(pure.name) if pure.parts[1] == 'val' else pure.parts[2]
            if wnid not in labels:
                raise DataError(f'{path}: the class of member {name!r} is not listed in wnids.txt.')
            return labels[wnid]

        def shard(members: list[str]) -> Iterator[Example]:
            for name, data in archives.zip_read(path, members):
                yield name, data, label(name)

        splits: dict[str, Sequence[Shard]] = {}
        for split, folder, depth in (('train', 'train', 5), ('validation', 'val', 4)):
            images = [
                n
                for n in names
                if n.startswith(f'{_TOP}/{folder}/')
                and n.lower().endswith('.jpeg')
                and len(PurePosixPath(n).parts) == depth
            ]
            if not images:
                raise DataError(
                    f'{path} has no images below {_TOP}/{folder}; wanted: {self.wants}.'
                )
            parts = [images[i : i + _SHARD] for i in range(0, len(images), _SHARD)]
            splits[split] = [functools.partial(shard, part) for part in parts]
        return Contents(tuple(classes), splits)
