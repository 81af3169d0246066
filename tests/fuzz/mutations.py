"""Valid documents made invalid by their grammar: a document has a form, and a form knows what may go wrong in it.

Every mutation is drawn from one generator, so that a seed repeats it.
"""

from __future__ import annotations

import copy
import io
import json
import re
import string
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save as save_safetensors

Random = np.random.Generator


@dataclass(frozen=True)
class Document:
    """A file of a reader.

    Attributes:
        path: in the reader's folder.
        content: the valid one, as ``write`` takes it.
        write: makes its bytes.
        mutate: makes other bytes of it.
    """

    path: str
    content: Any
    write: Callable[[Any], bytes]
    mutate: Callable[[Any, Random], bytes]


# --- words and numbers ----------------------------------------------------------------------------------------------

NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, -0.0, 0.5, 1.5, -0.5, 3.0, 255, 2**31, 2**63, 2**64, 10**30, -(10**30), 10**400),
    *(1e-320, 1e38, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
)
WORDS: tuple[str, ...] = (
    *(
        "",
        " ",
        ".",
        "..",
        "-",
        "--",
        "x" * 300,
        "x" * 20_000,
        "word " * 200,
        "نص",
        "猫",
        "👩‍👩‍👧",
        "e\u0301",
        "\ufeff",
        "ß",
    ),
    *(
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\x",
        "C:\\x",
        "a\\b",
        "a/b/c",
        "~",
        "file:///etc/passwd",
        "con",
        "a:b",
    ),
    *("a\0b", "\u2028", "\x1b[31m", "\r\n", "\t", "\x7f", "\ud800", "\udfff\ud800", "\\ud800", "\\1", "\\g<1>"),
    *(
        "{x}",
        "{",
        "}",
        "{}",
        "{0}",
        "{x.y}",
        "{x:>99999999}",
        "%s",
        "%99999999d",
        "$HOME",
        "`id`",
        "$(id)",
        "; id",
        "| id",
    ),
    *("nan", "inf", "-inf", "1e999", "0x10", "1_000", "٣", "²", "1,5", "true", "null", "[1]", '{"a": 1}', '"', "'"),
    *(
        "<script>alert(1)</script>",
        "(a+)+$",
        "a" * 60 + "!",
        "pipe:id",
        "http://127.0.0.1:9/x",
        "hug",
        "mini",
        "cat.png",
    ),
)


def _deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


OTHERS: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [None], {"": ""}, [0, 0, 1, 1], [1, 1, 0, 0], [float("nan")] * 4, ["x"] * 3000),
    *({"a": {"b": 1}}, {"__class__": "x"}, _deep(20), _deep(300), {str(k): k for k in range(500)}, [1e308] * 17),
)


def number(random: Random) -> Any:
    return NUMBERS[random.integers(len(NUMBERS))]


def word(random: Random) -> str:
    return WORDS[random.integers(len(WORDS))]


def odd(value: Any, random: Random) -> Any:
    """Something in the place of a value: as a rule of its own type, so that it gets past the first check."""
    what = random.random()
    if isinstance(value, float | int) and not isinstance(value, bool) and what < 0.6:
        return number(random)
    if isinstance(value, str) and what < 0.6:
        return (word(random), value + word(random), word(random) + value, value * 50, value.upper())[random.integers(5)]
    if isinstance(value, list) and what < 0.5:
        return ([], value * 2, value * 1000, value[1:], value[::-1], [value], [*value, None])[random.integers(7)]
    if isinstance(value, dict) and what < 0.5:
        return ({}, [value], list(value), {**value, word(random): word(random)}, {})[random.integers(5)]
    if isinstance(value, bool) or what > 0.9:
        return (str(value)[:100_000], [value], {"a": value})[random.integers(3)]
    choices = (number(random), word(random), copy.deepcopy(OTHERS[random.integers(len(OTHERS))]))
    return choices[random.integers(3)]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all parts of a plain value."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for k, part in enumerate(value):
            yield from places(part, (*path, k))


