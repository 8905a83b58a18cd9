"""The recipe: one typed, versioned TOML file that says how a model is trained and compressed.

    [data]        root = "clips"            folder per class, split/class folders, or a CSV
    [teacher]     dim = 192 ...
    [distill]     epochs = 20 ...

Unknown keys are refused with the nearest valid one; ``--set distill.epochs=5`` overrides single values. The
resolved recipe is saved beside every result. Paths are relative to the recipe's own folder.
"""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

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
    "RunConfig",
    "StudentConfig",
    "TeacherConfig",
    "load_recipe",
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in (int, float):
            raise ValueError(f"Input should be a number, not {str(value).lower()}")
        return value


_Share = Annotated[float, Field(ge=0, lt=1)]
_Count = Annotated[int, Field(ge=1)]

_VIDEOMAE = {"norm": "pooled", "eps": 1e-6, "last_eps": 1e-6}
_PRESETS: dict[str, dict[str, Any]] = {
    "vit-s": {"dim": 384, "depth": 12, "heads": 6, **_VIDEOMAE},
    "vit-b": {"dim": 768, "depth": 12, "heads": 12, **_VIDEOMAE},
    "vit-l": {"dim": 1024, "depth": 24, "heads": 16, **_VIDEOMAE},
    "x3d-l": {"depth_factor": 5.0},
}


class DataConfig(_Frozen):
    """Where the labelled clips are and how a clip is cut from a video.

    ``root`` is a folder ``<split>/<class>/*.mp4`` or ``<class>/*.mp4``, a CSV with columns ``path,label`` and
    optionally ``split`` (train/val/test) and ``group`` (clips of one group never straddle two splits), or one of the
    published layouts (``train.data.formats``), recognised by itself unless ``format`` names it; ``videos`` is where the
    files of a list lie, if not beside it, ``fold`` which of several published splits.
    ``frames`` is the clip length T at ``preprocess.fps``. ``source`` says where training clips come from: decoded once
    into ``memory``, or decoded on demand from the ``files``; ``auto`` takes memory up to 2 GiB. ``device`` decodes
    (``cpu``, or what PyAV knows here, such as ``cuda``). More than ``broken_share`` unreadable videos are an error.
    ``flips`` maps each label to the label of its mirror image; empty means that mirroring keeps labels, and
    ``mirror = false`` forbids mirroring.
    """

    root: Path = Path("data")
    format: Literal["auto", "folders", "csv", "kinetics", "ucf101", "hmdb51", "something", "coco", "shards"] = "auto"
    videos: Path | None = None
    fold: int = Field(default=1, ge=1, le=3)
    source: Literal["auto", "memory", "files"] = "auto"
    device: str = "cpu"
    broken_share: float = Field(default=0.2, ge=0, le=1)
    frames: int = Field(default=16, ge=1)
    mirror: bool = True
    flips: dict[str, str] = {}
    seed: int = Field(default=0, ge=0)


