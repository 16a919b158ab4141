"""Images: where they come from, what is done to them at random, and the crops that a test sees."""

import pytest
import torch
from torch.nn import functional as F

from cnnkern.training import augmentation, crops, data


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(64, 3, 12, 12)


def test_digits_are_split_once_and_for_all():
    small, again = data.digits(8), data.digits(8)
    sets = [small.train, small.validation, small.test]
    assert [len(part) for part in sets] == [1258, 180, 359]
    assert sorted(index for part in sets for index in part.indices) == list(range(1797))
    assert [part.indices for part in sets] == [part.indices for part in (again.train, again.validation, again.test)]
    images, labels = data.first(small.train, 2000)
    assert images.shape == (1258, 1, 8, 8)
    assert set(labels.tolist()) == set(range(10))
    normal = small.normalise(images)
    assert normal.mean().item() == pytest.approx(0, abs=0.02)
    assert normal.std().item() == pytest.approx(1, abs=0.02)


def test_a_mean_image_is_subtracted_pixel_by_pixel():
    digits = data.digits(8, resize=1.5)
    centred = data.with_mean_image(digits)
    images, _ = data.first(digits.train, 2000)
    assert digits.normalise(images).mean(0).abs().max() > 0.5
    assert centred.normalise(images).mean(0).abs().max() < 0.1  # the mean is of fewer images
    assert centred.normalise(images[:, :, :8, :8]).shape == (1258, 1, 8, 8)
    assert centred.channels == 1


def test_a_folder_of_images(tmp_path):
    from PIL import Image

    for name, colour in {"red": (255, 0, 0), "blue": (0, 0, 255)}.items():
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (20 + number, 30), colour).save(tmp_path / name / f"{number}.png")
        (tmp_path / name / "notes.txt").touch()
    read = data.load(str(tmp_path), size=16, resize=1.25)
    assert (read.classes, read.channels, read.size) == (("blue", "red"), 3, 16)
    assert [len(part) for part in (read.train, read.validation, read.test)] == [7, 1, 2]
    image, label = read.train[0]
    assert image.shape == (3, 20, 20)
    assert image.mean(dim=(1, 2)).tolist() == ([0, 0, 1] if label == 0 else [1, 0, 0])


def test_a_source_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="neither 'digits' nor a folder"):
        data.load(str(tmp_path / "missing"), size=16)
    with pytest.raises(ValueError, match="has 0 images"):
        data.load(str(tmp_path), size=16)


def positions(images, windows):
    """Where in its image each window was cut from."""
    size = windows.shape[2]
    found = []
    for image, window in zip(images, windows, strict=True):
        every = image.unfold(1, size, 1).unfold(2, size, 1)  # [C, rows, columns, size, size]
        same = (every == window[:, None, None]).all(dim=(0, 3, 4)).nonzero()
        assert len(same) == 1
        found.append(tuple(same[0].tolist()))
    return found


def test_random_crops_are_windows_of_their_own_images(images):
    windows = augmentation.random_crop(images, 10)
    assert set(positions(images, windows)) == {(top, left) for top in range(3) for left in range(3)}
    padded = augmentation.random_crop(images, 12, padding=2)
    assert len(set(positions(F.pad(images, [2] * 4), padded))) > 15
    assert set(positions(images, augmentation.centre_crop(images, 10))) == {(1, 1)}


def test_flips_are_of_half_of_the_images(images):
    flipped = augmentation.horizontal_flip(images)
    mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(flipped, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert all(a is not b for a, b in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48


def test_resized_crops_see_the_shares_asked_for():
    """Of images that are their own coordinates, from -1 to 1 over their sides."""
    ramp = torch.linspace(-1 + 1 / 64, 1 - 1 / 64, 64)
    coordinates = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64)]).expand(400, 2, 64, 64)
    torch.manual_seed(0)
    cut = augmentation.random_resized_crop(coordinates, 16, shares=(0.4, 0.8), aspect=1.0)
    across = (cut[:, 0, 0, -1] - cut[:, 0, 0, 0]) / 2 * 16 / 15
    down = (cut[:, 1, -1, 0] - cut[:, 1, 0, 0]) / 2 * 16 / 15
    torch.testing.assert_close(across, down, rtol=0.02, atol=0)
    assert 0.39 < across.min() < 0.42
    assert 0.75 < across.max() < 0.81
    sides = (1 / across).sort().values  # ResNet's sides are uniform: their inverse is what is cut
    assert sides.median().item() == pytest.approx((1 / 0.4 + 1 / 0.8) / 2, rel=0.1)
    assert cut.abs().max() <= 1
    wide = augmentation.random_resized_crop(coordinates, 16, shares=(0.5, 0.5), aspect=2.0)
    aspects = (wide[:, 0, 0, -1] - wide[:, 0, 0, 0]) / (wide[:, 1, -1, 0] - wide[:, 1, 0, 0])
    assert 0.48 < aspects.min() < 0.55
    assert 1.8 < aspects.max() < 2.1