def broken(value: Any, random: Random) -> Any:
    """A plain value with one to three parts replaced, removed, renamed, doubled or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(random.integers(1, 4)):
        paths = list(places(value))
        path = paths[random.integers(len(paths))]
        if not path:
            if random.random() < 0.1:
                return odd(value, random)
            continue
        parent = value
        for step in path[:-1]:
            parent = parent[step]
        what, step = random.random(), path[-1]
        if what < 0.7:
            parent[step] = odd(parent[step], random)
        elif what < 0.8:
            del parent[step]
        elif isinstance(parent, dict):
            name = word(random) if what < 0.9 else str(step) + "s"
            parent[name] = parent.pop(step) if what < 0.95 else parent[step]
        elif what < 0.9:
            parent.insert(random.integers(len(parent)), copy.deepcopy(parent[step]))
        else:
            other = random.integers(len(parent))
            parent[step], parent[other] = parent[other], parent[step]
    return value


# --- bytes and text -------------------------------------------------------------------------------------------------


def torn(content: bytes, random: Random) -> bytes:
    """Bytes with some changed, a number among them driven to its limit, cut short, or with a part doubled or gone."""
    what, changed = random.random(), bytearray(content)
    if not content:
        return random.bytes(10)
    start = int(random.integers(len(content)))
    if what < 0.35:
        for place in random.integers(0, len(content), random.integers(1, 8)):
            changed[place] = random.integers(256)
    elif what < 0.5:
        for place in random.integers(0, len(content), random.integers(1, 4)):
            changed[place] ^= 1 << random.integers(8)
    elif what < 0.7:  # sizes stand in the first bytes, as a rule
        near, length = int(random.integers(min(len(content), 300))), int(random.choice([1, 2, 4, 8]))
        limits = (b"\0", b"\xff", b"\x7f" + b"\xff" * (length - 1), b"\xff" * (length - 1) + b"\x7f", b"\0\0\x10\0")
        changed[near : near + length] = (limits[random.integers(len(limits))] * length)[:length]
    elif what < 0.85:
        del changed[start:]
    elif what < 0.93:
        changed[start:start] = content[start : start + random.integers(1, 200)]
    else:
        del changed[start : start + random.integers(1, 200)]
    return bytes(changed)


def _bytes_or(mutate: Callable[[Any, Random], bytes], write: Callable[[Any], bytes]) -> Callable[[Any, Random], bytes]:
    """Mutated by the grammar as a rule; else the bytes of the valid file torn."""
    return lambda content, random: mutate(content, random) if random.random() < 0.8 else torn(write(content), random)


def _as_bytes(content: bytes) -> bytes:
    return content


def file(path: str, content: bytes) -> Document:
    """Bytes of any form."""
    return Document(path, content, _as_bytes, torn)


_TOKEN = re.compile(r"(--\w+|-?\d+(?:\.\d+)?|\w+|\s+)")


def broken_text(content: str, random: Random) -> bytes:
    parts = [part for part in _TOKEN.split(content) if part]
    for _ in range(random.integers(1, 4)):
        k = random.integers(len(parts))
        what = random.random()
        if what < 0.5:
            part = parts[k]
            parts[k] = str(number(random) if part.strip("-").isdecimal() and random.random() < 0.6 else word(random))
        elif what < 0.6:
            parts[k] = ""
        elif what < 0.7:
            parts[k] *= int(random.integers(2, 300))
        elif what < 0.85:
            parts.insert(k, parts[random.integers(len(parts))])
        else:
            other = random.integers(len(parts))
            parts[k], parts[other] = parts[other], parts[k]
    return "".join(parts).encode("utf-8", "surrogatepass")


def text(path: str, content: str) -> Document:
    """Words, numbers and marks: prompts.txt, CSV, lists."""
    return Document(path, content, str.encode, _bytes_or(broken_text, str.encode))


# --- JSON and YAML --------------------------------------------------------------------------------------------------

# What no value of Python is written as. A marker stands for it, and is replaced in the text.
_JSON = {
    "1e400": "1e400",
    "-1e400": "-1e400",
    "nan": "NaN",
    "infinity": "-Infinity",
    "minus0": "-0",
    "hex": "0x10",
    "digits": "9" * 5000,
    "open": "[" * 50_000,
    "deep": "[" * 30_000 + "]" * 30_000,
    "half": '"\\ud800"',
    "keys": '{"a":' * 30_000,
    "twice": '{"a": 1, "a": [2]}',
    "bare": "x",
    "single": "'x'",
    "nothing": "",
}
_YAML = {
    "nan": ".nan",
    "infinity": "-.inf",
    "minus0": "-0.0",
    "1e400": "1.0e+400",
    "digits": "9" * 5000,
    "half": '"\\ud800"',
    "sixty": "1:30",
    "date": "2020-01-01",
    "time": "2020-01-01 01:01:01.5 +25:00",
    "yes": "yes",
    "octal": "0o17",
    "code": "!!python/object/apply:os.system [id]",
    "alias": "&a [*a]",
    "unknown": "*b",
    "binary": "!!binary aGk=",
    "set": "!!set {a}",
    "merge": "{<<: {a: 1}, b: 2}",
    "float": "!!float x",
    "int": "!!int ''",
    "deep": "[" * 2000,
    "key": "{[a]: b}",
    "no": "? no\n",
    "tag": "!x y",
    "colon": "a: b: c",
    "pairs": "!!omap [a: 1]",
    "tab": "\t- x",
}


def _marked(text: str, raw: Mapping[str, str]) -> str:
    return re.sub(r"""["']@(\w+)@["']""", lambda match: raw.get(match[1], match[0]), text)


def _with_raw(value: Any, raw: Mapping[str, str], random: Random) -> Any:
    """With a marker in the place of one part."""
    value = copy.deepcopy(value)
    paths = [path for path in places(value) if path]
    if not paths:
        return value
    path = paths[random.integers(len(paths))]
    parent = value
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = f"@{list(raw)[random.integers(len(raw))]}@"
    return value


def _doubled_key(text: str, random: Random) -> str:
    """A key of JSON or YAML twice in one mapping, with another value."""
    keys = list(re.finditer(r'"\w+": ', text)) or list(re.finditer(r"(?<=\n)( *)[\w]+: ", text))
    if not keys:
        return text
    key = keys[random.integers(len(keys))]
    other = f"{key[0]}{number(random)}"
    return text[: key.start()] + other + (", " if '"' in key[0] else "\n") + text[key.start() :]


def _mutated(value: Any, raw: Mapping[str, str], dump: Callable[[Any], str], random: Random) -> bytes:
    what = random.random()
    value = _with_raw(value, raw, random) if what < 0.25 else broken(value, random)
    text = _marked(dump(value), raw)
    if what > 0.92:
        text = _doubled_key(text, random)
    return text.encode("utf-8", "surrogatepass")


def _dump_yaml(value: Any) -> str:
    try:
        return yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
    except (yaml.YAMLError, RecursionError, UnicodeEncodeError):
        return json.dumps(value)  # YAML too


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def broken_json(value: Any, random: Random) -> bytes:
    return _mutated(value, _JSON, json.dumps, random)


def as_lines(rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _broken_lines(rows: Any, random: Random) -> bytes:
    lines = [json.dumps(row).encode() for row in rows]
    k = random.integers(len(lines))
    lines[k] = broken_json(rows[k], random)
    what = random.random()
    if what < 0.1:
        lines.insert(k, lines[random.integers(len(lines))])
    elif what < 0.15:
        lines = []
    return b"\n".join(lines) + b"\n" * (what < 0.9)


def as_yaml(value: Any) -> bytes:
    return _dump_yaml(value).encode()


def json_file(path: str, content: Any) -> Document:
    return Document(path, content, as_json, _bytes_or(broken_json, as_json))


def jsonl(path: str, content: Any) -> Document:
    return Document(path, content, as_lines, _bytes_or(_broken_lines, as_lines))


def yaml_file(path: str, content: Any) -> Document:
    def mutate(value: Any, random: Random) -> bytes:
        return _mutated(value, _YAML, _dump_yaml, random)

    return Document(path, content, as_yaml, _bytes_or(mutate, as_yaml))


def arguments(content: Any) -> Document:
    """Arguments of a call, of Python or of a command line: they are given, not read, so the JSON is whole."""

    def mutate(value: Any, random: Random) -> bytes:
        return json.dumps(broken(value, random)).encode()

    return Document("arguments.json", content, as_json, mutate)


# --- pictures -------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    into = io.BytesIO()
    image.save(into, format=form, **options)
    return into.getvalue()


def _broken_png(content: bytes, random: Random) -> bytes:
    """A chunk of other type, length or content, doubled, gone or moved; its checksum is right as a rule."""
    chunks, place = [], 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append([content[place + 4 : place + 8], content[place + 8 : place + 8 + length], length])
        place += 12 + length
    k = random.integers(len(chunks))
    what = random.random()
    if what < 0.4:
        chunks[k][1] = torn(chunks[k][1] or b"\0", random)
        chunks[k][2] = len(chunks[k][1])
    elif what < 0.5:
        chunks[k][2] = int(random.choice([0, 2**31, 2**32 - 1, chunks[k][2] + 1]))
    elif what < 0.6:
        kinds = [
            b"IHDR",
            b"PLTE",
            b"IDAT",
            b"tEXt",
            b"zTXt",
            b"iTXt",
            b"eXIf",
            b"iCCP",
            b"acTL",
            b"fdAT",
            b"tRNS",
            b"XXXX",
        ]
        chunks[k][0] = kinds[random.integers(len(kinds))]
    elif what < 0.7:
        del chunks[k]
    elif what < 0.8:
        chunks.insert(k, list(chunks[random.integers(len(chunks))]))
    else:
        width, height = (int(random.choice([0, 1, 8, 65_535, 2**20, 2**31 - 1, 2**32 - 1])) for _ in "wh")
        depth, colour = int(random.choice([1, 2, 4, 8, 16, 3])), int(random.choice([0, 2, 3, 4, 6, 7]))
        chunks[0][1] = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(random.integers(2)))
    whole = content[:8]
    for kind, data, length in chunks:
        checksum = zlib.crc32(kind + data) if random.random() < 0.95 else 0
        whole += struct.pack(">I", length) + kind + data + struct.pack(">I", checksum)
    return whole


def png(path: str, image: Image.Image, **options: Any) -> Document:
    content = encoded(image, "PNG", **options)
    return Document(path, content, _as_bytes, _bytes_or(_broken_png, _as_bytes))


def png_with_record(path: str, record: Any) -> Document:
    """A PNG whose text chunk ``rbctl`` holds JSON."""

    def around(text: str, random: Random | None = None) -> bytes:
        info = PngInfo()
        if random is None or random.random() < 0.6:
            info.add_text("rbctl", text.encode("latin-1", "replace").decode("latin-1"), zip=bool(len(text) % 2))
        else:
            info.add_itxt("rbctl", text.encode("utf-8", "replace").decode(), "", "")
        return encoded(Image.new("RGB", (4, 4)), "PNG", pnginfo=info)

    def mutate(value: Any, random: Random) -> bytes:
        return around(broken_json(value, random).decode("utf-8", "replace").replace("\0", ""), random)

    return Document(
        path, record, lambda value: around(json.dumps(value)), _bytes_or(mutate, lambda v: around(json.dumps(v)))
    )


# --- tensors --------------------------------------------------------------------------------------------------------

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.int32,
    torch.float32,
)


