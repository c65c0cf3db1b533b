"""What a run is made from: frozen pydantic models, unknown keys rejected.

Every value here enters the digest of the artifacts that depend on it. What belongs to the machine
and not to the experiment (cache folder, number of decoding threads) is in `etstpm.settings`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from etstpm.config_files import apply_override, explain, read_toml, set_value
from etstpm.errors import ConfigError, has_credentials
from etstpm.paths import local_path


def _distinct(layers: tuple[int, ...]) -> tuple[int, ...]:
    if not layers or len(set(layers)) != len(layers):
        raise ValueError("give one layer or more of 1, 2 and 3, each once")
    return tuple(sorted(layers))


def _without_credentials(uri: str) -> str:
    if has_credentials(uri):
        raise ValueError(
            "it carries credentials, which would end up in logs and tables; leave them out and set "
            "them in the environment"
        )
    return uri


# The pattern is for Prefect's server, which refuses a parameter by it before it is written down.
Uri = Annotated[
    str,
    AfterValidator(_without_credentials),
    Field(json_schema_extra={"pattern": r"^(?!.*://[^/:@]*:(?!\d+/)[^@]*@)(?!s3a?://[^/@]*@)"}),
]


def _each_once(levels: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(levels)) != len(levels):
        raise ValueError("give each level once")
    return levels


PositiveInt = Annotated[int, Field(ge=1)]
SMALLEST_REVERSED = 48
"""Pixels. Batch normalisation needs more than one place in the neck, at 1/32 of the side."""

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Layers = Annotated[tuple[Annotated[int, Field(ge=1, le=3)], ...], AfterValidator(_distinct)]


class Section(BaseModel):
    """A frozen part of the config that knows its own digest."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # it may be a URI with a password in it
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_true(cls, value: object, info: ValidationInfo) -> object:
        # pydantic takes true for 1.
        if (
            isinstance(value, bool)
            and cls.model_fields[info.field_name or ""].annotation is not bool
        ):
            raise ValueError("it is not to be true or false")
        return value

    def digest(self) -> str:
        """SHA-256 of the section's canonical JSON, 64 hexadecimal digits."""
        return digest_of(self.model_dump(mode="json"))


class DatasetConfig(Section):
    """Which images."""

    root: str | None = Field(
        None, description="Folder of the images. Empty: the drawn sample is used."
    )
    name: str | None = Field(
        None,
        description="Which dataset lies there: a name of the catalogue, or a declaration of your "
        "own (.toml). Empty: it is recognised.",
    )
    categories: tuple[str, ...] | None = Field(
        None, description="Categories to run. Empty: every category that the root holds."
    )
    on_finding: Literal["fail", "quarantine", "warn"] = Field(
        "fail",
        description="What becomes of images with errors. 'fail': the run ends before it begins. "
        "'quarantine': they are left out by name. 'warn': only those that cannot be used are.",
    )
    image_size: Annotated[int, Field(ge=32, le=2048, multiple_of=16)] = Field(
        320, description="Side in pixels that images are resized to (Wang et al. 2021: 256)."
    )

    @field_validator("categories", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            value = tuple(name.strip() for name in value.split(",") if name.strip())
        return value or None

    @property
    def folder(self) -> Path | None:
        """The root on this machine; None stands for the drawn sample."""
        return None if self.root is None else local_path(self.root)


class TeacherConfig(Section):
    """Where the teacher's weights come from and how it is fine-tuned."""

    weights: Uri | None = Field(
        None,
        description="Path or fsspec URI of ResNet-18 weights. Empty: torchvision's IMAGENET1K_V1 "
        "is downloaded. 'formula': those that come with etstpm, pre-trained on drawn pictures "
        "alone (docs/formula-teacher.md).",
    )
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="SHA-256 the weights file must have. Empty: a hash that etstpm knows."
    )
    mode: Literal["imagenet", "classification", "synthetic", "metric"] = Field(
        "imagenet",
        description="'imagenet': the weights as they are (Wang et al. 2021). The others are "
        "fine-tuned on train/good alone. 'classification': to tell the categories apart "
        "(Zolfaghari and Sajedi 2022). 'synthetic': to find synthetic anomalies (Li et al. 2021; "
        "Zavrtanik et al. 2021). 'metric': to draw each category's images together and the "
        "categories apart (Khosla et al. 2020).",
    )
    epochs: PositiveInt = Field(5, description="Epochs of fine-tuning at the most.")
    patience: PositiveInt = Field(
        3, description="Epochs without improvement on held-out images after which tuning stops."
    )
    batch_size: PositiveInt = Field(32, description="Images a step ('metric': two views of each).")
    learning_rate: Annotated[float, Field(gt=0.0)] = Field(
        1e-4, description="AdamW's learning rate for the pyramid; its head learns ten times faster."
    )
    validation_fraction: Fraction = Field(
        0.1, description="Share of each category's train/good held out to choose the epoch."
    )
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="Of the cross-entropy of 'classification' (Szegedy et al. 2016: 0.1). "
        "0: plain cross-entropy.",
    )
    temperature: Annotated[float, Field(gt=0.0)] = Field(
        0.1, description="Of the similarities of 'metric' (Khosla et al. 2020: 0.1)."
    )
    mixture: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        1.0,
        description="Share of the tuned weights in the frozen teacher, the rest being the original "
        "ones (Wortsman et al. 2022). 1: the tuned ones alone.",
    )

    @field_validator("mixture")
    @classmethod
    def _needs_tuned_weights(cls, mixture: float, info: ValidationInfo) -> float:
        if info.data.get("mode") == "imagenet" and mixture != 1.0:
            raise ValueError(
                "teacher.mode 'imagenet' tunes no weights to mix; choose another mode, or leave "
                "the mixture at 1.0"
            )
        return mixture


