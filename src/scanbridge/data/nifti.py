"""NIfTI files: read whole and checked, or refused by name; written so that a reader never meets half a file."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from scanbridge.data.grid import Grid
from scanbridge.errors import UserError
from scanbridge.files import sha256, write_bytes

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_RATIO = 1032  # deflate cannot pack tighter: more is promised than such a file can hold
_SLACK = 1 << 20  # bytes that may follow the last voxel; some writers pad
_MAX_VOXELS = 1 << 30  # 4 GiB in float32
_HEADERS: dict[int, tuple[Any, bytes]] = {348: (nib.Nifti1Header, b"n+1"), 540: (nib.Nifti2Header, b"n+2")}
_EXPECTED = "a whole 3D NIfTI file (.nii or .nii.gz)"


@dataclass(frozen=True, eq=False)  # arrays have no single truth of equality
class Volume:
    """One image as it lies in its file.

    Parameters
    ----------
    data
        (I, J, K) float32 in the file's own axis order, slope and intercept applied, all finite.
    affine
        (4, 4) float64, from voxel index to mm, RAS+.
    path
        The file it came from.
    sha256
        Hash of the file's bytes, in hexadecimal digits.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    path: Path | None
    sha256: str

    @property
    def grid(self) -> Grid:
        """The voxel grid that the data lie on."""
        first, second, third = self.data.shape
        return Grid((first, second, third), self.affine)


class _Layout(NamedTuple):
    """What a header promises: where the voxels start, what they are, and how they become values at a place."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine: NDArray[np.float64]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read(path: str | Path, *, mask: bool = False) -> Volume:
    """Read a NIfTI file whole.

    The size of the file is held against its header before memory is taken, a gzip stream is followed to its checksum,
    and memory stays within the stored voxels plus their float32 copy.

    Parameters
    ----------
    path
        A .nii or .nii.gz file, NIfTI-1 or -2, three axes (more are accepted where they have length one).
    mask
        The file holds whole-numbered labels; every label but 0 becomes 1.

    Raises
    ------
    UserError
        Naming the file: not there, not readable, not NIfTI, truncated, damaged, not one 3D image of real numbers,
        NaN or infinite values, no geometry or two that disagree, or, for a mask, values that are not labels.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            stream: IO[bytes] = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
            layout, stored = _read_stored(stream, path, path.stat().st_size * (_GZIP_RATIO if packed else 1))
        digest = sha256(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or damaged ({error})", _EXPECTED, "copy the file again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})", _EXPECTED) from error
    data = _values(stored, layout)
    n_bad = data.size - int(np.count_nonzero(np.isfinite(data)))
    if n_bad:
        remedy = "find out what they stand for and write the image again without them"
        raise UserError(f"{path} holds {n_bad} of {data.size} voxels that are NaN or infinite", "numbers only", remedy)
    if mask:
        data = _labels(data, path)
    return Volume(data, layout.affine, path, digest)