def broken_tensor(tensor: torch.Tensor, random: Random) -> torch.Tensor:
    """Of other numbers, shape or type."""
    changed, what = tensor.detach().clone(), random.random()
    if what < 0.4 and changed.numel() and changed.is_floating_point():
        limits = [float("nan"), float("inf"), float("-inf"), 3e38, -3e38, -1.0, 2.0, -0.0, 1e-45]
        changed.view(-1)[int(random.integers(changed.numel()))] = limits[random.integers(len(limits))]
        return changed
    shapes = [
        changed.reshape(-1),
        changed[None],
        changed.reshape(-1)[:0],
        changed.reshape(-1)[0] if changed.numel() else changed,
        changed.T if changed.ndim == 2 else changed[None, None],
        torch.cat([changed, changed]) if changed.ndim else changed[None],
        changed[:-1] if changed.ndim else changed,
        changed[..., None],
        torch.zeros(0),
        torch.zeros([1] * 20),
    ]
    if what < 0.75:
        return shapes[random.integers(len(shapes))].contiguous()
    return changed.to(DTYPES[random.integers(len(DTYPES))])


_NAMES = (
    *(
        "lora_unet_x.lora_down.weight",
        "unet.",
        "unet.x.lora_A.weight",
        "alpha",
        "step",
        "",
        "x" * 300,
        "a\0b",
        "lora_te1_x.alpha",
    ),
    *("unet.mid_block.lora.down.weight", "lora_unet_mid_block.hada_w1_a", "text_encoder.x.lora_linear_layer.up.weight"),
    *("lora.x", "optimizer.step.x", "scaler.scale", "clip_l", "clip_g", "x.dora_scale", "unet.x.lora_B.weight"),
)


