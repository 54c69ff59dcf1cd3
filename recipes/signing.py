"""Signatures of a built folder, in the format of the OpenSSF model signing specification, by its library."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from gptoss_convert.errors import InputError, OutputError, UnsupportedError, VerificationError
from gptoss_convert.recipes.state import STATE

SIGNATURE = "model.sig"
NOT_SIGNED = (SIGNATURE, STATE, "report")
"""What is in the folder of a build and is no part of what it delivers."""


def _library() -> ModuleType:
    try:
        import model_signing
    except ImportError as error:
        raise UnsupportedError(
            f"signatures need the library model-signing: {error}", hint="pip install 'gptoss-convert[release]'"
        ) from error
    return model_signing


def require_signing(key: Path) -> None:
    """Refuse what would fail later.

    Raises:
        InputError: there is no such key.
        UnsupportedError: the library is not installed.
    """
    _library()
    if not key.is_file():
        hint = "make one with: openssl ecparam -name prime256v1 -genkey -noout -out KEY"
        raise InputError("no such key", file=key, hint=hint)


def sign_folder(folder: Path, key: Path) -> Path:
    """Sign every file in `folder` but the state of the build; return the signature's path.

    Args:
        folder: of the build.
        key: a private key on an elliptic curve, in PEM.

    Raises:
        InputError: the key cannot be used.
        OutputError: the signature cannot be written.
        UnsupportedError: the library is not installed.
    """
    signing, hashing = _library().signing, _library().hashing
    path = folder / SIGNATURE
    try:
        path.unlink(missing_ok=True)
        config = hashing.Config().set_ignored_paths(paths=NOT_SIGNED)
        signer = signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(config)
        signer.sign(folder, path)
    except OSError as error:
        raise OutputError(f"cannot sign: {error.strerror or error}", file=path) from error
    except ValueError as error:
        raise InputError(f"cannot sign with this key: {error}", file=key) from error
    return path


def require_signature(folder: Path, key: Path) -> None:
    """Refuse a folder whose files are not those that were signed.

    Args:
        folder: that of a build, or a copy of it.
        key: the public key, in PEM.

    Raises:
        InputError: there is no signature, or the key cannot be used.
        UnsupportedError: the library is not installed.
        VerificationError: the signature is not that of these files and this key.
    """
    verifying, hashing = _library().verifying, _library().hashing
    path = folder / SIGNATURE
    for file, what in ((path, "signature"), (key, "key")):
        if not file.is_file():
            raise InputError(f"no such {what}", file=file)
    config = hashing.Config().set_ignored_paths(paths=NOT_SIGNED)
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except ValueError as error:
        raise InputError(f"not a public key: {error}", file=key) from error
    try:
        verifier.set_hashing_config(config).verify(folder, path)
    except Exception as error:  # the library names no class for what may be in a signature file
        raise VerificationError(f"signature does not hold: {error}", file=path) from error
