"""Readers: what is stored is what comes out, upright and canonical; everything else is one sentence, never a crash."""

import gzip
import os
import random
import struct
import tempfile
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from node.data.pictures import read_picture, read_picture_label
from node.data.readers import CaseFiles, LabelValues, read_case
from node.data.source import Unreadable
from node.data.volumes import read_volume, read_volume_label

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
MASK = (GREY > 127).astype(np.uint8)
CLASSES = LabelValues(("background", "nucleus"))


def one_sentence(error, path):
    """Every refusal: one line, one sentence, naming the file, with a remedy after the semicolon or a comma."""
    text = str(error.value if isinstance(error, pytest.ExceptionInfo) else error)
    assert path.name in text
    assert "\n" not in text
    assert text.endswith(".")
    assert "Traceback" not in text
    return text


def picture_case(folder, image, label=MASK, suffix=".png"):
    image_path, label_path = folder / f"image{suffix}", folder / "label.png"
    Image.fromarray(image).save(image_path)
    Image.fromarray(label).save(label_path)
    return CaseFiles("case", (image_path,), label_path)


def save_nifti(path, data, affine=None, **header):
    image = nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine, dtype=data.dtype)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


# Pictures


def test_grey_and_colour_come_as_stored(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "g.png")
    Image.fromarray(COLOUR).save(tmp_path / "c.png")
    grey, colour = read_picture(tmp_path / "g.png"), read_picture(tmp_path / "c.png")
    assert grey.dtype == colour.dtype == np.float32
    assert np.array_equal(grey, GREY[None])
    assert np.array_equal(colour, np.moveaxis(COLOUR, -1, 0))


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "I;16", "CMYK", "YCbCr"])
def test_modes_become_grey_or_colour(tmp_path, mode):
    suffix = ".jpg" if mode in ("CMYK", "YCbCr") else ".png"
    if mode == "I;16":
        picture = Image.fromarray(GREY.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(COLOUR).convert(mode)
    picture.save(tmp_path / f"x{suffix}", **({"quality": 100} if suffix == ".jpg" else {}))
    found = read_picture(tmp_path / f"x{suffix}")
    if mode in ("1", "LA"):
        assert np.array_equal(found, np.asarray(picture.convert("L"))[None])
    elif mode == "I;16":
        assert np.array_equal(found, np.asarray(picture)[None])
    else:
        with Image.open(tmp_path / f"x{suffix}") as saved:
            assert np.array_equal(found, np.moveaxis(np.asarray(saved.convert("RGB")), -1, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_orientation_is_honoured(tmp_path, orientation, suffix):
    path = tmp_path / f"x{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, GREY, extratags=[(274, 3, 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(GREY).save(path, exif=exif)
    upright = Image.fromarray(GREY)
    exif = upright.getexif()
    exif[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(upright))
    assert np.array_equal(read_picture(path)[0], expected)
    assert np.array_equal(read_picture_label(path), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_tiff_keeps_its_values(tmp_path, dtype):
    pixels = (RNG.random((6, 9)) * 1000 % 250).astype(dtype)
    tifffile.imwrite(tmp_path / "x.tif", pixels)
    assert np.array_equal(read_picture(tmp_path / "x.tif")[0], pixels.astype(np.float32))


def test_tiff_channels_colours_alpha_and_16_bit(tmp_path):
    deep = RNG.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(deep, -1, 0), photometric="rgb", planarconfig="separate")
    alpha = np.dstack([deep, deep[..., 0]])
    tifffile.imwrite(tmp_path / "alpha.tif", alpha, photometric="rgb", extrasamples=["unassalpha"])
    for name in ("deep", "planar", "alpha"):
        assert np.array_equal(read_picture(tmp_path / f"{name}.tif"), np.moveaxis(deep, -1, 0)), name
    five = RNG.integers(0, 9, (6, 9, 5), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "five.tif", five, photometric="minisblack", planarconfig="contig")
    assert np.array_equal(read_picture(tmp_path / "five.tif"), np.moveaxis(five, -1, 0))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_tiff_compressions(tmp_path, compression):
    Image.fromarray(COLOUR).save(tmp_path / "x.tif", compression=compression)
    found = read_picture(tmp_path / "x.tif")
    assert found.shape == (3, 7, 5)
    if compression != "jpeg":
        assert np.array_equal(found, np.moveaxis(COLOUR, -1, 0))


def test_tiff_where_white_is_zero_and_palettes(tmp_path):
    tifffile.imwrite(tmp_path / "white.tif", GREY, photometric="miniswhite")
    assert np.array_equal(read_picture(tmp_path / "white.tif")[0], 255 - GREY)
    palette = Image.fromarray(COLOUR).quantize(4)
    palette.save(tmp_path / "palette.tif")
    assert np.array_equal(
        read_picture(tmp_path / "palette.tif"), np.moveaxis(np.asarray(palette.convert("RGB")), -1, 0)
    )
    assert np.array_equal(read_picture_label(tmp_path / "palette.tif"), np.asarray(palette))


def test_a_stack_of_pictures_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((4, 6, 7), np.uint8), photometric="minisblack")
    with pytest.raises(Unreadable) as error:
        read_picture(tmp_path / "stack.tif")
    assert "stack" in one_sentence(error, tmp_path / "stack.tif")
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    first.save(tmp_path / "moving.png", save_all=True, append_images=[second])
    with pytest.raises(Unreadable, match="holds 2 pictures"):
        read_picture(tmp_path / "moving.png")


def test_channels_follow_the_task(tmp_path):
    grey, colour = picture_case(tmp_path, GREY), None
    assert np.array_equal(read_case(grey, 3, CLASSES).image, np.repeat(GREY[None], 3, 0))
    (tmp_path / "c").mkdir()
    colour = picture_case(tmp_path / "c", COLOUR)
    luma = read_case(colour, 1, CLASSES).image
    assert luma.shape == (1, 7, 5)
    assert luma.dtype == np.float32
    assert np.abs(luma[0] - np.asarray(Image.fromarray(COLOUR).convert("L"))).max() <= 1
    with pytest.raises(Unreadable, match="has 3 channels, but the task takes 2"):
        read_case(colour, 2, CLASSES)


def test_labels_of_many_kinds(tmp_path):
    palette = Image.fromarray(MASK)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    saved = {
        "grey.png": Image.fromarray(MASK),
        "palette.png": palette,
        "bits.png": Image.fromarray(MASK * 255).convert("1"),
        "equal.png": Image.fromarray(np.repeat(MASK[..., None], 3, -1)),
        "deep.png": Image.fromarray(MASK.astype(np.uint16)),
        "lzw.tif": Image.fromarray(MASK),
    }
    for name, picture in saved.items():
        picture.save(tmp_path / name, **({"compression": "tiff_lzw"} if name == "lzw.tif" else {}))
        assert np.array_equal(CLASSES.apply(read_picture_label(tmp_path / name), tmp_path / name), MASK), name
    tifffile.imwrite(tmp_path / "float.tif", MASK.astype(np.float32))
    assert np.array_equal(CLASSES.apply(read_picture_label(tmp_path / "float.tif"), tmp_path), MASK)


def test_labels_that_cannot_be_class_numbers(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    Image.fromarray(MASK).save(tmp_path / "lossy.jpg")
    for name, reason in {"colour.png": "coloured", "lossy.jpg": "JPEG"}.items():
        with pytest.raises(Unreadable, match=reason) as error:
            read_picture_label(tmp_path / name)
        one_sentence(error, tmp_path / name)


def test_a_255_mask_names_the_mapping_to_write(tmp_path):
    case = picture_case(tmp_path, GREY, MASK * 255)
    with pytest.raises(Unreadable) as error:
        read_case(case, 1, CLASSES)
    assert "labels: {255: nucleus}" in one_sentence(error, case.label)
    mapped = LabelValues(("background", "nucleus"), {255: "nucleus"})
    assert np.array_equal(read_case(case, 1, mapped).label, MASK)


@given(st.lists(st.integers(-300, 300), min_size=1, max_size=4, unique=True), st.randoms())
def test_mapping_is_a_function_of_the_value(values, random_):
    names = ("background", "a", "b")
    mapping = {value: random_.choice(names) for value in values}
    raw = np.array([[random_.choice([*values, 0]) for _ in range(6)]], np.int64)
    found = LabelValues(names, mapping).apply(raw, Path("labels/x.png"))
    expected = [[names.index(mapping.get(int(value), "background")) for value in raw[0]]]
    assert found.dtype == np.uint8
    assert found.tolist() == expected
    with pytest.raises(Unreadable, match="holds the value 301"):
        LabelValues(names, mapping).apply(np.append(raw, 301), Path("labels/x.png"))


@pytest.mark.parametrize("given_values", [None, {1: "nucleus"}, {0: "background"}])
def test_no_remedy_makes_a_structure_background(given_values):
    with pytest.raises(Unreadable, match=r"\{7: nucleus\}\.$") as error:
        LabelValues(("background", "cell", "nucleus"), given_values).apply(np.array([[0, 7]]), Path("labels/x.png"))
    assert "background" not in one_sentence(error, Path("labels/x.png"))


def test_a_mapping_to_an_unknown_class_is_an_error():
    with pytest.raises(ValueError, match="'lung', which is no class"):
        LabelValues(("background", "nucleus"), {1: "lung"})


@pytest.mark.parametrize("bad", [0.5, np.nan, np.inf, -1.0, 2.0, 1e30])
def test_float_labels_must_be_whole_known_and_finite(bad):
    raw = np.array([[0.0, 1.0], [1.00000006, bad]])
    with pytest.raises(Unreadable) as error:
        CLASSES.apply(raw, Path("labels/x.nii"))
    one_sentence(error, Path("labels/x.nii"))
    assert CLASSES.apply(raw[:1], Path("x")).tolist() == [[0, 1]]


def test_image_and_label_of_different_shapes(tmp_path):
    case = picture_case(tmp_path, GREY, MASK.T.copy())
    with pytest.raises(Unreadable, match=r"shape 5 x 7, but .* has 7 x 5"):
        read_case(case, 1, CLASSES)


# Volumes


@pytest.mark.parametrize("codes", ["RAS", "LAS", "PSR", "LSP", "AIR", "SLP"])
def test_every_orientation_becomes_canonical(tmp_path, codes):
    """The same anatomy stored along other axes gives the same array, spacing and affine."""
    data = RNG.integers(-900, 3000, (4, 5, 6), dtype=np.int16)
    image = nibabel.Nifti1Image(data, np.diag([2.0, 3.0, 5.0, 1.0]))
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
        )
    )
    nibabel.save(turned, tmp_path / "x.nii.gz")
    volume = read_volume(tmp_path / "x.nii.gz")
    assert volume.data.dtype == np.float32
    assert np.array_equal(volume.data[0], data)
    assert volume.spacing == (2.0, 3.0, 5.0)
    assert np.allclose(volume.affine, image.affine)


def test_scale_factors_and_units_are_applied(tmp_path):
    path = save_nifti(tmp_path / "x.nii", RNG.integers(0, 9, (3, 4, 5), dtype=np.int16), np.diag([2e3, 3e3, 4e3, 1]))
    image = nibabel.load(path)
    raw = np.asarray(image.dataobj)
    data = bytearray(path.read_bytes())
    struct.pack_into("<ff", data, 112, 2.5, -7.0)  # scl_slope, scl_inter
    data[123] = 3  # xyzt_units: micrometres
    path.write_bytes(data)
    volume = read_volume(path)
    assert np.allclose(volume.data[0], raw * 2.5 - 7)
    assert volume.spacing == pytest.approx((2.0, 3.0, 4.0))


@pytest.mark.parametrize("dtype", [">i2", ">f4", "<u2", "<i8", "<f8", "<u1", "<i4"])
def test_number_types_and_byte_orders(tmp_path, dtype):
    data = RNG.integers(0, 100, (3, 4, 5)).astype(dtype)
    header = nibabel.Nifti1Header(endianness=dtype[0] if dtype[0] in "<>" else "<")
    image = nibabel.Nifti1Image(data, np.eye(4), header, dtype=data.dtype)
    nibabel.save(image, tmp_path / "x.nii")
    assert np.array_equal(read_volume(tmp_path / "x.nii").data[0], data)
    assert np.array_equal(read_volume_label(tmp_path / "x.nii").data[0], data)


def test_channels_from_files_and_from_a_fourth_axis(tmp_path):
    data = RNG.integers(0, 99, (2, 4, 5, 6), dtype=np.int16)
    files = tuple(save_nifti(tmp_path / f"c_{n}.nii", data[n], np.diag([-1, 1, 1, 1])) for n in range(2))
    label = save_nifti(tmp_path / "l.nii", (data[0] > 50).astype(np.uint8), np.diag([-1, 1, 1, 1]))
    several = read_case(CaseFiles("c", files, label), 2, CLASSES)
    stacked = save_nifti(tmp_path / "s.nii", np.moveaxis(data, 0, -1).copy(), np.diag([-1, 1, 1, 1]))
    one = read_case(CaseFiles("c", (stacked,), label, modalities=2), 2, CLASSES)
    assert np.array_equal(several.image, data[:, ::-1])
    assert np.array_equal(one.image, several.image)
    assert np.array_equal(one.label, data[0, ::-1] > 50)
    with pytest.raises(Unreadable, match="has 2 channels, but the task takes 1"):
        read_case(CaseFiles("c", files, label), 1, CLASSES)
    with pytest.raises(Unreadable, match="4-dimensional"):
        read_case(CaseFiles("c", (stacked,), label), 2, CLASSES)


def test_a_label_elsewhere_in_space_is_refused_and_one_in_another_orientation_is_not(tmp_path):
    data = RNG.integers(0, 99, (4, 5, 6), dtype=np.int16)
    mask = (data > 50).astype(np.uint8)
    image = save_nifti(tmp_path / "i.nii", data)
    shifted = np.eye(4)
    shifted[0, 3] = 1.5
    moved = save_nifti(tmp_path / "moved.nii", mask, shifted)
    with pytest.raises(Unreadable, match="elsewhere in space") as error:
        read_case(CaseFiles("c", (image,), moved), 1, CLASSES)
    one_sentence(error, moved)
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 3
    turned = save_nifti(tmp_path / "turned.nii", mask[::-1].copy(), flipped)
    assert np.array_equal(read_case(CaseFiles("c", (image,), turned), 1, CLASSES).label, mask)


def test_voxels_of_half_a_micrometre_keep_their_size(tmp_path):
    path = save_nifti(tmp_path / "x.nii", np.zeros((3, 4, 5), np.int16), np.diag([4.321e-4, 5e-4, 2e-3, 1]))
    assert read_volume(path).spacing == pytest.approx((4.321e-4, 5e-4, 2e-3), rel=1e-5)


def test_headers_that_contradict_themselves_or_say_nothing(tmp_path):
    data = np.zeros((3, 4, 5), np.int16)
    image = nibabel.Nifti1Image(data, np.eye(4))
    image.set_qform(np.diag([1, 1, 1, 1]) + np.eye(4, k=3) * 40, code=1)
    image.set_sform(np.eye(4), code=1)
    nibabel.save(image, tmp_path / "two.nii")
    with pytest.raises(Unreadable, match="two different positions") as error:
        read_volume(tmp_path / "two.nii")
    one_sentence(error, tmp_path / "two.nii")
    path = save_nifti(tmp_path / "flat.nii", data, np.diag([1.0, 1, 1, 1]))
    raw = bytearray(path.read_bytes())
    raw[280:328] = bytes(48)  # sform of zeros, still said to be valid
    path.write_bytes(raw)
    with pytest.raises(Unreadable, match="without valid voxel sizes"):
        read_volume(path)


def test_a_header_that_claims_too_much_is_refused_before_memory_is_asked_for(tmp_path):
    path = save_nifti(tmp_path / "x.nii", np.zeros((3, 4, 5), np.int16))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<4h", raw, 40, 3, 32000, 32000, 32000)
    for name, content in {"x.nii": bytes(raw), "x.nii.gz": gzip.compress(bytes(raw))}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Unreadable, match="at most") as error:
            read_volume(tmp_path / name)
        one_sentence(error, tmp_path / name)