class StudentConfig(Section):
    """How a student is distilled."""

    network: Literal["forward", "reverse"] = Field(
        "reverse",
        description="'forward': a ResNet-18 that looks at the image as its teacher does (Wang et "
        "al. 2021). 'reverse': a decoder that makes its teacher's features anew from what passes "
        "a narrow neck (Deng and Li 2022).",
    )
    jitter: Annotated[float, Field(ge=0.0, le=2.0)] = Field(
        0.3,
        description="Length of the Gaussian noise on each unit vector of features that a 'reverse' "
        "student is given while it trains, so that it cannot merely copy (You et al. 2022, UniAD). "
        "0: none. 'forward' has none.",
    )
    epochs: PositiveInt = Field(16, description="Passes over the category's training images.")
    least_images: Annotated[int, Field(ge=0)] = Field(
        200,
        description="About so many images make an epoch where a category has fewer: it is passed "
        "several times then, since it is steps that a student lacks. 0: once, as Wang et al. 2021.",
    )
    batch_size: PositiveInt = Field(8, description="Images a step.")
    loss: Literal["l2", "l1-cosine"] = Field(
        "l2",
        description="'l2': half the squared distance of the normalised features (Wang et al. "
        "2021, eq. 2). 'l1-cosine': L1 norm with cosine similarity (as said of ET-STPM).",
    )
    hard_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.1,
        description="Share of each image's locations that make the loss, those where the student "
        "errs most (after Batzner et al. 2024, EfficientAD). 1: all (Wang et al. 2021).",
    )
    optimiser: Literal["muon", "adamw", "sgd"] = Field(
        "muon",
        description="'muon': orthogonalised momentum for the convolutions (Jordan et al. 2024), "
        "AdamW for the rest. 'sgd': as Wang et al. 2021.",
    )
    muon_rows: Literal[32, 64, 128, 256] = Field(
        64,
        description="Rows of a weight matrix that Muon makes orthogonal to each other, a block by "
        "itself (Khaled et al. 2025, MuonBP). 256: all of a matrix's, in three times the time.",
    )
    learning_rate: Annotated[float, Field(gt=0.0)] = Field(
        0.03, description="Highest learning rate (Wang et al. 2021: 0.4 with SGD; AdamW: 2e-3)."
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(0.0, description="Weight decay.")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.95, description="Muon's or SGD's momentum."
    )
    schedule: Literal["one-cycle", "constant"] = Field(
        "one-cycle", description="'one-cycle': up and down once over the whole training."
    )
    validation_fraction: Fraction = Field(
        0.1, description="Share of train/good held out: chooses the epoch, sets the threshold."
    )
    patience: PositiveInt | None = Field(
        None,
        description="Epochs in a row that lower the held-out images' mean map by less than 5 % "
        "after which training ends; under 'one-cycle' counted from where the learning rate has "
        "fallen below a fifth of its highest. Empty: all epochs.",
    )
    warm_start: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")] | None = Field(
        None,
        description="A run's id, or 'latest': where a category's images are that run's and new "
        "ones, its student begins from that run's instead of from random weights.",
    )
    warm_epochs: PositiveInt = Field(4, description="Epochs of a student that begins so.")

    @property
    def is_jittered(self) -> bool:
        """Whether its student trains on features with noise."""
        return self.network == "reverse" and self.jitter > 0

    def passes(self, images: int) -> int:
        """How often an epoch shows each of so many training images."""
        return max(1, round(self.least_images / images))

    def shown(self, images: int) -> int:
        """How many an epoch shows of so many training images, each as often as it is passed."""
        return images * self.passes(images)

    def identity(self) -> dict[str, Any]:
        """What a student depends on, whatever it begins from.

        What changes nothing is left out, so that a student made before there was such an option
        keeps its address.
        """
        unused = {"warm_start", "warm_epochs"}
        if self.network == "forward":
            unused |= {"network", "jitter"}
        if self.hard_share == 1:
            unused.add("hard_share")
        if self.least_images == 0:
            unused.add("least_images")
        if self.optimiser != "muon" or self.muon_rows == 256:
            unused.add("muon_rows")
        return self.model_dump(exclude=unused, exclude_none=True)


