"""Saved directories: JSON and safetensors, written whole or not at all, read without trusting a byte of them."""

from jaxrl.storage.directory import Files, Writer, checksum, drop, opened, write, write_into

__all__ = ["Files", "Writer", "checksum", "drop", "opened", "write", "write_into"]