def test_a_picture_bomb_is_refused_before_memory_is_asked_for(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (12_000, 60_000):  # between the two: Pillow only warns about the first
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))
        (tmp_path / "bomb.png").write_bytes(content + chunk(b"IEND", b""))
        with pytest.raises(Unreadable) as error:
            read_picture(tmp_path / "bomb.png")
        assert "pixels" in one_sentence(error, tmp_path / "bomb.png")


# Bad files


def valid_files(folder):
    Image.fromarray(COLOUR).save(folder / "a.png")
    Image.fromarray(COLOUR).save(folder / "b.jpg")
    tifffile.imwrite(folder / "c.tif", GREY)
    save_nifti(folder / "d.nii", np.zeros((3, 4, 5), np.int16))
    save_nifti(folder / "e.nii.gz", RNG.integers(0, 99, (6, 7, 8), dtype=np.int16))
    return sorted(folder.iterdir())


def decode(path):
    return (read_volume if ".nii" in path.name else read_picture)(path)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.nii", "x.nii.gz"])
@pytest.mark.parametrize(
    "content",
    [b"", b"this is text\n" * 40, b"\x89PNG\r\n\x1a\n", b"\x1f\x8b", bytes(128) + b"DICM" + bytes(99), bytes(400)],
)
def test_files_that_are_something_else(tmp_path, name, content, capfd):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Unreadable) as error:
        decode(path)
    text = one_sentence(error, path)
    assert "DICOM" in text or b"DICM" not in content
    assert "empty" in text or content
    assert capfd.readouterr() == ("", "")


