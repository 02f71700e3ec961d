"""One stored tile or strip as pixels: exactly what was written, or an error.

libjpeg passes most damage off as a warning and goes on with grey pixels, and OpenJPEG allocates whatever a
header asks for. So the sizes in the headers are held against the slide's before anything is decoded, and JPEG
is decoded by simplejpeg, which makes libjpeg's warnings errors (its pixels are those of imagecodecs).

Letters: h, w are the height and width of an image in pixels, c its channels.
"""

import struct
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, TiffPage

Segment = NDArray[np.uint8]  # (h, w, c)
Shape = tuple[int, int]  # height and width, px

JPEG = {COMPRESSION.JPEG}
APERIO_YCBC = COMPRESSION.APERIO_JP2000_YCBC  # the one code that says that the codec leaves YCbCr behind
JPEG_2000 = {APERIO_YCBC, COMPRESSION.APERIO_JP2000_RGB, COMPRESSION.JPEG2000}
# These decode into a buffer of the size that is expected, so they can't grow; WebP ends at 16,383 px a side.
OTHERS = {
    COMPRESSION.NONE,
    COMPRESSION.LZW,
    COMPRESSION.ADOBE_DEFLATE,
    COMPRESSION.DEFLATE,
    COMPRESSION.PACKBITS,
    COMPRESSION.ZSTD,
    COMPRESSION.WEBP,
}
BITS = 8
FRAMES = {0xC0, 0xC1, 0xC2, 0xC3}  # of JPEG: baseline, extended, progressive, lossless; all Huffman-coded
START, END, SCAN, APP0 = b"\xff\xd8", b"\xff\xd9", 0xDA, 0xE0
# Adobe's marker with transform 0: the channels are RGB as they are. The last one before the scan holds.
IS_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
SIZ = b"\xff\x4f\xff\x51"  # of JPEG 2000: start of the codestream and of the marker that holds its size


def check_format(page: TiffPage) -> None:
    """Refuse what would decode to other colours than the file means, or that no slide is written in.

    Raises:
        ValueError: names what it is.
    """
    if page.compression not in JPEG | JPEG_2000 | OTHERS:
        raise ValueError(f"its compression is {_name(page.compression)}, which no slide format uses")
    if page.bitspersample != BITS or page.dtype != np.uint8:
        raise ValueError(f"pixels are {page.bitspersample}-bit {page.dtype}, 8-bit ones are expected")
    if page.samplesperpixel not in (1, 2, 3, 4):
        raise ValueError(f"its pixels have {page.samplesperpixel} channels, grey or RGB is expected")
    grey_or_rgb = {PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB}
    decoded = grey_or_rgb | ({PHOTOMETRIC.YCBCR} if page.compression in _DECODED_TO_RGB else set())
    if page.photometric not in decoded:
        raise ValueError(
            f"its colours are {_name(page.photometric)} with {_name(page.compression)} compression; "
            "grey or RGB is expected"
        )
    if page.imagedepth != 1 or (page.planarconfig != 1 and page.samplesperpixel != 1):
        raise ValueError("its channels or focal planes are stored apart, one image of RGB pixels is expected")


_DECODED_TO_RGB = JPEG | {APERIO_YCBC, COMPRESSION.WEBP}


