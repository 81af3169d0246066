"""The folder that the page works in: what lies there, and where uploads go. Nothing outside of it has a name here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from PIL import Image

from rbctl.errors import InputError, abridged
from rbctl.files import png_bytes, read_image, sha256, write_bytes, write_text
from rbctl.images import SUFFIXES
from rbctl.paths import inside, made_by_system
from rbctl.relations import Relation, load_relation, shipped
from rbctl.runs import ANY_LORA, RUNS

MOST_INDIVIDUALS = 3
MOST_BYTES = 64 << 20  # of an uploaded file
_MOST_PICTURES = 200  # of an uploaded set
_SHOWN = 24  # pictures in the gallery
_MOST_YAML = 100_000  # characters of a relation
_NO_LORAS = (ANY_LORA, "frozen.safetensors", "embedding.safetensors")  # a link, encodings, a baseline's embedding
_SET_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,60}")
_NAME = re.compile(r"[^\W_][\w '-]{0,40}")


@dataclass(frozen=True)
class Individual:
    """One to be shown.

    Attributes:
        name: the words for it in a prompt, "white cat".
        image: its picture, named from the folder of the page's pictures.
    """

    name: str
    image: str


@dataclass(frozen=True)
class Workspace:
    """What lies in the page's folder.

    Attributes:
        root: absolute.
        pages: hashes of the HTML pages that stages of ours have just written, by their names in the folder.
    """

    root: Path
    pages: dict[str, str] = field(default_factory=dict)

    @property
    def pictures(self) -> Path:
        """Where the page's pictures go: a folder as ``rbctl sample`` writes it."""
        return self.root / RUNS / "sample" / "ui"

    @property
    def uploads(self) -> Path:
        """Where gradio keeps what browsers send and what it shows; emptied of what is a day old."""
        return self.root / RUNS / "ui" / "uploads"

    # --- individuals

    def keep_individual(self, upload: Path) -> Individual:
        """Take the picture of an individual in, named by its file.

        Raises:
            InputError: it is no picture that can be read.
        """
        picture = read_upload(upload)
        words = " ".join(re.findall(r"[^\W_]+", upload.stem))[:40].strip().lower() or "individual"
        content = png_bytes(picture)
        name = f"{words.replace(' ', '-')}-{hashlib.sha256(content).hexdigest()[:12]}.png"
        place = self.pictures / "image_prompts" / name
        if not place.is_file():
            write_bytes(place, content)
        return Individual(words, f"image_prompts/{name}")

    def picture_of(self, individual: Individual) -> Path:
        return inside(self.pictures, individual.image, individual.name)

    # --- relations and LoRAs

    def relations(self) -> list[str]:
        """Names of the relations that the page knows: those that ship, then the folder's own."""
        own = {path.stem for path in (self.root / "relations").glob("*.yaml")}
        return [*shipped(), *sorted(own - set(shipped()))]

    def relation(self, name: str) -> Relation:
        """A relation by its name, the folder's own first.

        Raises:
            InputError: there is none, or its file is wrong.
        """
        argument = self.relation_argument(name)
        return load_relation(argument if argument == name else inside(self.root, argument, "relation"))

    def relation_argument(self, name: str) -> str:
        """What ``--relation`` is given for a relation, in the folder: its name, or its file as named from there.

        Raises:
            InputError: there is no such relation.
        """
        if name not in self.relations():
            raise InputError(f"relation: there is no {abridged(name)}; write its file below, or choose one of the list")
        own = f"relations/{name}.yaml"
        return own if (self.root / own).is_file() else name

    def keep_relation(self, text: str) -> Relation:
        """Take a relation's YAML in, as ``relations/NAME.yaml``; the one of that name is replaced.

        Raises:
            InputError: it describes no relation, or one that ships has its name.
        """
        if len(text) > _MOST_YAML:
            raise InputError(f"relation: its file has more than {_MOST_YAML} characters; shorten it")
        draft = self.uploads / "relation.yaml"
        write_text(draft, text)
        try:
            relation = load_relation(str(draft))
        except InputError as error:
            raise InputError(str(error).replace(str(draft), "relation")) from error
        finally:
            draft.unlink(missing_ok=True)
        if relation.name in shipped():
            raise InputError(f"name: {relation.name} ships with rbctl; choose another name")
        write_text(self.root / "relations" / f"{relation.name}.yaml", text)
        return relation

    def loras(self) -> list[str]:
        """The LoRAs of finetunings and those in ``loras/``, named from the folder; the newest first."""
        tuned = [path for path in self.root.glob(f"{RUNS}/finetune/*/*.safetensors") if path.name not in _NO_LORAS]
        loras = [*tuned, *self.root.glob("loras/*.safetensors")]
        loras.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.relative_to(self.root).as_posix() for path in loras]

    def lora(self, name: str) -> Path:
        """The path of a LoRA by its name in the folder.

        Raises:
            InputError: there is none.
        """
        if name not in self.loras():
            raise InputError(f"LoRA: there is no {abridged(name)} in the folder; choose one of the list")
        return inside(self.root, name, "LoRA")

    # --- sets and results

    def set_folder(self, name: str) -> Path:
        """The folder of a set of triplets.

        Raises:
            InputError: its name could not be a folder's.
        """
        if not _SET_NAME.fullmatch(name or ""):
            raise InputError(f"name of the set: {abridged(name)} is not a name; use lowercase letters, digits, - and _")
        return inside(self.root, f"triplets/{name}", "name of the set")

    def sets(self) -> list[str]:
        """Names of the sets of triplets."""
        folders = (path for path in (self.root / "triplets").glob("*") if path.is_dir())
        return sorted(path.name for path in folders if _SET_NAME.fullmatch(path.name))

    def keep_pictures(self, uploads: Iterable[Path], name: str) -> Path:
        """Take a user's own pictures in as a raw set: ``3.jpg`` a target, ``3-cat.jpg`` a cat in it.

        Returns:
            The set's folder.

        Raises:
            InputError: there are none or too many, or one cannot be read.
        """
        folder, paths = self.set_folder(name), list(uploads)
        if not 1 <= len(paths) <= _MOST_PICTURES:
            raise InputError(f"pictures: {len(paths)} were given; 1 to {_MOST_PICTURES} were expected")
        for path in paths:
            write_bytes(inside(folder, f"{path.stem}.png", path.name), png_bytes(read_upload(path)))
        return folder

    def models(self) -> list[str]:
        """Folders and files in ``models/``, for annotation and generators."""
        return sorted(path.name for path in (self.root / "models").glob("*") if not made_by_system(path.name))

    def model(self, name: str) -> str:
        """A model as an option names it in the folder.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.models():
            raise InputError(f"model: there is no {abridged(name)} in the folder models/; choose one of the list")
        return f"models/{name}"

    def sampled(self) -> list[str]:
        """Folders of pictures that can be scored, named from the folder."""
        lists = self.root.glob(f"{RUNS}/sample/*/metadata.jsonl")
        return sorted(path.parent.relative_to(self.root).as_posix() for path in lists)

    def newest(self) -> list[str]:
        """Paths of the page's newest pictures, the newest first."""
        paths = sorted(self.pictures.glob("*.png"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [str(path) for path in paths[:_SHOWN]]

    # --- what browsers are shown besides

    def show_page(self, name: str) -> str:
        """Let browsers open a page that a stage of ours has just written; pages that came with data stay closed.

        Returns:
            Its address.
        """
        self.pages[name] = sha256(inside(self.root, name, "page"))
        return f"/files/{quote(name)}"

    def shown_file(self, name: str) -> Path:
        """What is sent for an address: a page of :meth:`show_page`, or a picture beside one.

        Raises:
            InputError: it is neither.
        """
        path = inside(self.root, name, "file")
        beside = any(PurePosixPath(name).is_relative_to(PurePosixPath(page).parent) for page in self.pages)
        picture = beside and path.suffix.lower() in SUFFIXES
        if not path.is_file() or not (picture or (name in self.pages and self.pages[name] == sha256(path))):
            raise InputError(f"file: {abridged(name)} is not shown by the page")
        return path


def read_upload(path: Path) -> Image.Image:
    """An uploaded picture, in RGB; errors name the file as the user knows it.

    Raises:
        InputError: it is too large, of no known kind, or damaged.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{abridged(path.name)}: is no picture; drop one of {', '.join(SUFFIXES[:6])}")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{abridged(path.name)}: is larger than {MOST_BYTES >> 20} MB; scale it down")
    try:
        return read_image(path)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from error


def read_names(text: str, count: int) -> list[str]:
    """What the user calls the individuals, with commas between.

    Raises:
        InputError: another number of names than individuals, two are the same, or one has marks in it.
    """
    names = [" ".join(part.split()) for part in text.split(",")]
    if len(names) != count or len(set(names)) < count:
        raise InputError(f"names: {count} different ones were expected, with commas between, not {abridged(text)}")
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(f"names: {abridged(name)} must be words, as 'white cat'")
    return names


def prompt_of(relation: Relation | None, words: str, names: Sequence[str]) -> str:
    """The prompt of individuals in a relation, each in braces.

    Args:
        relation: that is chosen; of as many roles as there are names.
        words: between the first and the others, where no relation is chosen: "is balancing on".
    """
    marked = [f"{{{name}}}" for name in names]
    if relation is not None and len(relation.roles) == len(names):
        return relation.prompt(marked)
    first, *others = [f"an {name}" if name[1:2].lower() in "aeiou" else f"a {name}" for name in marked]
    return f"{first.capitalize()} {words.strip()} {' and '.join(others)}".strip() + "."


def lora_weights(rows: Iterable[Sequence[object]], known: Mapping[str, object] | Sequence[str]) -> dict[str, float]:
    """The LoRAs that have a weight, by their names in the folder.

    Args:
        rows: (name, weight), as the page's table has them.
        known: names that there are.

    Raises:
        InputError: a name is unknown, or a weight is no number from -10 to 10.
    """
    weights = {}
    for name, weight in rows:
        if not name:
            continue
        try:
            value = float(str(weight))
        except ValueError:
            value = float("nan")
        if not -10 <= value <= 10:
            raise InputError(f"LoRA {abridged(name)}: weight {abridged(weight)} is no number from -10 to 10")
        if not value:
            continue
        if name not in known:
            raise InputError(f"LoRA: there is no {abridged(name)} in the folder; choose one of the list")
        weights[str(name)] = value
    return weights
