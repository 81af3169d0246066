"""Marks of AI-made media that other programs read: IPTC's DigitalSourceType in XMP, and a C2PA manifest on request.

Sources: IPTC Photo Metadata Standard and its NewsCodes "digitalsourcetype"; XMP specification part 3 for the places in
files; C2PA technical specification.
"""

from __future__ import annotations

import functools
import io
import os
import uuid
from pathlib import Path
from typing import Any, Literal

from rbctl import __version__
from rbctl.errors import InputError, reason

SourceType = Literal["trainedAlgorithmicMedia", "compositeSynthetic", "algorithmicMedia"]
MADE_BY_AI: SourceType = "trainedAlgorithmicMedia"
SHEET: SourceType = "compositeSynthetic"  # AI-made pictures beside others
DRAWN: SourceType = "algorithmicMedia"  # by rules, without any network

CERTIFICATE, KEY = "RBCTL_C2PA_CERTIFICATE", "RBCTL_C2PA_KEY"  # environment variables: PEM files of who signs

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_XMP_BOX = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac")
_PACKET = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    Iptc4xmpExt:DigitalSourceType="{source_type}"
    xmp:CreatorTool="rbctl {version}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def xmp_packet(source_type: SourceType = MADE_BY_AI) -> str:
    """The XMP packet that says what a picture or clip is, in ASCII."""
    return _PACKET.format(source_type=_SOURCE_TYPES + source_type, version=__version__)


def xmp_box(source_type: SourceType = MADE_BY_AI) -> bytes:
    """The XMP packet as a box that stands behind the others of an MP4 file."""
    content = _XMP_BOX.bytes + xmp_packet(source_type).encode()
    return (8 + len(content)).to_bytes(4, "big") + b"uuid" + content


def signed(content: bytes, media_type: str, source_type: SourceType = MADE_BY_AI) -> bytes:
    """A media file with a C2PA manifest where the environment names who signs; else as it is.

    Args:
        content: a whole file.
        media_type: such as "image/png".

    Raises:
        InputError: see :func:`check_signer`, or the file cannot be signed with this certificate.
    """
    signer = _signer(os.environ.get(CERTIFICATE), os.environ.get(KEY))
    if signer is None:
        return content
    import c2pa

    created = {"action": "c2pa.created", "digitalSourceType": _SOURCE_TYPES + source_type}
    manifest = {
        "claim_generator_info": [{"name": "rbctl", "version": __version__}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [created]}}],
    }
    target = io.BytesIO()
    try:
        with c2pa.Builder(manifest, _without_thumbnail()) as builder:
            builder.sign(signer, media_type, io.BytesIO(content), target)
    except c2pa.C2paError as error:
        raise InputError(
            f"{os.environ[CERTIFICATE]}: {os.environ[KEY]} cannot sign with it ({reason(error)})"
        ) from error
    return target.getvalue()


def check_signer() -> None:
    """Tell before the work what would stop :func:`signed` after it.

    Raises:
        InputError: one of the two variables is not set, a file cannot be read, the key is of another kind than C2PA
            takes or not the certificate's, or the library is not installed.
    """
    from PIL import Image

    pixel = io.BytesIO()
    Image.new("L", (1, 1)).save(pixel, format="PNG")
    signed(pixel.getvalue(), "image/png")


@functools.cache
def _signer(certificate: str | None, key: str | None) -> Any:
    """c2pa's signer; None where neither is named."""
    if not certificate and not key:
        return None
    if not certificate or not key:
        unset = KEY if certificate else CERTIFICATE
        raise InputError(f"{unset}: is not set; {CERTIFICATE} and {KEY} name two PEM files, or unset both")
    try:
        import c2pa
    except ImportError as error:
        raise InputError(f"{CERTIFICATE}: the package c2pa-python is missing; pip install 'rbctl[c2pa]'") from error
    try:
        chain, private_key = Path(certificate).read_bytes(), Path(key).read_bytes()
    except OSError as error:
        named = f"{CERTIFICATE} or {KEY} names it"
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); {named}") from error
    try:
        return c2pa.Signer.from_info(c2pa.C2paSignerInfo(_algorithm(key, private_key), chain, private_key, None))
    except c2pa.C2paError as error:
        named = f"{certificate}: {key}"
        raise InputError(f"{named} cannot sign with it ({reason(error)}); see docs/responsible-use.md") from error


def _algorithm(path: str, private_key: bytes) -> bytes:
    """The name that C2PA has for signatures with a key of this kind."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(private_key, password=None)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not a PEM private key without password ({reason(error)})") from error
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size in (256, 384, 521):
        return {256: b"es256", 384: b"es384", 521: b"es512"}[key.key_size]
    if isinstance(key, rsa.RSAPrivateKey):
        return b"ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    raise InputError(f"{path}: C2PA takes no key of this kind; give one of P-256, P-384, P-521, Ed25519 or RSA")


@functools.cache
def _without_thumbnail() -> Any:
    """The manifest's own small JPEG of the picture would be larger than all else in it."""
    import c2pa

    return c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}})