def decoded(
    page: TiffPage,
    data: bytes,
    index: int,
    *,
    tables: bytes | None,
    shapes: tuple[Shape, ...],
    reduction: int = 1,
) -> Segment:
    """Pixels of one segment.

    Args:
        page: that it belongs to.
        data: as stored.
        index: of the segment in the page, row by row.
        tables: what the JPEGs of a page share.
        shapes: heights and widths that it may have.
        reduction: 2, 4 or 8: of that many times fewer pixels a side, which JPEGs alone hold.

    Returns:
        (h, w, c) with one of `shapes`, reduced and rounded up.

    Raises:
        ValueError: it is damaged, or of another size.
    """
    if is_jpeg(page):
        alone = jpeg_alone(page, data, tables=tables or b"", shapes=shapes)
        shapes = tuple((-(-h // reduction), -(-w // reduction)) for h, w in shapes)
        pixels = jpeg_pixels(alone, n_channels=page.samplesperpixel, reduction=reduction)
    else:
        if page.compression in JPEG_2000:
            _check_shape(_jpeg2000_shape(data), shapes)
        # NDPI comes this way with its own header: its segments are stretches of one JPEG, without an end.
        segment = page.decode(data, index, jpegtables=tables, jpegheader=page.jpegheader)[0]
        assert segment is not None  # data is not None
        pixels = segment[0]
    _check_shape(pixels.shape[:2], shapes)
    if page.compression == APERIO_YCBC and pixels.shape[2] == len("YCC"):
        return _rgb_of_ycbcr(pixels)
    return pixels


def jpeg_pixels(data: bytes, *, n_channels: int, reduction: int = 1) -> Segment:
    """Pixels (h, w, c) of a JPEG of 8 bits, of which the damage that libjpeg notices is an error.

    Reduced by 2, 4 or 8, each 8 x 8 px of it are made from their 4 x 4, 2 x 2 or 1 x 1 lowest frequencies.
    """
    colours = "GRAY" if n_channels == 1 else "RGB"
    if reduction == 1:
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace=colours))
    h, w = (-(-side // reduction) for side in _jpeg_header(data)[0])
    return np.asarray(simplejpeg.decode_jpeg(data, colorspace=colours, min_height=h, min_width=w))


def is_jpeg(page: TiffPage) -> bool:
    """Whether each segment of a page is a JPEG of its own; NDPI's are stretches of one."""
    return page.compression in JPEG and page.jpegheader is None


def jpeg_alone(page: TiffPage, data: bytes, *, tables: bytes, shapes: tuple[Shape, ...]) -> bytes:
    """A stored JPEG with what its page says beside it, so that it decodes alone, to the colours it means.

    Args:
        page: of such JPEGs.
        data: as stored.
        tables: what the JPEGs of the page share.
        shapes: heights and widths that it may have.

    Raises:
        ValueError: its header is broken, or says another size than the page.
    """
    shape, n_channels, scan, is_jfif = _jpeg_header(data)
    _check_shape(shape, shapes)
    if n_channels != page.samplesperpixel or n_channels not in (1, 3):
        raise ValueError(f"a stored JPEG has {n_channels} channels, its page {page.samplesperpixel}")
    # Aperio stores RGB without a word in the JPEG, so libjpeg would take it for YCbCr.
    colours = IS_RGB if page.photometric == PHOTOMETRIC.RGB and not is_jfif else b""
    if tables or colours:
        data = START + tables.removeprefix(START).removesuffix(END) + data[2:scan] + colours + data[scan:]
    return data


def _jpeg_header(data: bytes) -> tuple[Shape, int, int, bool]:
    """Height and width, number of channels, position of the first scan, and whether it is a JFIF file."""
    shape, n_channels, is_jfif, position = (0, 0), 0, False, 2
    while data[position : position + 1] == b"\xff":
        marker, length = struct.unpack_from(">BH", data, position + 1)
        if marker == SCAN:
            return shape, n_channels, position, is_jfif
        if marker in FRAMES:
            h, w, n_channels = struct.unpack_from(">HHB", data, position + 5)
            shape = (h, w)
        is_jfif |= marker == APP0 and data[position + 4 : position + 8] == b"JFIF"
        position += 2 + length
    raise ValueError("a stored JPEG has a broken header")


def _jpeg2000_shape(data: bytes) -> Shape:
    """Height and width by the header of a JPEG 2000 codestream (ISO/IEC 15444-1, A.5.1)."""
    start = data.find(SIZ)
    if start < 0:
        raise ValueError("a stored JPEG 2000 has no header")
    right, bottom, left, top = struct.unpack_from(">4I", data, start + len(SIZ) + 4)
    return bottom - top, right - left


def _check_shape(shape: Shape, expected: tuple[Shape, ...]) -> None:
    if shape not in expected:
        raise ValueError(
            f"a stored tile is {shape[1]} x {shape[0]} px, {expected[0][1]} x {expected[0][0]} expected"
        )


def _rgb_of_ycbcr(pixels: Segment) -> Segment:
    h, w, _ = pixels.shape
    return np.asarray(Image.frombytes("YCbCr", (w, h), pixels.tobytes()).convert("RGB"))


def _name(code: Any) -> str:
    return str(getattr(code, "name", code))
