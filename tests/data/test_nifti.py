"""Laws of reading and writing: the same bits come back, or one error names the file."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scanbridge.data.nifti import Volume, read, write
from scanbridge.errors import UserError
from scanbridge.files import sha256

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 0, 3, -120], [0, 1.5, 0, 10], [0, 0, 0, 1]])
SHEARED = AFFINE + np.array([[0, 0.4, 0, 0]] + [[0] * 4] * 3)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def image(data, affine=AFFINE, kind=nib.Nifti1Image, codes=(1, 1)):
    made = kind(data, affine)
    made.set_sform(affine, codes[0])
    made.set_qform(affine, codes[1])
    return made


def numbers(shape=(12, 9, 7), dtype=np.int16):
    return np.random.default_rng(0).integers(0, 120, shape).astype(dtype)


def whole(path: Path, data=None, **options) -> Path:
    path.write_bytes(gzip.compress(image(numbers() if data is None else data, **options).to_bytes(), mtime=0))
    return path


def with_header(folder: Path, name: str = "bad.nii", **fields) -> Path:
    """A good file whose header says something else."""
    content = bytearray(image(numbers()).to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]))
    for field, value in fields.items():
        header[field] = value
    content[:348] = header.binaryblock
    path = folder / name
    path.write_bytes(content if path.suffix == ".nii" else gzip.compress(bytes(content)))
    return path


def cut(folder: Path, share: float, name: str = "bad.nii.gz") -> Path:
    content = whole(folder / "good.nii.gz", numbers((40, 40, 40))).read_bytes()
    content = gzip.decompress(content) if name.endswith(".nii") else content
    (folder / name).write_bytes(content[: max(1, int(share * len(content)))])
    return folder / name


def bomb(folder: Path) -> Path:
    """A few voxels promised, 256 MiB of zeros behind them."""
    packer = zlib.compressobj(1, wbits=31)
    parts = [packer.compress(image(numbers()).to_bytes())]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(256)]
    (folder / "bad.nii.gz").write_bytes(b"".join([*parts, packer.flush()]))
    return folder / "bad.nii.gz"


def damaged_checksum(folder: Path) -> Path:
    content = bytearray(whole(folder / "bad.nii.gz").read_bytes())
    content[-6] ^= 1
    (folder / "bad.nii.gz").write_bytes(content)
    return folder / "bad.nii.gz"


def written(folder: Path, content: bytes, name: str = "bad.nii.gz") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def with_value(folder: Path, value: float, dtype=np.float32) -> Path:
    data = numbers(dtype=dtype)
    data[:2, 0, 0] = value
    return whole(folder / "bad.nii.gz", data)


def disagreeing(folder: Path) -> Path:
    made = image(numbers())
    moved = AFFINE.copy()
    moved[0, 3] += 1
    made.set_qform(moved, 1)
    return written(folder, gzip.compress(made.to_bytes()))


def a_folder(folder: Path) -> Path:
    (folder / "bad.nii.gz").mkdir()
    return folder / "bad.nii.gz"


RGB = np.zeros((5, 5, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
BROKEN = {
    "not there": (lambda f: f / "bad.nii.gz", "No such file"),
    "a folder": (a_folder, "directory"),
    "empty": (lambda f: written(f, b""), "0 bytes"),
    "one byte": (lambda f: written(f, b"\x1f"), "1 bytes"),
    "gzip of nothing": (lambda f: written(f, gzip.compress(b"")), "0 bytes"),
    "text": (lambda f: written(f, b"subject,flair\n" * 100), "not a NIfTI"),
    "gzip cut to 1 %": (lambda f: cut(f, 0.01), "truncated"),
    "gzip cut to 50 %": (lambda f: cut(f, 0.5), "truncated"),
    "gzip cut to 99 %": (lambda f: cut(f, 0.99), "truncated"),
    "gzip without its last byte": (lambda f: cut(f, 0.99999), "truncated"),
    "nii cut to 1 %": (lambda f: cut(f, 0.01, "bad.nii"), "truncated"),
    "nii cut to 99 %": (lambda f: cut(f, 0.99, "bad.nii"), "truncated"),
    "checksum": (damaged_checksum, "CRC"),
    "bomb": (bomb, "goes on"),
    "10 TB": (lambda f: with_header(f, dim=[3, 30000, 30000, 5600, 1, 1, 1, 1]), "30000"),
    "10 TB, gzip": (lambda f: with_header(f, "bad.nii.gz", dim=[3, 30000, 30000, 5600, 1, 1, 1, 1]), "30000"),
    "2 GB in few bytes": (lambda f: with_header(f, "bad.nii.gz", dim=[3, 1000, 1000, 1000, 1, 1, 1, 1]), "promises"),
    "voxels far behind": (lambda f: with_header(f, "bad.nii.gz", vox_offset=1e12), "promises"),
    "magic": (lambda f: with_header(f, magic=b"xyz"), "xyz"),
    "half of a pair": (lambda f: with_header(f, magic=b"ni1"), "hdr/.img"),
    "type": (lambda f: with_header(f, datatype=1234), "damaged header"),
    "no axes": (lambda f: with_header(f, dim=[0] * 8), "shape"),
    "no voxels": (lambda f: with_header(f, dim=[3, 12, 0, 7, 1, 1, 1, 1]), "shape"),
    "less than no voxels": (lambda f: with_header(f, dim=[3, -12, 9, -7, 1, 1, 1, 1]), "shape"),
    "2D": (lambda f: whole(f / "bad.nii.gz", numbers((12, 9))), "shape"),
    "4D": (lambda f: whole(f / "bad.nii.gz", numbers((12, 9, 7, 3))), r"shape \(12, 9, 7, 3\)"),
    "complex": (lambda f: whole(f / "bad.nii.gz", numbers(dtype=np.complex64)), "complex64"),
    "colours": (lambda f: whole(f / "bad.nii.gz", RGB), "type"),
    "NaN": (lambda f: with_value(f, np.nan), "2 of 756 voxels"),
    "infinite": (lambda f: with_value(f, -np.inf), "2 of 756 voxels"),
    "beyond float32": (lambda f: with_value(f, 1e300, np.float64), "2 of 756 voxels"),
    "slope": (lambda f: with_header(f, scl_slope=1.0, scl_inter=np.inf), "damaged header"),
    "forms disagree": (disagreeing, "sform and its qform disagree by up to 1.00 mm"),
    "no form": (lambda f: whole(f / "bad.nii.gz", codes=(0, 0)), "neither sform nor qform"),
    "flat form": (lambda f: with_header(f, srow_x=[0, 0, 0, 0]), "sform"),
    "no number in form": (lambda f: with_header(f, srow_x=[np.nan, 0, 0, 0]), "sform"),
    "quaternion": (lambda f: with_header(f, quatern_b=2.0), "qform"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_trusted_is_refused_by_name_in_little_memory(name, tmp_path):
    build, said = BROKEN[name]
    path = build(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=said) as caught:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    # Memory for stored voxels is asked for before they are read, but a page counts only once it is written to.
    assert peak < 8 << 20


def volume_or_error(path: Path) -> Volume | UserError:
    try:
        return read(path)
    except UserError as error:
        return error


@QUICK
@given(where=st.integers(0), flip=st.integers(1, 255))
def test_a_damaged_byte_in_a_gzip_is_refused_or_harmless(where, flip, tmp_path):
    good = whole(tmp_path / "good.nii.gz")
    content = bytearray(good.read_bytes())
    content[where % len(content)] ^= flip
    bad = written(tmp_path, bytes(content))
    outcome = volume_or_error(bad)
    if isinstance(outcome, UserError):
        assert str(bad) in str(outcome)
    else:
        assert np.array_equal(outcome.data, read(good).data)
        assert outcome.sha256 != read(good).sha256


@QUICK
@given(where=st.integers(0, 351), value=st.integers(0, 255))
def test_a_damaged_header_never_ends_in_anything_but_a_user_error(where, value, tmp_path):
    content = bytearray(image(numbers()).to_bytes())
    content[where] = value
    bad = written(tmp_path, bytes(content), "bad.nii")
    outcome = volume_or_error(bad)
    assert str(bad) in str(outcome) if isinstance(outcome, UserError) else np.isfinite(outcome.data).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=arrays(np.float32, (3, 4, 2), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)),
    affine=st.sampled_from([AFFINE, SHEARED, np.diag([-0.5, 0.25, 8, 1])]),
    name=st.sampled_from(["a.nii", "a.nii.gz"]),
)
def test_what_is_written_is_read_to_the_last_bit(data, affine, name, tmp_path):
    write(tmp_path / name, data, affine)
    volume = read(tmp_path / name)
    assert np.array_equal(volume.data, data)
    assert np.array_equal(volume.affine, np.float32(affine))
    assert np.array_equal(np.asanyarray(nib.load(tmp_path / name).dataobj), data), "another reader sees another image"


def test_the_same_volume_is_the_same_bytes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write(tmp_path / name, numbers(), AFFINE)
    assert (tmp_path / "a.nii.gz").read_bytes()[3:8] == bytes(5), "a name or a time stands in the gzip header"
    assert sha256(tmp_path / "a.nii.gz") == sha256(tmp_path / "b.nii.gz") == read(tmp_path / "b.nii.gz").sha256


def test_both_forms_are_set_so_that_no_viewer_has_to_guess(tmp_path):
    write(tmp_path / "a.nii.gz", numbers(), AFFINE)
    header = nib.load(tmp_path / "a.nii.gz").header
    for form, code in (header.get_sform(coded=True), header.get_qform(coded=True)):
        assert code > 0
        assert np.allclose(form, AFFINE, atol=1e-5)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match=r"nowhere/a\.nii\.gz cannot be written"):
        write(tmp_path / "nowhere" / "a.nii.gz", numbers(), AFFINE)
    (tmp_path / "a.nii.gz").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "a.nii.gz", numbers(), AFFINE)
    with pytest.raises(UserError, match="unknown file type"):
        write(tmp_path / "a.mha", numbers(), AFFINE)
    with pytest.raises(ValueError, match="finite"):
        write(tmp_path / "b.nii", numbers(dtype=np.float32) * np.nan, AFFINE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8", ">i2", ">f4"])
def test_every_type_of_number_is_read_as_it_is(dtype, tmp_path):
    data = numbers(dtype=np.dtype(dtype))
    kind = nib.Nifti1Image(data, AFFINE, dtype=data.dtype)
    kind.header.set_data_dtype(data.dtype)
    path = written(
        tmp_path,
        gzip.compress(
            nib.Nifti1Image(
                data, AFFINE, header=kind.header.as_byteswapped(">" if dtype[0] == ">" else "<"), dtype=data.dtype
            ).to_bytes()
        ),
    )
    volume = read(path)
    assert volume.data.dtype == np.float32
    assert np.array_equal(volume.data, data.astype(np.float32))


def test_slope_and_intercept_are_applied(tmp_path):
    volume = read(with_header(tmp_path, scl_slope=0.25, scl_inter=-1000))
    assert np.array_equal(volume.data, (numbers() * 0.25 - 1000).astype(np.float32))


def test_either_form_alone_is_enough(tmp_path):
    for codes in ((0, 1), (1, 0)):
        assert np.allclose(read(whole(tmp_path / "a.nii.gz", codes=codes)).affine, AFFINE, atol=1e-4)


def test_a_single_frame_is_a_volume(tmp_path):
    data = numbers((12, 9, 7, 1, 1))
    assert np.array_equal(read(whole(tmp_path / "a.nii.gz", data)).data, data[..., 0, 0])


def test_nifti_2_and_gzip_in_parts_are_read(tmp_path):
    data = numbers()
    content = image(data, kind=nib.Nifti2Image).to_bytes()
    parts = [gzip.compress(content[:700]), gzip.compress(content[700:])]
    volume = read(written(tmp_path, b"".join(parts)))
    assert np.array_equal(volume.data, data)
    assert np.array_equal(volume.affine, AFFINE)


def test_extensions_of_the_header_are_passed_over(tmp_path):
    made = image(numbers())
    made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 3000))
    assert np.array_equal(read(written(tmp_path, gzip.compress(made.to_bytes()))).data, numbers())


def test_any_axis_order_is_read_as_stored_with_its_own_grid(tmp_path):
    affine = np.array([[0.0, 0, -2, 60], [-0.7, 0, 0, 90], [0, -0.7, 0, 80], [0, 0, 0, 1]])
    volume = read(whole(tmp_path / "a.nii.gz", numbers(dtype=np.uint8), affine=affine))
    assert volume.grid.orientation == "PIL"
    assert volume.grid.shape == (12, 9, 7)
    assert np.allclose(volume.grid.spacing, (0.7, 0.7, 2))


def test_a_mask_is_labels_and_becomes_zero_and_one(tmp_path):
    labels = numbers() % 3
    assert np.array_equal(read(whole(tmp_path / "m.nii.gz", labels), mask=True).data, labels > 0)
    for wrong in (labels * 0.5, labels - 1.0):
        with pytest.raises(UserError, match="is no mask"):
            read(whole(tmp_path / "m.nii.gz", wrong), mask=True)