def write(path: str | Path, data: NDArray[Any], affine: NDArray[np.float64], *, level: int = 6) -> None:
    """Write a volume as float32, with the same bytes for the same values.

    Parameters
    ----------
    path
        Ends in ``.nii.gz`` or ``.nii``.
    data
        (I, J, K), finite.
    affine
        (4, 4), from voxel index to mm, RAS+. It is stored as sform and qform; a sheared one, which a qform cannot
        hold, as sform alone.
    level
        Of gzip, 1 to 9: 1 is quick.

    Raises
    ------
    UserError
        When the file cannot be written.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"{path}: unknown file type", "a name that ends in .nii.gz or .nii")
    values = np.asarray(data, dtype=np.float32)
    if values.ndim != 3 or not np.isfinite(values).all():
        msg = f"{path}: only finite 3D volumes are written, not an array of shape {values.shape} with NaN or inf"
        raise ValueError(msg)
    image: Any = nib.Nifti1Image(values, affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="aligned")
    image.set_qform(affine, code="aligned", strip_shears=True)
    if _distance(image.get_qform(), affine, values.shape) > _form_tolerance(affine):
        image.set_qform(None)
    if not path.parent.is_dir():  # a mistyped folder is named, not made
        raise UserError(f"{path} cannot be written (no folder {path.parent})", "a folder that exists")
    content = image.to_bytes()
    write_bytes(path, gzip.compress(content, compresslevel=level, mtime=0) if path.suffix == ".gz" else content)


def _read_stored(stream: IO[bytes], path: Path, most: int) -> tuple[_Layout, NDArray[np.uint8]]:
    """Read header and stored bytes from a stream that can hold `most` bytes."""
    block = stream.read(348)
    if len(block) < 348:
        raise UserError(f"{path} holds {len(block)} bytes, less than a header", _EXPECTED, "copy the file again")
    if int.from_bytes(block[:4], "little") == 540 or int.from_bytes(block[:4], "big") == 540:
        block += stream.read(540 - 348)
    layout = _layout(block, path)
    promised = layout.offset + layout.n_bytes
    if promised > most:
        raise UserError(
            f"{path} is truncated: its header promises {promised} bytes, the file can hold {most} at most",
            _EXPECTED,
            "copy the file again",
        )
    _skip(stream, layout.offset - len(block))
    stored = np.empty(layout.n_bytes, dtype=np.uint8)
    n_read = 0
    while n_read < layout.n_bytes:
        piece = stream.read(min(_SLACK, layout.n_bytes - n_read))
        if not piece:
            raise EOFError(f"ends after {layout.offset + n_read} of the {promised} bytes that its header promises")
        stored[n_read : n_read + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        n_read += len(piece)
    # Reading on reaches the end of a gzip stream, which is where its checksum is compared.
    if len(stream.read(_SLACK + 1)) > _SLACK:
        raise UserError(f"{path} goes on after the {promised} bytes that its header promises", _EXPECTED)
    return layout, stored


def _skip(stream: IO[bytes], n_bytes: int) -> None:
    """Read past header extensions without holding them."""
    while n_bytes > 0:
        piece = stream.read(min(_SLACK, n_bytes))
        if not piece:
            raise EOFError("ends before the first voxel")
        n_bytes -= len(piece)


def _layout(block: bytes, path: Path) -> _Layout:
    """Read what a header promises, and refuse what is not one 3D image of real numbers at a known place."""
    sizes = {"<": int.from_bytes(block[:4], "little"), ">": int.from_bytes(block[:4], "big")}
    order = next((order for order, size in sizes.items() if size in _HEADERS), None)
    if order is None:
        raise UserError(f"{path} is not a NIfTI file", _EXPECTED, "convert it, for example with dcm2niix")
    header_type, magic = _HEADERS[sizes[order]]
    header = header_type(block, endianness=order, check=False)
    if bytes(header["magic"].tobytes())[:3] != magic:
        remedy = "write .hdr/.img pairs and Analyze images as one .nii.gz file"
        raise UserError(
            f"{path} is not a single-file NIfTI image (magic {header['magic'].item()!r})", _EXPECTED, remedy
        )
    try:
        slope, intercept = header.get_slope_inter()
        dtype = header.get_data_dtype()
        offset = int(header["vox_offset"]) or header.single_vox_offset
    except (nib.spatialimages.HeaderDataError, KeyError, ValueError, OverflowError) as error:
        raise UserError(f"{path} has a damaged header ({error})", _EXPECTED) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise UserError(f"{path} holds voxels of type {dtype}", "integers or floats up to 64 bit")
    if offset < len(block) + 4:
        raise UserError(f"{path} has a damaged header (voxels start at byte {offset})", _EXPECTED)
    shape = _shape(header, path)
    slope, intercept = (1.0, 0.0) if slope is None else (float(slope), float(intercept))
    return _Layout(shape, dtype, offset, slope, intercept, _affine(header, shape, path))


def _shape(header: Any, path: Path) -> tuple[int, int, int]:
    """Three axes; further ones may stand there with length one."""
    n_axes, *lengths = (int(n) for n in header["dim"])
    shape = tuple(lengths[:n_axes])
    if not 3 <= n_axes <= 7 or any(n != 1 for n in shape[3:]):
        shown = shape if 0 < n_axes <= 7 else f"({n_axes} axes)"
        raise UserError(f"{path} has shape {shown}", "one 3D volume", "split a series into one file for each volume")
    if min(shape) < 1 or math.prod(shape) > _MAX_VOXELS:
        raise UserError(f"{path} has shape {shape}", f"between 1 and {_MAX_VOXELS} voxels", "crop or resample it")
    return shape[0], shape[1], shape[2]


def _affine(header: Any, shape: tuple[int, int, int], path: Path) -> NDArray[np.float64]:
    """Give the sform or, where only that is set, the qform; both set must say the same."""
    try:
        forms = {
            name: form
            for name, form in (("sform", _form(header, "s")), ("qform", _form(header, "q")))
            if form is not None
        }
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise UserError(f"{path} has a damaged qform or sform ({error})", _EXPECTED) from error
    for name, form in forms.items():
        if not np.isfinite(form).all() or abs(np.linalg.det(form[:3, :3])) < 1e-12:
            raise UserError(f"{path} has a damaged {name}: {form[:3].tolist()}", "an invertible affine in mm")
    if not forms:
        raise UserError(
            f"{path} has neither sform nor qform: where its voxels lie in the patient is unknown",
            "a file with its geometry",
            "convert it again from DICOM, or copy the geometry from the image it was made from (fslcpgeom)",
        )
    affine = next(iter(forms.values()))
    if len(forms) == 2:
        distance = _distance(forms["sform"], forms["qform"], shape)
        if distance > _form_tolerance(affine):
            raise UserError(
                f"{path}: its sform and its qform disagree by up to {distance:.2f} mm",
                "one geometry",
                "find out which one is right and set the other to it (fslorient -copysform2qform or -copyqform2sform)",
            )
    return affine


def _form(header: Any, which: str) -> NDArray[np.float64] | None:
    """Give the s- or qform where its code says that it is set."""
    form = header.get_sform(coded=True)[0] if which == "s" else header.get_qform(coded=True)[0]
    return None if form is None else np.asarray(form, dtype=np.float64)


def _distance(a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance in mm between the places that two affines give to the corners of a volume."""
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in shape[:3]), [1], indexing="ij")).reshape(4, -1)
    return float(np.linalg.norm(((a - b) @ corners)[:3], axis=0).max())


def _form_tolerance(affine: NDArray[np.float64]) -> float:
    """Give a tenth of the smallest voxel: the rounding of quaternions stays far below, a wrong geometry far above."""
    return 0.1 * float(np.linalg.norm(affine[:3, :3], axis=0).min())


def _values(stored: NDArray[np.uint8], layout: _Layout) -> NDArray[np.float32]:
    """Apply slope and intercept in float64, one slice at a time; what float32 cannot hold becomes infinite."""
    raw = stored.view(layout.dtype).reshape(layout.shape, order="F")
    values = np.empty(layout.shape, dtype=np.float32, order="F")
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(layout.shape[2]):
            values[..., k] = raw[..., k] * np.float64(layout.slope) + np.float64(layout.intercept)
    return values


def _labels(data: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    """Hold a mask to whole numbers from 0 on and give 0 or 1."""
    if data.min() < 0 or np.any(data != np.round(data)):
        raise UserError(
            f"{path} is no mask: its values run from {data.min():g} to {data.max():g} and are not all whole labels",
            "0 outside and a whole number inside",
            "check that the column holds masks, or threshold the probabilities first",
        )
    labels: NDArray[np.float32] = (data != 0).astype(np.float32)
    return labels
