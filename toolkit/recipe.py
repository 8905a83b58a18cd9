"""The recipe: one typed, versioned TOML file that says how a model is trained and compressed.

    [data]        root = "clips"            folder per class, split/class folders, or a CSV
    [teacher]     dim = 192 ...
    [distill]     epochs = 20 ...

Unknown keys are refused with the nearest valid one; ``--set distill.epochs=5`` overrides single values. The
resolved recipe is saved beside every result. Paths are relative to the recipe's own folder.
"""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.errors import UserError, nearest
from toolkit.preprocess import Preprocess

__all__ = [
    "BoxesConfig",
    "DataConfig",
    "DetectionConfig",
    "DistillConfig",
    "FinetuneConfig",
    "PretrainConfig",
    "PruneConfig",
    "QuantizeConfig",
    "Recipe",
    "StudentConfig",
    "TeacherConfig",
    "load_recipe",
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Frozen):
    """Where the labelled clips are and how a clip is cut from a video.

    ``root`` is a folder ``<split>/<class>/*.mp4`` or ``<class>/*.mp4``, or a CSV with columns ``path,label`` and
    optionally ``split`` (train/val/test) and ``group`` (clips of one group never straddle two splits).
    ``frames`` is the clip length T at ``preprocess.fps``.
    ``flips`` maps each label to the label of its mirror image; empty means that mirroring keeps labels, and
    ``mirror = false`` forbids mirroring.
    """

    root: Path = Path("data")
    frames: int = Field(default=16, ge=1)
    mirror: bool = True
    flips: dict[str, str] = {}
    seed: int = 0


