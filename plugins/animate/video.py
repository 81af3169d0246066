"""Frames as files that players and browsers know: MP4 and animated WebP, with the marks of AI-made media."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from rbctl.errors import InputError
from rbctl.files import write_bytes
from rbctl.provenance import signed, xmp_box, xmp_packet

# Hardly to be told from the frames. With several threads, or in assembler, equal frames do not always give equal files.
_X264 = {"crf": "15", "threads": "1", "x264-params": "asm=0"}
_WEBP_QUALITY = 90
_BT709, _LIMITED = 1, 1  # FFmpeg's numbers of the colours that players expect


def check_mp4() -> None:
    """Raises InputError where no MP4 can be written."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise InputError("--format: MP4 needs the package av; pip install 'rbctl[animate]', or take webp") from error


def write_mp4(path: Path, frames: Sequence[Image.Image], fps: int, comment: str) -> None:
    """Write H.264 in MP4, atomically; the same frames give the same file, unless it is signed.

    Args:
        frames: of one size, with even sides.
        comment: the container's comment.
    """
    import av

    with tempfile.TemporaryDirectory() as name:
        unmarked = Path(name) / "clip.mp4"
        with av.open(str(unmarked), "w", options={"movflags": "+faststart"}) as container:  # plays while it loads
            container.metadata["comment"] = comment
            stream = container.add_stream("libx264", rate=fps, options=_X264)
            stream.width, stream.height = frames[0].size
            stream.pix_fmt = "yuv420p"
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED
            for image in frames:
                frame = av.VideoFrame.from_image(image.convert("RGB"))
                converted = frame.reformat(
                    format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG", src_color_range="JPEG"
                )
                container.mux(stream.encode(converted))
            container.mux(stream.encode())
        content = unmarked.read_bytes()
    write_bytes(path, signed(content + xmp_box(), "video/mp4"))


def write_webp(path: Path, frames: Sequence[Image.Image], fps: int) -> None:
    """Write an animated WebP that repeats without end, atomically."""
    encoded = io.BytesIO()
    frames[0].save(
        encoded,
        format="WEBP",
        save_all=True,
        append_images=list(frames[1:]),
        duration=round(1000 / fps),
        loop=0,
        quality=_WEBP_QUALITY,
        xmp=xmp_packet().encode(),
    )
    write_bytes(path, signed(encoded.getvalue(), "image/webp"))
