"""What datasets exist, a TOML file each in `etstpm/datasets/`; and published results on them."""

import json
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from etstpm.config_files import explain
from etstpm.errors import ConfigError
from etstpm.paths import local_path

MARKER = ".etstpm-dataset.json"
"""What `etstpm data fetch` leaves in a root: which dataset it is, from where, under which terms."""

FOLDER = "folder"
"""The declaration of whatever no other one describes."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Archive(_Frozen):
    """Where a dataset's archive lies. An address is a convenience; the hash is what counts."""

    urls: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="HTTP addresses or fsspec URIs, tried in this order."
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="Of the archive.")
    bytes: Annotated[int, Field(ge=1)] | None = Field(None, description="Size of the archive.")
    unpacked_bytes: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Size of what is in it, for the check of free disk."
    )


class Category(_Frozen):
    """A category of the official release."""

    train_good: Annotated[int, Field(ge=0)]
    test_good: Annotated[int, Field(ge=0)]
    test_defective: Annotated[int, Field(ge=0)]
    mode: str | None = Field(None, description="Pillow's colour mode of its images.")


class Declaration(_Frozen):
    """All that is known of a dataset before it is looked at."""

    name: str = Field("", description="The file's name; not to be given.")
    title: str
    layout: Literal["folders", "split-file"] = Field(
        "folders",
        description="'folders': CATEGORY/train/good, CATEGORY/test/DEFECT, "
        "CATEGORY/ground_truth/DEFECT. 'split-file': a table names each image.",
    )
    split_file: str | None = Field(
        None,
        description="Of 'split-file': a CSV below the root with the columns object, split "
        "(train or test), label (normal, or the defect type), image, mask.",
    )
    masks: Literal["required", "optional"] = "required"
    mask_above: Annotated[int, Field(ge=0, le=254)] = Field(
        127, description="Grey values of a mask above this are defective."
    )
    sizes: Literal["equal", "vary"] = Field(
        "equal", description="Whether all images of a category ought to have one size."
    )
    homepage: str | None = None
    licence: str | None = None
    licence_url: str | None = None
    terms: str | None = Field(None, description="What the licence asks, in a sentence.")
    citation: str | None = None
    documents: tuple[str, ...] = Field(
        (), description="Names of files that belong there and are no images, in any case."
    )
    archive: Archive | None = None
    categories: dict[str, Category] = Field(
        {}, description="Official counts; empty where there are none."
    )

    @model_validator(mode="after")
    def _has_its_split_file(self) -> Self:
        if (self.layout == "split-file") != (self.split_file is not None):
            raise ValueError("layout 'split-file' and the key split_file belong together")
        return self

    def terms_of_use(self) -> list[str]:
        """Licence and citation, a line each, for whoever is about to use it."""
        lines = []
        if self.licence is not None:
            lines.append(" ".join(filter(None, (self.licence, self.licence_url, self.terms))))
        if self.citation is not None:
            lines.append(f"Cite: {self.citation}")
        return lines


def dataset_names() -> list[str]:
    """Names of the declarations that come with the package, sorted."""
    folder = resources.files("etstpm") / "datasets"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_declaration(source: str) -> Declaration:
    """A declaration by its name here, or from a TOML file of one's own.

    Raises `ConfigError` with one line per fault: file, key, value, what is allowed.
    """
    if source in dataset_names():
        text = (resources.files("etstpm") / "datasets" / f"{source}.toml").read_text("utf-8")
    elif source.endswith(".toml"):
        try:
            text = local_path(source).read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ConfigError(
                f"dataset declaration {source!r} cannot be read ({reason}); give a TOML file or "
                f"one of {', '.join(dataset_names())}"
            ) from None
    else:
        raise ConfigError(
            f"no dataset {source!r} in the catalogue, which has {', '.join(dataset_names())}; "
            "name one of them, or a declaration of your own that ends in .toml"
        )
    try:
        return Declaration.model_validate(tomllib.loads(text) | {"name": Path(source).stem})
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}; mend that line") from None
    except ValidationError as error:
        raise ConfigError(f"{explain(error, source, Declaration)}; see docs/data.md") from None


def recognise(root: Path) -> Declaration:
    """Which dataset lies there: as fetch has marked it, else by its split file or its folders.

    A single folder with another name makes it one's own: official counts are compared with
    official data alone.
    """
    marked = marked_declaration(root)
    if marked is not None:
        return marked
    declared = [load_declaration(name) for name in dataset_names() if name != FOLDER]
    for found in declared:
        if found.split_file is not None and (root / found.split_file).is_file():
            return found
    folders = {path.name for path in root.iterdir() if path.is_dir() and path.name[:1] != "."}
    for found in declared:
        if found.layout == "folders" and folders and folders <= set(found.categories):
            return found
    return load_declaration(FOLDER)


def marked_declaration(root: Path) -> Declaration | None:
    """What fetch has written into a root; None if it has not, or if that cannot be read."""
    try:
        marker = json.loads((root / MARKER).read_text("utf-8"))
        return Declaration.model_validate(marker["declaration"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


@dataclass(frozen=True)
class Published:
    """AUROCs that a paper reports, 0 to 1."""

    image_auroc: float
    pixel_auroc: float


STPM_PUBLISHED = {
    "carpet": Published(0.964, 0.990),
    "grid": Published(0.982, 0.990),
    "leather": Published(0.951, 0.991),
    "tile": Published(0.982, 0.969),
    "wood": Published(0.996, 0.965),
    "bottle": Published(1.0, 0.988),
    "cable": Published(0.936, 0.958),
    "capsule": Published(0.893, 0.986),
    "hazelnut": Published(1.0, 0.985),
    "metal_nut": Published(0.983, 0.972),
    "pill": Published(0.951, 0.976),
    "screw": Published(0.895, 0.988),
    "toothbrush": Published(0.897, 0.990),
    "transistor": Published(0.939, 0.819),
    "zipper": Published(0.961, 0.988),
}
"""Source: the official code of Wang et al., STPM, BMVC 2021, per category."""

ET_STPM_MEAN = Published(0.971, 0.977)
"""Source: Zolfaghari and Sajedi, CSICC 2022. Over all 15 categories; none by category is public."""