def broken_tensors(tensors: Mapping[str, torch.Tensor], random: Random) -> dict[str, torch.Tensor]:
    changed = dict(tensors)
    for _ in range(random.integers(1, 3)):
        if not changed:
            break
        name = list(changed)[random.integers(len(changed))]
        what = random.random()
        if what < 0.65:
            changed[name] = broken_tensor(changed[name], random)
        elif what < 0.75:
            del changed[name]
        elif what < 0.9:
            parts = name.split(".")
            parts[random.integers(len(parts))] = word(random) if random.random() < 0.3 else "x"
            names = (_NAMES[random.integers(len(_NAMES))], ".".join(parts), name.replace("down", "up"), "unet." + name)
            new = names[random.integers(len(names))].encode("utf-8", "replace").decode()
            changed[new] = changed[name].clone() if random.random() < 0.5 else changed.pop(name)
        else:
            other = list(changed)[random.integers(len(changed))]
            changed[name], changed[other] = changed[other].clone(), changed[name].clone()
    return changed


def _broken_metadata(metadata: Mapping[str, str], random: Random) -> dict[str, str]:
    """Values that are JSON are mutated as such."""
    changed = dict(metadata)
    if not changed:
        return {word(random).encode("utf-8", "replace").decode(): "x"}
    name = list(changed)[random.integers(len(changed))]
    value = changed[name]
    if value[:1] in ("[", "{") and random.random() < 0.8:
        value = broken_json(json.loads(value), random).decode("utf-8", "replace")
    elif random.random() < 0.2:
        del changed[name]
        return changed
    else:
        value = str(odd(value, random)).encode("utf-8", "replace").decode()
    changed[name] = value
    return changed