def test_files_cut_off(tmp_path, capfd):
    for path in valid_files(tmp_path):
        whole = path.read_bytes()
        for kept in (len(whole) // 4, len(whole) // 2, len(whole) - 30):
            path.write_bytes(whole[:kept])
            with pytest.raises(Unreadable) as error:
                decode(path)
            one_sentence(error, path)
    assert capfd.readouterr() == ("", "")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_damaged_files_are_read_or_refused_in_one_sentence(tmp_path, which, seed):
    """Nothing but Unreadable comes out of a file with random damage, and what is read is finite and has a shape."""
    folder = tmp_path / str(which)
    if not folder.exists():
        folder.mkdir()
        valid_files(folder)
    source = sorted(folder.iterdir())[which]
    damaged = bytearray(source.read_bytes())
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 8)):
        damaged[chance.randrange(min(len(damaged), 400))] = chance.randrange(256)
    path = tmp_path / source.name
    path.write_bytes(damaged)
    try:
        found = decode(path)
    except Unreadable as error:
        one_sentence(error, path)
    else:
        assert np.isfinite(getattr(found, "data", found)).all()


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(Unreadable, match="No such file"):
        decode(tmp_path / "gone.nii")


def test_a_file_that_may_not_be_read():
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "locked.png"
        Image.fromarray(GREY).save(path)
        path.chmod(0)
        path.parent.chmod(0o755)
        try:
            if user == 0:  # root may read everything, so look as nobody
                os.seteuid(65534)
            with pytest.raises(Unreadable, match="Permission denied") as error:
                decode(path)
        finally:
            os.seteuid(user)
        one_sentence(error, path)


