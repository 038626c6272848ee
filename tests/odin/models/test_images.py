from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from odin.models.image_files import find_images
from odin.models.images import IMAGENET_MEAN, IMAGENET_STD, ImageError, Preprocess, load_image, to_rgb


def photograph(width, height, seed=0):
    """Smooth structure and noise: what tells one resampling from another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = 90 * np.sin(x[..., None] / (5 + np.arange(3))) * np.cos(y[..., None] / 9) + 128
    return Image.fromarray((waves + rng.normal(0, 20, (height, width, 3))).clip(0, 255).astype(np.uint8))


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


# --- Preprocess --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (257, 256), (640, 427), (100, 80), (301, 257)])
@pytest.mark.parametrize(
    ("resize", "crop"), [(256, (224, 224)), (232, (224, 224)), (64, (96, 80)), ((70, 90), (64, 64))]
)
def test_bit_equal_to_torchvision(size, resize, crop):
    transforms = pytest.importorskip("torchvision.transforms", exc_type=(ImportError, RuntimeError))
    image = photograph(*size)
    expected = transforms.Compose(
        [
            transforms.Resize(resize),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )(image)
    assert torch.equal(Preprocess(resize=resize, crop=crop)(image), expected[None])


def test_shape_type_and_layout():
    values = Preprocess()(photograph(500, 375))
    assert (values.shape, values.dtype, values.is_contiguous()) == ((1, 3, 224, 224), torch.float32, True)


def test_values_are_normalised_per_channel():
    values = Preprocess()(Image.new("RGB", (300, 300), (255, 0, 51)))
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert values.amin((0, 2, 3)).tolist() == pytest.approx(expected)
    assert torch.equal(values.amin((0, 2, 3)), values.amax((0, 2, 3)))


def test_resize_is_antialiased():
    # A pattern that changes from pixel to pixel averages to grey; without a filter it would stay black or white.
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    middle = Preprocess(resize=128, crop=(100, 100), mean=(0, 0, 0), std=(1, 1, 1))(Image.fromarray(stripes))
    assert ((middle > 0.4) & (middle < 0.6)).all()


def test_crop_is_taken_from_the_middle():
    image = Image.new("RGB", (9, 5))
    image.putpixel((4, 2), (255, 255, 255))
    values = Preprocess(resize=5, crop=(1, 1), mean=(0, 0, 0), std=(1, 1, 1))(image)
    assert values.flatten().tolist() == [1.0, 1.0, 1.0]


def test_a_smaller_image_is_padded_with_black():
    plain = Preprocess(resize=2, crop=(5, 4), mean=(0, 0, 0), std=(1, 1, 1))
    values = plain(Image.new("RGB", (2, 2), (255, 255, 255)))[0, 0]
    expected = torch.zeros(5, 4)
    expected[1:3, 1:3] = 1
    assert torch.equal(values, expected)


def test_for_size_keeps_seven_eighths():
    assert Preprocess.for_size(224, 224) == Preprocess()
    assert Preprocess.for_size(32, 32) == Preprocess(resize=37, crop=(32, 32))
    assert Preprocess.for_size(60, 80) == Preprocess(resize=(60, 80), crop=(60, 80))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 0}, "positive"),
        ({"crop": (224, 0)}, "positive"),
        ({"interpolation": "linear"}, "'linear'.*bilinear"),
        ({"std": (1.0, 0.0, 1.0)}, "std not zero"),
        ({"mean": (0.5,)}, "one value per RGB channel"),
    ],
)
def test_impossible_preprocessing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**options)


# --- load_image --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "YCbCr"])
def test_any_colour_mode_becomes_rgb(tmp_path, mode):
    path = save(tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png"), photograph(50, 40).convert(mode))
    assert load_image(path, Preprocess()).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "webp", "ppm", "tiff"])
def test_formats(tmp_path, suffix):
    path = save(tmp_path / f"x.{suffix}", photograph(50, 40))
    assert load_image(path, Preprocess(resize=32, crop=(32, 32))).shape == (1, 3, 32, 32)


def test_decoded_like_pil(tmp_path):
    path = save(tmp_path / "x.jpg", photograph(300, 260), quality=90)
    assert torch.equal(load_image(path, Preprocess()), Preprocess()(Image.open(path).convert("RGB")))


def test_exif_orientation_is_applied(tmp_path):
    upright = photograph(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: rotate by 270 degrees to show
    path = save(tmp_path / "x.png", upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert np.array_equal(np.asarray(to_rgb(Image.open(path))), np.asarray(upright))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    levels = np.array([[0, 256, 32768, 65535]], np.uint16)
    path = save(tmp_path / "x.png", Image.fromarray(levels))
    assert np.asarray(to_rgb(Image.open(path)))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.98])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_file(tmp_path, suffix, keep):
    whole = save(tmp_path / f"whole.{suffix}", photograph(300, 200)).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(ImageError) as caught:
        load_image(path, Preprocess())
    assert caught.value.path == path
    assert caught.value.reason
    assert str(path) not in caught.value.reason
    assert "\n" not in caught.value.reason


def test_text_named_as_an_image(tmp_path):
    (tmp_path / "x.jpg").write_text("not an image")
    with pytest.raises(ImageError, match=r"x\.jpg: cannot identify image file"):
        load_image(tmp_path / "x.jpg", Preprocess())


def test_missing_file(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: No such file"):
        load_image(tmp_path / "gone.png", Preprocess())


def test_a_strip_that_would_need_gigapixels(tmp_path):
    path = save(tmp_path / "strip.png", Image.new("RGB", (30000, 1)))
    with pytest.raises(ImageError, match="30000 x 1 pixels is too long and thin"):
        load_image(path, Preprocess())


def test_floating_point_pixels(tmp_path):
    path = save(tmp_path / "x.tiff", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(ImageError, match="floating-point"):
        load_image(path, Preprocess())


# --- find_images -------------------------------------------------------------------------------------------------


def test_folders_are_searched_below_and_sorted(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a.jpeg", "c/d/x.webp", "c/notes.txt", ".hidden/y.jpg", "b/._1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in find_images([tmp_path])] == [
        "a.jpeg",
        "b/1.png",
        "b/2.JPG",
        "c/d/x.webp",
    ]


def test_files_are_taken_in_the_order_given_whatever_their_suffix(tmp_path):
    for name in ("z.data", "a.jpg"):
        (tmp_path / name).touch()
    given = [tmp_path / "z.data", tmp_path / "a.jpg", tmp_path / "z.data"]
    assert find_images(map(str, given)) == given


def test_an_empty_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=rf"no images in {tmp_path}: .*\.jpeg, \.jpg, \.png"):
        find_images([tmp_path])


def test_a_missing_path_is_an_error():
    with pytest.raises(ValueError, match="input /nowhere/x does not exist"):
        find_images([Path("/nowhere/x")])