class RunConfig(_Frozen):
    """How training is run, whatever is trained.

    ``device`` "auto" takes a GPU if there is one. ``strategy`` is how several processes share the work: ``ddp`` holds
    the model in each, ``fsdp2`` cuts weights, gradients and optimiser state into shards. ``accumulate`` splits each
    process's share of a batch into that many parts, ``checkpointing`` recomputes the blocks' activations in the
    backward pass; both save memory. ``compile`` compiles the repeated blocks. ``workers`` are decoding processes per
    training process. Metrics always go to metrics.jsonl, with ``tracker`` to TensorBoard too. A checkpoint is written
    every ``save_every_s`` seconds and after an epoch.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    accumulate: int = Field(default=1, ge=1)
    checkpointing: bool = False
    compile: bool = False
    workers: int = Field(default=2, ge=0)
    tracker: Literal["none", "tensorboard"] = "none"
    save_every_s: float = Field(default=60.0, ge=0)


class _Optim(_Frozen):
    """Optimiser settings shared by all training stages; the rate warms up, then falls as half a cosine.

    ``batch`` is the number of videos in one step, over all processes. ``betas`` belong to ``adamw``, ``momentum`` to
    ``sgd``. ``clip`` bounds the gradient's norm (0: unbounded). ``ema`` > 0 keeps an exponential moving average of the
    weights with this decay; then that average is what is validated and saved.
    """

    epochs: int = Field(default=10, ge=1)
    batch: int = Field(default=32, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[_Share, _Share] = (0.9, 0.999)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    clip: float = Field(default=1.0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)


class TeacherConfig(_Frozen):
    """The clip model: an encoder by name (``train.models.registry.ENCODERS``) and a linear head.

    ViTs: tubelets of ``tubelet`` = (t, h, w) pixels and ``depth`` blocks of joint or divided space-time
    ``attention``. ``vit-s``, ``vit-b`` and ``vit-l`` are presets: what the recipe gives itself wins. The last norm
    stands on the ``tokens`` or on their mean (``pooled``, VideoMAE's). ``merge`` joins so many tokens in every
    block at inference (ToMe). CNNs: ``width`` scales all channels. X3D: ``depth_factor`` and ``bottleneck`` are the
    paper's gamma_d (5 in ``x3d-l``) and gamma_b. ``encoder = "hf:<folder or hub id>"`` is any video classifier of
    ``transformers``; ``transformers`` is then its configuration, filled in when it is saved.
    ``pretrained`` is a checkpoint (file, folder or hub id) that fine-tuning and pretraining start from.
    """

    encoder: str = "vit"
    dim: int = Field(default=192, ge=1)
    depth: int = Field(default=6, ge=1)
    heads: int = Field(default=3, ge=1)
    mlp_ratio: float = Field(default=4.0, gt=0)
    tubelet: tuple[_Count, _Count, _Count] = (2, 16, 16)
    attention: Literal["joint", "divided"] = "joint"
    norm: Literal["tokens", "pooled"] = "tokens"
    eps: float = Field(default=1e-5, ge=0)
    last_eps: float = Field(default=1e-5, ge=0)
    merge: int = Field(default=0, ge=0)
    width: float = Field(default=1.0, gt=0)
    depth_factor: float = Field(default=2.2, gt=0)
    bottleneck: float = Field(default=2.25, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    pretrained: str | None = Field(default=None, min_length=1)
    transformers: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _presets_fill_what_is_not_given(cls, raw: Any) -> Any:
        preset = _PRESETS.get(raw.get("encoder", "")) if isinstance(raw, dict) else None
        return {**preset, **raw} if preset else raw


class PretrainConfig(_Optim):
    """Self-supervised pretraining: ``objectives`` weighs them, ``settings`` holds what each one is told.

        [pretrain.objectives]
        masked = 1.0
        contrastive = 0.5
        [pretrain.settings.contrastive]
        momentum = 0.99

    Which objectives and settings there are is known, and checked, where training starts (``train.objectives``).
    """

    objectives: dict[str, float] = {"masked": 1.0}
    settings: dict[str, dict[str, Any]] = {}


class FinetuneConfig(_Optim):
    """Supervised fine-tuning of the teacher.

    ``task`` is what is learned and what chooses the weights: ``classification`` (accuracy, or mAP with many labels), or
    ``retrieval``: embeddings in which clips of one class lie close (mAP of the ranking), without mixed clips.
    ``linear_probe`` trains the head alone, ``freeze`` fixes the first N blocks (and what stands before them),
    ``layer_decay`` < 1 slows early layers down; frozen layers keep their batch-norm statistics too. ``rand_ops``
    RandAugment operations a clip at ``rand_strength``; ``mixup`` and ``cutmix`` are the alpha of their Beta
    distribution, 0 for off. ``views`` are the (temporal, spatial) crops that the one test at the end averages.
    """

    task: Literal["classification", "retrieval"] = "classification"
    linear_probe: bool = False
    freeze: int = Field(default=0, ge=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    rand_ops: int = Field(default=0, ge=0, le=8)
    rand_strength: float = Field(default=0.5, ge=0, le=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    views: tuple[_Count, Literal[1, 3]] = (1, 1)

    @model_validator(mode="after")
    def _retrieval_asks_whole_clips_of_a_learning_encoder(self) -> Self:
        if self.task == "retrieval" and (self.mixup or self.cutmix or self.linear_probe):
            raise ValueError(
                "retrieval trains the encoder on whole clips: set mixup = cutmix = 0, linear_probe = false"
            )
        if self.task == "retrieval" and self.batch < 4:
            raise ValueError("retrieval compares the clips of a batch: finetune.batch must be at least 4")
        return self


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
    dropout: float = Field(default=0.1, ge=0, lt=1)
    look_back: bool = False
    blocks: int | None = Field(default=None, ge=1)
    readout: Literal["average", "motion", "boxes"] = "average"
    boxes: BoxesConfig = BoxesConfig()
    lags: tuple[_Count, ...] = (1, 2, 3, 4)
    bends: tuple[_Count, ...] = (1, 2)
    pretrained: Path | None = None

    @model_validator(mode="after")
    def _motion_is_a_change_over_something(self) -> Self:
        if self.readout == "motion" and not (self.lags or self.bends):
            raise ValueError("a motion readout needs lags or bends: give at least one")
        return self


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
    """Structured pruning with torch-pruning, then recovery by distillation for ``epochs`` at ``lr``.

    The other settings of the optimiser are those of ``[distill]`` unless ``[prune]`` gives its own.
    """

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
    run: RunConfig = RunConfig()
    teacher: TeacherConfig = TeacherConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    student: StudentConfig = StudentConfig()
    distill: DistillConfig = DistillConfig()
    prune: PruneConfig = PruneConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    detection: DetectionConfig = DetectionConfig()

    @model_validator(mode="after")
    def _views_can_be_cut(self) -> Self:
        if self.finetune.views[1] == 3 and self.preprocess.fit != "crop":
            raise ValueError(
                'finetune.views asks for 3 spatial crops, and preprocess.fit = "stretch" shows the whole frame: '
                'set fit = "crop", or 1 spatial crop'
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _recovery_is_trained_as_distillation_was(cls, raw: Any) -> Any:
        distill, prune = (raw.get(key, {}) for key in ("distill", "prune")) if isinstance(raw, dict) else ({}, {})
        if not (isinstance(distill, dict) and isinstance(prune, dict)):
            return raw  # another validator says what is wrong
        shared = _Optim.model_fields.keys() - {"epochs", "lr"}
        return {**raw, "prune": {**{key: distill[key] for key in shared & distill.keys()}, **prune}}


#: Errors of pydantic where a number stands for a text: a name or a folder such as 2024.
_TEXT_WANTED = ("string_type", "path_type")


def load_recipe(path: Path | None, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a TOML recipe, apply ``section.key=value`` overrides and validate.

    Raises:
        UserError: missing file, bad TOML, unknown key (the nearest valid one is named) or bad value.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise UserError(f"recipe {path} {'is a folder' if path.is_dir() else 'does not exist'}: check the path")
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a mark first
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
    """Paths of the file are relative to its folder; those of the command line are not. Hub names stay as they are."""
    data = {key: folder / value for key in ("root", "videos") if (value := getattr(recipe.data, key)) is not None
            and not re.match("https?:/", value.as_posix()) and not _overridden(overrides, f"data.{key}")}  # fmt: skip
    teacher = {}
    for key, mark in (("pretrained", ""), ("encoder", "hf:")):
        name = getattr(recipe.teacher, key) or ""
        beside = folder / name.removeprefix(mark)
        if name and name.startswith(mark) and beside.exists() and not _overridden(overrides, f"teacher.{key}"):
            teacher[key] = f"{mark}{beside}"
    student = {}
    start = recipe.student.pretrained
    if start is not None and (folder / start).exists() and not _overridden(overrides, "student.pretrained"):
        student["pretrained"] = folder / start
    detection = {key: folder / value for key in ("teacher", "teacher_labels")
                 if (value := getattr(recipe.detection, key)) is not None
                 and not _overridden(overrides, f"detection.{key}")}  # fmt: skip
    rooted = {
        "data": recipe.data.model_copy(update=data), "teacher": recipe.teacher.model_copy(update=teacher),
        "student": recipe.student.model_copy(update=student),
        "detection": recipe.detection.model_copy(update=detection),
    }  # fmt: skip
    return recipe.model_copy(update=rooted)


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
        found = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        found = {}
    table[leaf] = found["value"] if len(found) == 1 else value  # an unquoted string


def _explain(error: ValidationError, path: Path | None) -> str:
    """One line for the first thing that is wrong, naming the nearest valid key."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    source = f"recipe {path}" if path is not None else "recipe"
    if where == "version":
        return f"{source} is of version {first['input']!r}, this vidon reads version 1: use a matching vidon or recipe"
    if first["type"] != "extra_forbidden":
        number = first["type"] in _TEXT_WANTED and isinstance(first["input"], int | float)
        quoted = f"; write it in quotes: '\"{first['input']}\"'" if number else ""
        return ": ".join(part for part in (source, where, first["msg"].removeprefix("Value error, ") + quoted) if part)
    model: Any = Recipe
    for part in first["loc"][:-1]:
        model = model.model_fields[str(part)].annotation
    fields = list(model.model_fields)
    word = str(first["loc"][-1])
    return f"{source}: unknown key {where!r}{nearest(word, fields)}; valid keys: {', '.join(fields)}"