def test_pixels_that_are_no_real_numbers_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "label.tif", np.zeros((7, 5), np.complex64))
    Image.fromarray(GREY).save(tmp_path / "image.png")
    with pytest.raises(Unreadable, match="no pixels of real numbers") as error:
        read_case(CaseFiles("c", (tmp_path / "image.png",), tmp_path / "label.tif"), 1, CLASSES)
    one_sentence(error, tmp_path / "label.tif")


def test_nan_pixels_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.array([[0, np.nan]], np.float32))
    with pytest.raises(Unreadable, match="NaN"):
        read_picture(tmp_path / "x.tif")


# The awkward files

READ_RIGHTLY = {
    "sct_t2_PSR.nii.gz": ((1, 52, 60, 55), (1.0, 1.0, 1.0)),
    "sct_t2_PSR_label.nii.gz": ((1, 52, 60, 55), (1.0, 1.0, 1.0)),
    "sct_t2s_label_int64.nii.gz": ((1, 49, 54, 9), (0.5, 0.5, 7.5)),
    "nib_bigendian_int16.nii": ((1, 33, 41, 25), (2.0, 2.0, 2.0)),
    "nib_tiny_no_qform.nii.gz": ((1, 4, 5, 7), (1.0, 3.0, 2.0)),
    "dicom_ct_series_totalseg_output.nii.gz": ((1, 512, 512, 20), (0.976562, 0.976562, 2.0)),
}
REFUSED = {
    "dcmqa_coronal_4d_LSP.nii": "4-dimensional",
    "nib_nifti2_4d.nii.gz": "4-dimensional",
    "sct_dmri_4d.nii.gz": "4-dimensional",
    "sct_warp_5d.nii.gz": "5-dimensional",
    "nib_bigendian_float32.nii": "153 voxels that are NaN",
    "made_nan_voxels.nii.gz": "14300 voxels that are NaN",
    "made_sform_qform_mismatch.nii.gz": "two different positions",
    "made_truncated_gzip.nii.gz": "ends too early",
    "rgb_datatype.nii.gz": "colour",
    "nib_header_without_image.hdr": "no single NIfTI file",
    "nib_minc2_baddim.mnc": "cannot be decoded",
}