class ScoringConfig(Section):
    """How feature distances become maps, scores and decisions."""

    calibration: Literal["none", "variance", "covariance"] = Field(
        "covariance",
        description="What a student's error is measured against. 'none': half its square (Wang et "
        "al. 2021). 'covariance': what is normal on held-out good images, so that it is a "
        "Mahalanobis distance (as Rippel et al. 2020 of features); 'variance': channel by channel.",
    )
    level_border: bool = Field(
        True,
        description="Calibrate the 32 pixels along the border by themselves: where errors on "
        "held-out good images are larger than further inside, they count as many times less.",
    )
    fusion: Literal["product", "sum", "quantile-sum"] = Field(
        "sum",
        description="How the layers' distance maps meet. 'product': Wang et al. 2021. 'sum': Deng "
        "and Li 2022; of Mahalanobis distances it is that of all layers together. "
        "'quantile-sum': each mapped to 0 and 0.1 at two quantiles of the held-out good images, "
        "then added (Batzner et al. 2024, EfficientAD).",
    )
    map_layers: Layers = Field((1, 2, 3), description="Layers that make the anomaly map.")
    image_layers: Layers = Field(
        (1, 2, 3),
        description="Layers that make the map which the image score is taken from (Roth et al. "
        "2022, PatchCore: 2 and 3).",
    )
    top_share: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0015,
        description="The image score is the mean over this share of the map's pixels, the largest "
        "ones. 0: the maximum (Wang et al. 2021).",
    )
    smoothing_sigma: Annotated[float, Field(ge=0.0, le=32.0)] = Field(
        4.0,
        description="Gaussian smoothing of the anomaly map, in pixels (4: Deng and Li 2022, Roth "
        "et al. 2022). 0: none.",
    )
    batch_size: PositiveInt = Field(8, description="Images a forward pass.")
    false_alarm_rate: Fraction = Field(
        0.05,
        description="Share of good images that may be called defective: the threshold is this "
        "quantile of the held-out good images' scores, each calibrated by the others alone; never "
        "taken from test labels.",
    )


class MapsConfig(Section):
    """Which anomaly maps are kept. Scores without maps have the address that they always had."""

    kept: Literal["none", "float16", "png"] = Field(
        "none",
        description="'float16': a Parquet file of maps a category; 'png': a heatmap each.",
    )
    limit: PositiveInt = Field(
        100, description="Images of a category at the most, those that were judged worst."
    )


class GateConfig(Section):
    """When a run becomes the latest. Enters no artifact's address: it judges what is made."""

    levels: Annotated[tuple[Literal["image", "pixel"], ...], AfterValidator(_each_once)] = Field(
        ("image", "pixel"), description="Levels at which a category's AUROC must not fall."
    )
    tolerance: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.01,
        description="A fall of AUROC against the last good run counts when it is larger than this, "
        "and the 95 % bootstrap interval of the paired difference lies below zero.",
    )


class Config(Section):
    """A whole run."""

    dataset: DatasetConfig = DatasetConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    scoring: ScoringConfig = ScoringConfig()
    maps: MapsConfig = MapsConfig()
    gate: GateConfig = GateConfig()
    store: Uri = Field("./etstpm-store", description="Folder or fsspec URI of all results.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seeds all randomness.")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = Field(
        "auto", description="'auto': CUDA where there is one, else the CPU."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of the convolutions; normalisation, loss and metrics are float32 or better. "
        "'auto': bfloat16 where the hardware multiplies it natively, else float32.",
    )

    @model_validator(mode="after")
    def _fits_the_neck(self) -> Self:
        if self.student.network == "reverse" and self.dataset.image_size < SMALLEST_REVERSED:
            raise ValueError(
                f"dataset.image_size = {self.dataset.image_size} leaves a single place in the neck "
                f"of student.network 'reverse'; give {SMALLEST_REVERSED} or more, or "
                "student.network=forward"
            )
        return self

    @classmethod
    def load(
        cls,
        source: str | Path | None = None,
        overrides: Sequence[str] = (),
        given: Mapping[str, str] | None = None,
    ) -> Self:
        """Read a preset's name or a TOML file, then apply `section.key=value` overrides.

        `given` maps such keys to values that are taken as they are, never read as TOML: paths.
        Raises `ConfigError` with one line per fault: file, key, value, what is allowed.
        """
        values = read_toml(source) if source is not None else {}
        for override in overrides:
            apply_override(values, override)
        for key, value in (given or {}).items():
            set_value(values, key, value)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(explain(error, str(source or "the config"), cls)) from None


def digest_of(value: object) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no blanks), 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
