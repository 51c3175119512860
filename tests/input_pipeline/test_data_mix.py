"""Mixup and CutMix: partners stay in the group, and targets follow the pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.mix import mix

KINDS = [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)]


def batch(size=24, side=8):
    """Image i is filled with i + 1, its target is one-hot i, and all rows are valid."""
    images = jnp.broadcast_to(jnp.arange(1.0, size + 1)[:, None, None, None], (size, side, side, 1))
    return images, jnp.eye(size), jnp.ones(size, bool)


def mixed(images, targets, valid, *, key=0, group_size=6, mixup=0.0, cutmix=0.0, ids=None):
    ids = jnp.arange(len(images) // group_size) if ids is None else jnp.asarray(ids)
    return jax.jit(mix, static_argnames=('group_size', 'mixup', 'cutmix'))(
        jax.random.key(key),
        images,
        targets,
        valid,
        group_size=group_size,
        mixup=mixup,
        cutmix=cutmix,
        group_ids=ids,
    )


@pytest.mark.parametrize(('mixup', 'cutmix'), KINDS)
def test_partners_stay_in_the_group_and_targets_follow_the_pixels(mixup, cutmix):
    images, targets, valid = batch()
    changed = 0
    for key in range(5):
        out, soft = mixed(images, targets, valid, key=key, mixup=mixup, cutmix=cutmix)
        soft = np.asarray(soft)
        np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(out.mean((1, 2, 3)), soft @ np.arange(1, 25), rtol=1e-5)
        for i, row in enumerate(soft):
            partners = set(np.flatnonzero(row)) - {i}
            assert len(partners) <= 1 and all(p // 6 == i // 6 for p in partners)
            changed += len(partners)
        for group in soft.reshape(4, 6, 24):  # one mixture for each group
            np.testing.assert_allclose(group.max(1), group.max(), atol=1e-6)
    assert changed > 60


@pytest.mark.parametrize(('mixup', 'cutmix'), KINDS)
def test_invalid_rows_neither_give_nor_take(mixup, cutmix):
    images, targets, _ = batch()
    valid = jnp.arange(24) % 4 != 1
    images = jnp.where(valid[:, None, None, None], images, jnp.nan)
    for key in range(3):
        out, soft = mixed(images, targets, valid, key=key, mixup=mixup, cutmix=cutmix)
        assert np.isfinite(np.asarray(out)[np.asarray(valid)]).all()
        lost = np.flatnonzero(~np.asarray(valid))
        np.testing.assert_array_equal(np.asarray(soft)[lost], np.asarray(targets)[lost])
        assert not np.asarray(soft)[np.asarray(valid)][:, lost].any()


@pytest.mark.parametrize(('mixup', 'cutmix'), KINDS)
def test_split_of_the_batch_changes_nothing(mixup, cutmix):
    images, targets, valid = batch()
    whole = mixed(images, targets, valid, mixup=mixup, cutmix=cutmix, ids=[4, 5, 6, 7])
    for part, ids in ((slice(0, 12), [4, 5]), (slice(12, 24), [6, 7]), (slice(6, 12), [5])):
        some = mixed(images[part], targets[part], valid[part], mixup=mixup, cutmix=cutmix, ids=ids)
        for left, right in zip(whole, some, strict=True):
            np.testing.assert_allclose(left[part], right, rtol=3e-6, atol=1e-6)


def test_groups_and_keys_draw_their_own():
    images, targets, valid = batch()
    soft = np.asarray(mixed(images, targets, valid, mixup=0.4)[1])
    assert len({round(float(soft[g * 6].max()), 5) for g in range(4)}) == 4
    other = np.asarray(mixed(images, targets, valid, mixup=0.4, key=1)[1])
    assert not np.array_equal(soft, other)


def test_cutmix_pastes_one_box_of_the_share_it_states():
    images, targets, valid = batch(side=16)
    shares = []
    for key in range(10):
        out, soft = mixed(images, targets, valid, cutmix=1.0, key=key)
        for i in range(24):
            pasted = np.asarray(out[i, :, :, 0]) != i + 1
            rows, columns = pasted.any(1), pasted.any(0)
            assert pasted.sum() == rows.sum() * columns.sum()  # a rectangle
            assert np.diff(np.flatnonzero(rows)).max(initial=1) == 1
            np.testing.assert_allclose(soft[i, i], 1 - pasted.mean(), atol=1e-6)
            assert set(np.unique(out[i])) <= set(range(1, 25))  # pixels are moved, not blended
        shares += [float(soft[g * 6, g * 6]) for g in range(4)]
    assert min(shares) < 0.5 < max(shares)


def test_mixup_draws_from_beta():
    """Beta(1, 1) is uniform: over 400 groups, mean 1/2 and variance 1/12."""
    images, targets, valid = batch(800, 1)
    soft = np.asarray(mixed(images, targets, valid, group_size=2, mixup=1.0)[1])
    lam = np.diag(soft)[::2]
    assert abs(lam.mean() - 0.5) < 0.06 and abs(lam.var() - 1 / 12) < 0.015


def test_both_kinds_are_drawn_about_equally():
    images, targets, valid = batch(400, 4)
    out, _ = mixed(images, targets, valid, group_size=2, mixup=1.0, cutmix=1.0)
    blended = [len(np.unique(image)) == 1 and float(image[0, 0, 0]) % 1 > 0 for image in out[::2]]
    assert 0.35 < np.mean(blended) < 0.65


def test_off_and_alone_change_nothing_and_sizes_must_fit():
    images, targets, valid = batch()
    for kwargs in ({}, {'mixup': 0.5, 'group_size': 1}):
        out, soft = mixed(images, targets, valid, **kwargs)
        np.testing.assert_array_equal(out, images)
        np.testing.assert_array_equal(soft, targets)
    with pytest.raises(ValueError, match='groups of 5'):
        mixed(images, targets, valid, group_size=5, mixup=1.0)
    out, _ = mixed(images.astype(jnp.bfloat16), targets, valid, mixup=1.0)
    assert out.dtype == jnp.bfloat16
