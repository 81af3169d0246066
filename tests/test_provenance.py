"""The marks of AI-made media, as other programs read them."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from rbctl import provenance
from rbctl.errors import InputError
from rbctl.pictures import read_record, save_png
from rbctl.provenance import MADE_BY_AI, SHEET, SourceType, check_signer, xmp_packet

VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
PICTURE = Image.effect_noise((40, 30), 90).convert("RGB")


def exiftool(path: Path) -> dict[str, str]:
    """The tags that exiftool reads, by group and name."""
    if not shutil.which("exiftool"):
        pytest.skip("exiftool is not installed (Debian: libimage-exiftool-perl)")
    printed = subprocess.run(["exiftool", "-json", "-n", "-G0", str(path)], check=True, capture_output=True).stdout
    return json.loads(printed)[0]


@pytest.mark.parametrize("source_type", [MADE_BY_AI, SHEET])
def test_a_png_holds_the_source_type_where_xmp_belongs(tmp_path: Path, source_type: SourceType) -> None:
    save_png(PICTURE, tmp_path / "a.png", "a cat", {"seed": 3}, source_type)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.tobytes() == PICTURE.tobytes()
        assert opened.info["parameters"] == "a cat"
        packet = opened.text["XML:com.adobe.xmp"]
    description = ElementTree.fromstring(packet)[0][0]
    assert description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType") == VOCABULARY + source_type
    assert read_record(tmp_path / "a.png") == {"seed": 3}


def test_exiftool_reads_the_mark_of_a_png(tmp_path: Path) -> None:
    save_png(PICTURE, tmp_path / "a.png", "a cat", {"seed": 3})
    tags = exiftool(tmp_path / "a.png")
    assert tags["XMP:DigitalSourceType"] == VOCABULARY + "trainedAlgorithmicMedia"
    assert tags["PNG:Parameters"] == "a cat"
    assert "ExifTool:Warning" not in tags


def test_the_packet_is_the_same_every_time() -> None:
    assert xmp_packet() == xmp_packet()
    assert xmp_packet().isascii()


@pytest.fixture
def signer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A certificate of an authority of our own, named in the environment; returns the folder with both files."""
    pytest.importorskip("c2pa", reason="c2pa-python is not installed")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey) -> bytes:
        authority, now = key is issuer, datetime.datetime.now(datetime.timezone.utc)
        names = [
            x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, n), common])
            for n, common in ((name, _common(name)), ("authority", _common("authority")))
        ]
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        ) | dict.fromkeys(("encipher_only", "decipher_only"), False)
        usage |= {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[0])
            .issuer_name(names[1])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(authority, None), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(identifier, False)
            .add_extension(x509.KeyUsage(**usage), True)
        )
        if not authority:
            email = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(email, False)
        return builder.sign(issuer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    root, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    chain = certificate("photographer", own, root) + certificate("authority", root, root)
    (tmp_path / "chain.pem").write_bytes(chain)
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(own.private_bytes(serialization.Encoding.PEM, *plain))
    monkeypatch.setenv(provenance.CERTIFICATE, str(tmp_path / "chain.pem"))
    monkeypatch.setenv(provenance.KEY, str(tmp_path / "key.pem"))
    yield tmp_path
    monkeypatch.undo()


def _common(name: str):
    from cryptography import x509

    return x509.NameAttribute(x509.NameOID.COMMON_NAME, name)


def test_c2pa_finds_a_valid_signature_and_the_source_type(signer: Path) -> None:
    import c2pa

    check_signer()
    path = signer / "a.png"
    save_png(PICTURE, path, "a cat", {"seed": 3})
    with c2pa.Reader(str(path)) as reader:
        store = json.loads(reader.json())
    manifest = store["manifests"][store["active_manifest"]]
    (actions,) = [a["data"]["actions"] for a in manifest["assertions"] if a["label"].startswith("c2pa.actions")]
    assert actions[0]["digitalSourceType"] == VOCABULARY + "trainedAlgorithmicMedia"
    assert manifest["signature_info"]["issuer"] == "photographer"
    passed = {check["code"] for check in store["validation_results"]["activeManifest"]["success"]}
    assert {"claimSignature.validated", "assertion.dataHash.match"} <= passed
    # Nobody trusts an authority that was made a moment ago; nothing else is wrong.
    assert [check["code"] for check in store["validation_results"]["activeManifest"]["failure"]] == [
        "signingCredential.untrusted"
    ]
    assert read_record(path) == {"seed": 3}
    with Image.open(path) as opened:
        assert opened.tobytes() == PICTURE.tobytes()


def clip(path: Path) -> Path:
    from rbctl.plugins.animate import video

    pytest.importorskip("av", reason="av is not installed")
    video.write_mp4(path, [PICTURE] * 5, 8, "a cat")
    return path


def test_exiftool_reads_the_mark_of_an_mp4(tmp_path: Path) -> None:
    tags = exiftool(clip(tmp_path / "a.mp4"))
    assert tags["XMP:DigitalSourceType"] == VOCABULARY + "trainedAlgorithmicMedia"
    assert tags["QuickTime:Comment"] == "a cat"
    assert "ExifTool:Warning" not in tags


def test_exiftool_reads_the_mark_of_a_webp(tmp_path: Path) -> None:
    from rbctl.plugins.animate import video

    video.write_webp(tmp_path / "a.webp", [PICTURE, PICTURE.rotate(90)], 8)
    assert exiftool(tmp_path / "a.webp")["XMP:DigitalSourceType"] == VOCABULARY + "trainedAlgorithmicMedia"


def test_a_signed_clip_plays_and_keeps_its_mark(signer: Path) -> None:
    import c2pa

    path = clip(signer / "a.mp4")
    with c2pa.Reader(str(path)) as reader:
        results = json.loads(reader.json())["validation_results"]["activeManifest"]
    assert [check["code"] for check in results["failure"]] == ["signingCredential.untrusted"]
    import av

    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 5
    assert exiftool(path)["XMP:DigitalSourceType"] == VOCABULARY + "trainedAlgorithmicMedia"


def test_half_a_signer_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(provenance.CERTIFICATE, "chain.pem")
    monkeypatch.delenv(provenance.KEY, raising=False)
    with pytest.raises(InputError, match="RBCTL_C2PA_KEY: is not set"):
        check_signer()


@pytest.mark.parametrize(
    ("content", "complaint"), [(None, "cannot be read"), (b"no key", "not a PEM private key"), ("other", "cannot sign")]
)
def test_a_key_that_cannot_sign_is_one_line(signer: Path, content: bytes | str | None, complaint: str) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if content == "other":
        other, form = ec.generate_private_key(ec.SECP384R1()), serialization.PrivateFormat.PKCS8
        content = other.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    if content is None:
        (signer / "key.pem").unlink()
    else:
        assert isinstance(content, bytes)
        (signer / "key.pem").write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        check_signer()
