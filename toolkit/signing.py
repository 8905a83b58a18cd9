"""Who made this bundle: an Ed25519 signature (RFC 8032) over ``manifest.json``, which names every file's checksum.

``signature.json`` stands beside the manifest. A signature says who vouches for the bundle; the checksums say that
nothing changed. Keys are PEM files: the private one stays with the maker, the public one goes to the boards.
"""

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from toolkit.bundle import SIGNATURE, Bundle
from toolkit.errors import BundleError, MissingDependency, UserError
from toolkit.files import write_bytes, write_json

__all__ = ["check_signature", "make_keys", "sign_bundle"]


def _library() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingDependency("cryptography", "sign") from error
    return serialization, ed25519


def make_keys(private: Path) -> Path:
    """Write a new key pair: ``private`` (readable by its owner only) and ``<private>.pub``; return the public one.

    Raises:
        UserError: the file exists already; a key is never overwritten.
    """
    serialization, ed25519 = _library()
    public = private.with_name(private.name + ".pub")
    for path in (private, public):
        if path.exists():
            raise UserError(f"key {path} exists already: choose another name")
    key = ed25519.Ed25519PrivateKey.generate()
    plain, pem = serialization.NoEncryption(), serialization.Encoding.PEM
    write_bytes(private, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain), mode=0o600)
    write_bytes(public, key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return public


def sign_bundle(bundle: Bundle, private: Path) -> Path:
    """Sign the manifest as it is now; return ``signature.json``.

    Raises:
        UserError: the key is missing or is not an Ed25519 private key.
    """
    serialization, ed25519 = _library()
    try:
        key = serialization.load_pem_private_key(private.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"key {private} cannot be read ({error}): make one with  vidon sign --new-key") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UserError(f"key {private} is not an Ed25519 key: make one with  vidon sign --new-key")
    signature = key.sign((bundle.root / "manifest.json").read_bytes())
    text = base64.b64encode(signature).decode()
    return write_json(bundle.root / SIGNATURE, {"algorithm": "ed25519", "signature": text})


def check_signature(bundle: Bundle, public: Path) -> None:
    """Refuse a bundle that the owner of ``public`` did not sign.

    Raises:
        BundleError: unsigned, signed by someone else, or changed since.
        UserError: the key is missing or is not an Ed25519 public key.
    """
    serialization, ed25519 = _library()
    from cryptography.exceptions import InvalidSignature

    try:
        key = serialization.load_pem_public_key(public.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"key {public} cannot be read ({error}): give the .pub file of the maker") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise UserError(f"key {public} is not an Ed25519 public key: give the .pub file of the maker")
    file = bundle.root / SIGNATURE
    if not file.is_file():
        raise BundleError(f"bundle {bundle.root} is not signed: ask its maker to run  vidon sign")
    try:
        signature = base64.b64decode(json.loads(file.read_bytes())["signature"], validate=True)
        key.verify(signature, (bundle.root / "manifest.json").read_bytes())
    except (ValueError, KeyError, TypeError, binascii.Error, InvalidSignature) as error:
        raise BundleError(
            f"bundle {bundle.root}: the signature is not by the owner of {public}, or the bundle was changed since"
        ) from error
