"""A service account's key in Google's form, made for one test."""

from __future__ import annotations

from functools import cache

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


@cache
def _private() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def service_account(token_uri: str) -> dict[str, str]:
    """The key of an account whose tokens come from `token_uri`."""
    private = _private().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {
        "type": "service_account",
        "project_id": "sim",
        "private_key_id": "1",
        "private_key": private.decode(),
        "client_email": "tester@sim.iam.gserviceaccount.test",
        "token_uri": token_uri,
    }


def public_key(key: dict[str, str]) -> bytes:
    """The public key for an account's signatures."""
    private = serialization.load_pem_private_key(key["private_key"].encode(), None)
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