Seal = Callable[[Mapping[str, torch.Tensor], Mapping[str, str]], Mapping[str, str]]


def safetensors(
    path: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], seal: Seal = lambda _, said: said
) -> Document:
    """Tensors with metadata.

    Args:
        seal: makes the metadata that tell of the tensors themselves, so that a mutant gets past them.
    """

    def packed(content: Any) -> bytes:
        own, said = content
        return save_safetensors({k: t.contiguous() for k, t in own.items()}, dict(seal(own, said)))

    def mutate(content: Any, random: Random) -> bytes:
        own, said = content
        what = random.random()
        if what < 0.55:
            own = broken_tensors(own, random)
        elif what < 0.8 and said:
            said = _broken_metadata(said, random)
        elif what < 0.9:
            whole = packed(content)
            length = struct.unpack("<Q", whole[:8])[0]
            header = broken_json(json.loads(whole[8 : 8 + length]), random)
            return struct.pack("<Q", len(header)) + header + whole[8 + length :]
        else:
            whole = packed(content)
            limits = (0, 1, 2**31, 2**63, 2**64 - 1, len(whole), len(whole) - 8)
            return struct.pack("<Q", limits[random.integers(len(limits))]) + whole[8:]
        return packed((own, said))

    return Document(path, (dict(tensors), dict(metadata)), packed, _bytes_or(mutate, packed))