def test_affine_changes_are_of_the_size_asked_for(images):
    torch.testing.assert_close(augmentation.random_affine(images, spread=0.0), images, rtol=0, atol=1e-5)
    smooth = F.interpolate(images, size=24, mode="bilinear")
    small, large = ((augmentation.random_affine(smooth, s) - smooth).abs().mean() for s in (0.02, 0.1))
    assert 0 < small < large


@pytest.mark.parametrize("what", ["brightness", "contrast", "saturation"])
def test_colour_jitter_keeps_what_it_does_not_change(what, images):
    changed = augmentation.colour_jitter(
        images * 0.5 + 0.1, **{"brightness": 0, "contrast": 0, "saturation": 0, what: 0.3}
    )
    before = images * 0.5 + 0.1
    assert not torch.allclose(changed, before)
    grey = [augmentation._grey(x) for x in (before, changed)]
    if what == "brightness":
        factors = (changed / before).flatten(1)
        torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
        assert 0.7 < factors.min() < factors.max() < 1.3
    if what == "contrast":
        torch.testing.assert_close(*(x.mean(dim=(1, 2, 3)) for x in grey))
    if what == "saturation":
        torch.testing.assert_close(*grey)


def test_pca_colour_moves_along_the_principal_axes():
    """Red varies three times as much as blue, and green not at all."""
    torch.manual_seed(0)
    spread = torch.tensor([3.0, 0.0, 1.0])[:, None, None]
    images = torch.randn(500, 3, 6, 6) * spread + 0.5
    steps = (augmentation.pca_colour(images, spread=0.1) - images)[:, :, 0, 0]
    torch.testing.assert_close(steps.std(0), torch.tensor([0.3, 0.0, 0.1]), rtol=0.15, atol=0.01)
    change = augmentation.pca_colour(images) - images
    torch.testing.assert_close(change, change[:, :, :1, :1].expand_as(change))  # one colour per image
    axes = augmentation.colour_axes(images)
    torch.testing.assert_close(axes @ axes.T, torch.cov(images.transpose(0, 1).flatten(1)), rtol=1e-4, atol=1e-4)


def test_colours_of_images_in_grey():
    grey = torch.rand(8, 1, 6, 6)
    steps = augmentation.pca_colour(grey) - grey
    torch.testing.assert_close(steps, steps[:, :, :1, :1].expand_as(steps))
    assert torch.equal(augmentation.colour_jitter(grey, 0, 0, 0.4), grey)


def test_ten_crops_are_the_corners_the_middle_and_their_mirror_images(images):
    ten = crops.ten_crops(images, 10)
    where = [set(positions(images, crop)) for crop in ten[:5]]
    assert where == [{(0, 0)}, {(0, 2)}, {(2, 0)}, {(2, 2)}, {(1, 1)}]
    assert all(torch.equal(crop.flip(3), mirror) for crop, mirror in zip(ten[:5], ten[5:], strict=True))


def test_scores_are_the_mean_probability_over_crops_and_scales(images):
    weights = torch.randn(3 * 10 * 10, 4)

    def model(x):
        return x.flatten(1) @ weights

    assert torch.equal(crops.scores(model, images, 10), model(augmentation.centre_crop(images, 10)))
    resized = F.interpolate(images, size=15, mode="bilinear", antialias=True)
    every = crops.ten_crops(images, 10) + crops.ten_crops(resized, 10)
    expected = torch.stack([model(crop).softmax(1) for crop in every]).mean(0)
    torch.testing.assert_close(crops.scores(model, images, 10, scales=(1.2, 1.5)).exp(), expected)