def test_every_awkward_file_is_read_or_refused(shared_data, capfd):
    files = [path for path in sorted((shared_data / "awkward").rglob("*")) if path.is_file()]
    assert {path.name for path in files if path.suffix != ".dcm"} == READ_RIGHTLY.keys() | REFUSED.keys()
    for path in files:
        if path.name in READ_RIGHTLY:
            volume = read_volume(path)
            assert (volume.data.shape, pytest.approx(volume.spacing, abs=1e-5)) == READ_RIGHTLY[path.name]
        else:
            with pytest.raises(Unreadable, match=REFUSED.get(path.name, "DICOM|cannot be decoded")) as error:
                read_volume(path)
            one_sentence(error, path)
    assert capfd.readouterr() == ("", "")


def test_the_awkward_pair_lies_as_nibabel_says(shared_data):
    folder = shared_data / "awkward"
    case = CaseFiles("t2", (folder / "sct_t2_PSR.nii.gz",), folder / "sct_t2_PSR_label.nii.gz")
    scan = read_case(case, 1, LabelValues(("background", "cord")))
    image = nibabel.as_closest_canonical(nibabel.load(case.images[0]))
    label = nibabel.as_closest_canonical(nibabel.load(case.label))
    assert np.array_equal(scan.image[0], image.get_fdata())
    assert np.array_equal(scan.label, label.get_fdata())
    assert scan.label.sum() > 0
    assert np.array_equal(
        LabelValues(("background", "cord")).apply(
            read_volume_label(folder / "sct_t2s_label_int64.nii.gz").data, case.label
        ),
        nibabel.as_closest_canonical(nibabel.load(folder / "sct_t2s_label_int64.nii.gz")).get_fdata()[None],
    )