def torch_file(path: str, content: Any) -> Document:
    """What torch.save writes."""

    def saved(value: Any, legacy: bool = False) -> bytes:
        into = io.BytesIO()
        torch.save(value, into, _use_new_zipfile_serialization=not legacy)
        return into.getvalue()

    def mutate(value: Any, random: Random) -> bytes:
        value = value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
        if isinstance(value, torch.Tensor) and random.random() < 0.7:
            value = broken_tensor(value, random)
        elif isinstance(value, dict) and value and random.random() < 0.8:
            name = list(value)[random.integers(len(value))]
            inner = value[name]
            if isinstance(inner, torch.Tensor):
                value[name] = broken_tensor(inner, random)
            elif isinstance(inner, dict) and inner and all(isinstance(part, torch.Tensor) for part in inner.values()):
                value[name] = broken_tensors(inner, random)
            else:
                value[name] = odd(inner, random)
        else:
            value = odd(value if not isinstance(value, torch.Tensor) else 1.0, random)
        return saved(value, legacy=random.random() < 0.2)

    return Document(path, content, saved, _bytes_or(mutate, saved))


def arrays(path: str, content: Mapping[str, np.ndarray], write: Callable[[Any], bytes]) -> Document:
    """NumPy's arrays by name, as ``write`` packs them."""

    def mutate(value: Any, random: Random) -> bytes:
        changed = dict(value)
        name = list(changed)[random.integers(len(changed))]
        array, what = changed[name], random.random()
        if what < 0.7 and array.dtype.kind in "fiub":
            changed[name] = broken_tensor(torch.from_numpy(array.copy()), random).to(torch.float64).numpy()
            if random.random() < 0.7:
                with np.errstate(all="ignore"):
                    changed[name] = changed[name].astype(array.dtype)
        elif what < 0.8:
            changed[name] = np.array(odd(str(array), random).__str__())
        elif what < 0.9 and len(changed) > 1:
            del changed[name]
        else:
            changed["".join(random.choice(list(string.ascii_letters), 3))] = array
        return write(changed)

    return Document(path, dict(content), write, _bytes_or(mutate, write))


def archive(path: str, members: Sequence[tuple[str, bytes]], mode: str = "w") -> Document:
    """A tar of named members."""

    def packed(content: Any, size: int | None = None) -> bytes:
        into = io.BytesIO()
        with tarfile.open(fileobj=into, mode=mode, format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
            for name, data in content:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return into.getvalue()

    def mutate(content: Any, random: Random) -> bytes:
        changed = list(content)
        k = random.integers(len(changed))
        name, data = changed[k]
        what = random.random()
        if what < 0.3:
            other = word(random).replace("\0", "0").encode("utf-8", "replace").decode()[:200]
            changed[k] = other + name[random.integers(len(name)) :], data
        elif what < 0.6:
            is_json = name.endswith(".json")
            changed[k] = name, broken_json(json.loads(data), random) if is_json else torn(data, random)
        elif what < 0.8:
            del changed[k]
        else:
            changed.insert(k, changed[random.integers(len(changed))])
        return packed(changed)

    return Document(path, list(members), packed, _bytes_or(mutate, packed))