class _Optim(_Frozen):
    """Optimiser settings shared by all training stages (AdamW, warm-up then cosine)."""

    epochs: int = Field(default=10, ge=1)
    batch: int = Field(default=32, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    seed: int = 0


class TeacherConfig(_Frozen):
    """A tubelet ViT (ViViT / VideoMAE): tubelets of ``tubelet`` = (t, h, w) pixels, joint space-time attention."""

    dim: int = 192
    depth: int = 6
    heads: int = 3
    mlp_ratio: float = 4.0
    tubelet: tuple[int, int, int] = (2, 16, 16)
    dropout: float = 0.0


class PretrainConfig(_Optim):
    """Masked video modelling (VideoMAE): tube masking at ``mask_ratio``, normalised pixel targets."""

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    decoder_dim: int = 96
    decoder_depth: int = 2


class FinetuneConfig(_Optim):
    """Supervised fine-tuning; ``freeze`` = first N blocks fixed, ``layer_decay`` < 1 slows early layers down."""

    freeze: int = Field(default=0, ge=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)


class BoxesConfig(_Frozen):
    """A detector's head: ``levels`` of feature maps, ``channels`` inside; ``score`` and ``overlap`` read its answer.

    ``kernel`` > 1 gives the student's head a memory of its own: a causal temporal convolution over so many frames.
    """

    levels: int = Field(default=1, ge=1, le=2)
    channels: int = Field(default=64, ge=8)
    kernel: int = Field(default=1, ge=1, le=9)
    score: float = Field(default=0.4, gt=0, lt=1)
    overlap: float = Field(default=0.5, gt=0, le=1)


class StudentConfig(_Frozen):
    """The streaming student: a MobileNetV2-style 2-D backbone with causal temporal modules.

    ``width`` scales channels, ``depth`` repeats; ``temporal`` is the module put into
    residual blocks: online channel ``shift`` (TSM), causal depthwise temporal ``conv`` over ``kernel`` frames,
    or ``none`` (the single-frame control). With ``look_back`` the stem also sees the change since the last frame.
    ``blocks`` keeps only the first N residual blocks. ``readout`` is ``average`` (appearance plus what the temporal
    modules saw) or ``motion`` (feature changes over ``lags``, bends over ``bends``).
    ``pretrained`` is a MobileNetV2 TFLite file or a saved model folder to start from.
    """

    width: float = Field(default=0.5, gt=0)
    depth: float = Field(default=1.0, gt=0)
    activation: Literal["relu6", "hardswish"] = "relu6"
    temporal: Literal["shift", "conv", "none"] = "shift"
    kernel: int = Field(default=3, ge=2, le=9)
    shift_fraction: float = Field(default=0.125, gt=0, lt=1)
    dropout: float = 0.1
    look_back: bool = False
    blocks: int | None = Field(default=None, ge=1)
    readout: Literal["average", "motion", "boxes"] = "average"
    boxes: BoxesConfig = BoxesConfig()
    lags: tuple[int, ...] = (1, 2, 3, 4)
    bends: tuple[int, ...] = (1, 2)
    pretrained: Path | None = None


class DistillConfig(_Optim):
    """Knowledge distillation (Hinton et al. 2015): ``alpha`` weighs the soft loss at ``temperature``."""

    alpha: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=2.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class DetectionConfig(_Optim):
    """Training of a detector, student or clip encoder, on a COCO file (``task = "detection"``).

    ``head`` shapes the clip encoder's head (the student's is ``student.boxes``). ``box_weight`` weighs GIoU against
    focal loss; ``mirror`` and ``zoom`` (the smallest share of the picture kept) augment; ``freeze`` fixes the first N
    blocks and what stands before them. If that is all but the head, and single frames go in, features are computed
    once, under ``copies`` augmentations of each video, and epochs cost next to nothing.
    ``teacher`` is a FastestDet ONNX file and ``teacher_labels`` its class names, one a line. ``use`` says what is
    learned: the annotations, the teacher's boxes above ``teacher_score``, or both (the teacher refines the place of
    annotated boxes). ``rename`` maps the teacher's names to those of the data.
    """

    epochs: int = Field(default=40, ge=1)
    batch: int = Field(default=8, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    head: BoxesConfig = BoxesConfig()
    box_weight: float = Field(default=2.0, gt=0)
    mirror: bool = True
    zoom: float = Field(default=0.7, gt=0, le=1)
    freeze: int = Field(default=0, ge=0)
    copies: int = Field(default=6, ge=1)
    teacher: Path | None = None
    teacher_labels: Path | None = None
    teacher_score: float = Field(default=0.4, gt=0, lt=1)
    use: Literal["annotations", "teacher", "both"] = "annotations"
    rename: dict[str, str] = {}


class PruneConfig(_Optim):
    """Structured pruning with torch-pruning, then recovery by distillation for ``epochs``."""

    ratio: float = Field(default=0.3, ge=0, lt=1)
    round_to: int = Field(default=8, ge=1)
    importance: Literal["magnitude", "taylor"] = "magnitude"


class QuantizeConfig(_Frozen):
    """Post-training int8: ``rollouts`` streams of the training split, min-max ranges."""

    rollouts: int = Field(default=16, ge=1)
    precisions: tuple[Literal["fp32", "int8"], ...] = ("fp32", "int8")
    runtimes: tuple[str, ...] = ("torch", "onnxruntime", "openvino", "litert")


class Recipe(_Frozen):
    """Everything that decides a result. ``version`` is the recipe schema."""

    version: Literal[1] = 1
    name: str = Field(default="student", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    task: Literal["classification", "detection"] = "classification"
    data: DataConfig = DataConfig()
    preprocess: Preprocess = Preprocess()
    teacher: TeacherConfig = TeacherConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    student: StudentConfig = StudentConfig()
    distill: DistillConfig = DistillConfig()
    prune: PruneConfig = PruneConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    detection: DetectionConfig = DetectionConfig()


def load_recipe(path: Path | None, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a TOML recipe, apply ``section.key=value`` overrides and validate.

    Raises:
        UserError: missing file, bad TOML, unknown key (the nearest valid one is named) or bad value.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise UserError(f"recipe {path} does not exist: check the path")
        try:
            raw = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"recipe {path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply(raw, override)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError(_explain(error, path)) from error
    return recipe if path is None else _rooted(recipe, path.parent, overrides)


def _rooted(recipe: Recipe, folder: Path, overrides: tuple[str, ...]) -> Recipe:
    """Paths of the file are relative to its folder; those of overrides, to where the command was given."""
    changed: dict[str, Any] = {}
    for section, keys in (("data", ("root",)), ("detection", ("teacher", "teacher_labels"))):
        part = getattr(recipe, section)
        given = {key: getattr(part, key) for key in keys if not _overridden(overrides, f"{section}.{key}")}
        rooted = {key: folder / value for key, value in given.items() if value is not None}
        changed[section] = part.model_copy(update=rooted)
    return recipe.model_copy(update=changed)


def _overridden(overrides: tuple[str, ...], key: str) -> bool:
    return any(override.partition("=")[0].strip() == key for override in overrides)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"override {override!r} is not of the form section.key=value, for example distill.epochs=5")
    *parents, leaf = key.strip().split(".")
    table = raw
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UserError(f"override {override!r}: {parent} is a value, not a section")
    try:
        table[leaf] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        table[leaf] = value  # an unquoted string


def _explain(error: ValidationError, path: Path | None) -> str:
    """One line for the first thing that is wrong, naming the nearest valid key."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    source = f"recipe {path}" if path is not None else "recipe"
    if first["type"] != "extra_forbidden":
        return f"{source}: {where}: {first['msg']}"
    model: Any = Recipe
    for part in first["loc"][:-1]:
        model = model.model_fields[str(part)].annotation
    fields = list(model.model_fields)
    word = str(first["loc"][-1])
    return f"{source}: unknown key {where!r}{nearest(word, fields)}; valid keys: {', '.join(fields)}"
