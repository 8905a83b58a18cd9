"""The bundle: everything a board needs to run a model, in one folder (or one zip) with checksums.

    NAME.vidon/
      manifest.json        schema, task, labels, preprocessing, stream contract, artefacts, lineage, checksums
      models/<runtime>-<precision>/...
      golden.npz           inputs and the float model's answers for a few dozen steps
      signature.json       optional: who vouches for the manifest (toolkit.signing)

A bundle appears whole or not at all; opening one checks its schema and every checksum. There is no pickle.
"""

import atexit
import contextlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.contract import Array, Contract
from toolkit.errors import BundleError, UserError, VidonError, nearest
from toolkit.files import fresh_dir, sha256, write_text
from toolkit.preprocess import Preprocess

__all__ = [
    "SCHEMA",
    "SIGNATURE",
    "Artefact",
    "Bundle",
    "Evidence",
    "Golden",
    "Manifest",
    "create_bundle",
    "open_bundle",
    "seal",
]

SCHEMA = 1
SIGNATURE = "signature.json"
# Weights hardly get smaller in a zip: more than so many times is no model. Small bundles may be as dense as they like.
_DENSEST, _HARMLESS = 100, 64 * 2**20
Precision = Literal["fp32", "fp16", "int8"]
#: How an artefact's answers were checked: by running it, in the vendor's simulator, or only its integer source.
Evidence = Literal["measured", "simulated", "compiled"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Artefact(_Frozen):
    """One compiled file set for one runtime and precision, in ``models/<runtime>-<precision>[-<target>]/``.

    ``target`` is the chip that it was compiled for, if for one only.
    """

    runtime: str
    precision: Precision
    entry: str
    metrics: dict[str, float] = {}
    target: str = ""
    evidence: Evidence = "measured"

    @property
    def key(self) -> str:
        """``<runtime>-<precision>`` or ``<runtime>-<precision>-<target>``, unique in a bundle."""
        return "-".join(part for part in (self.runtime, self.precision, self.target) if part)

    @property
    def folder(self) -> str:
        """Folder of the files, relative to the bundle."""
        return f"models/{self.key}"


class Manifest(_Frozen):
    """What ``manifest.json`` holds. ``files`` maps each relative path to its SHA-256."""

    schema_version: int = Field(default=SCHEMA, ge=SCHEMA, le=SCHEMA)
    name: str
    task: str = "classification"
    labels: tuple[str, ...]
    preprocess: Preprocess
    contract: Contract
    artefacts: tuple[Artefact, ...] = ()
    lineage: dict[str, Any] = {}
    best: str | None = None
    files: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Golden:
    """The float model's own rollout. frames: (T, 3, H, W) float32; logits: (T, K) float32.

    For a clip model ``frames`` is the frame sequence and ``logits[t]`` the answer for the window that ends at t.
    """

    frames: Array
    logits: Array


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened, verified bundle at ``root``."""

    root: Path
    manifest: Manifest

    def artefact(self, key: str) -> Artefact:
        """Return the artefact called ``key`` (``<runtime>-<precision>``).

        Raises:
            UserError: no such artefact; lists those there are.
        """
        found = {artefact.key: artefact for artefact in self.manifest.artefacts}
        if key not in found:
            raise UserError(
                f"bundle {self.root} has no artefact {key!r}{nearest(key, found)}; it has: {', '.join(found)}"
            )
        return found[key]

    def golden(self) -> Golden:
        """Load the golden steps (no pickle)."""
        try:
            with np.load(self.root / "golden.npz", allow_pickle=False) as data:
                return Golden(frames=data["frames"], logits=data["logits"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise BundleError(
                f"bundle {self.root}: golden.npz cannot be read ({error}); export the bundle again"
            ) from error


@contextlib.contextmanager
def create_bundle(path: Path, manifest: Manifest, golden: Golden) -> Iterator[Path]:
    """Yield a staging folder to fill with ``models/``; on success it becomes the bundle at ``path``.

    The checksums are taken and ``manifest.json`` is written last.
    """
    with fresh_dir(path) as staging:
        yield staging
        np.savez_compressed(staging / "golden.npz", frames=golden.frames, logits=golden.logits)
        seal(staging, manifest)


def seal(root: Path, manifest: Manifest) -> Manifest:
    """Take the checksum of every file below ``root``, write ``manifest.json``, and drop a signature of the old one."""
    (root / SIGNATURE).unlink(missing_ok=True)
    files = {
        file.relative_to(root).as_posix(): sha256(file)
        for file in sorted(root.rglob("*"))
        if file.is_file() and file != root / "manifest.json"
    }
    sealed = manifest.model_copy(update={"files": files})
    write_text(root / "manifest.json", sealed.model_dump_json(indent=2) + "\n")
    return sealed


def open_bundle(path: Path, check: bool = True, keys: Sequence[str] = ()) -> Bundle:
    """Open a bundle folder, or unpack and open a zipped bundle, verifying schema and checksums.

    ``keys`` are artefacts that will be asked for: a name that is wrong is told before any file is read.

    Raises:
        UserError: the path does not exist, or there is no such artefact.
        BundleError: not a bundle, another schema, missing, changed or foreign file; each is named.
    """
    if not path.exists():
        raise UserError(f"bundle {path} does not exist: check the path, or make one with  vidon export")
    root = path if path.is_dir() else _unpack(path)
    bundle = Bundle(root=root, manifest=_read_manifest(root, path))
    for key in keys:
        bundle.artefact(key)
    if check:
        _check_files(root, bundle.manifest, path)
    return bundle


def _read_manifest(root: Path, path: Path) -> Manifest:
    """``path`` is what people know the bundle by, perhaps a zip."""
    file = root / "manifest.json"
    if not file.is_file():
        raise BundleError(f"{path} is not a bundle: it has no manifest.json")
    try:
        raw = json.loads(file.read_bytes())
        version = raw["schema_version"]
        if isinstance(version, int) and version > SCHEMA:
            raise BundleError(f"bundle {path} has schema {version}, this vidon reads up to {SCHEMA}: upgrade vidon")
        return Manifest.model_validate(raw)
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise BundleError(f"bundle {path}: manifest.json is damaged ({first}); copy the bundle again") from error


def _check_files(root: Path, manifest: Manifest, path: Path) -> None:
    for name, digest in manifest.files.items():
        file = root / name
        if not file.resolve().is_relative_to(root.resolve()):
            raise BundleError(f"bundle {path}: {name} points outside the bundle; do not use it")
        if not file.is_file():
            raise BundleError(f"bundle {path}: {name} is missing; copy the bundle again")
        if sha256(file) != digest:
            raise BundleError(f"bundle {path}: {name} was changed or damaged (checksum differs); copy the bundle again")
    for artefact in manifest.artefacts:
        if f"{artefact.folder}/{artefact.entry}" not in manifest.files:
            raise BundleError(f"bundle {path}: {artefact.key} is of a file without a checksum ({artefact.entry})")
    # Runtimes open some files because they lie there (a batch's, an estimate's): none may come in unchecked.
    for file in sorted((root / "models").rglob("*")):
        name = file.relative_to(root).as_posix()
        if file.is_symlink():  # nobody looks into the folder behind it
            raise BundleError(f"bundle {path}: {name} is a link; copy the bundle again, with the files themselves")
        if file.is_file() and not file.name.startswith(".") and name not in manifest.files:
            raise BundleError(f"bundle {path}: {name} is not of this bundle; remove it")


def _unpack(path: Path) -> Path:
    """Unpack a zipped bundle into a temporary folder that lives as long as the process; return its root."""
    target = Path(tempfile.mkdtemp(prefix="vidon-bundle-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as archive:
            _need_room(archive, path, target)
            for name in archive.namelist():
                if not (target / name).resolve().is_relative_to(target.resolve()):
                    raise BundleError(f"bundle {path}: {name} points outside the bundle; do not use it")
            archive.extractall(target)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        shutil.rmtree(target, ignore_errors=True)
        raise BundleError(f"bundle {path} is not a readable zip ({error}); copy it again") from error
    except VidonError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    found = [target, *(child for child in target.iterdir() if child.is_dir())]
    return next((root for root in found if (root / "manifest.json").is_file()), target)


def _need_room(archive: zipfile.ZipFile, path: Path, target: Path) -> None:
    """What unpacking takes is known before: zipfile never writes more than an entry says.

    Raises:
        BundleError: far more than models can be compressed.
        UserError: more than the disk has left.
    """
    size = sum(info.file_size for info in archive.infolist())
    share = size // max(1, path.stat().st_size)
    if size > _HARMLESS and share > _DENSEST:
        mib = size / 2**20
        raise BundleError(f"bundle {path} would unpack to {mib:.0f} MiB, {share} times its size; do not use it")
    if size > shutil.disk_usage(target).free:
        raise UserError(
            f"cannot unpack {path}: it needs {size / 2**20:.1f} MiB in {target.parent}: free some space, or let TMPDIR "
            "name another folder"
        )
