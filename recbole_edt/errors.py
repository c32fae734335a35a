"""What can go wrong, said in words that name the thing, the place and the remedy."""

from __future__ import annotations


class EDTError(Exception):
    """Base of every error that recbole_edt raises for its caller's input."""


class ConfigError(EDTError):
    """A setting is unknown, missing, malformed, or contradicts another."""


class DataError(EDTError):
    """A file or table is missing, damaged, unreadable, or does not fit the others."""


class LLMError(EDTError):
    """A language model could not be reached, refused, or answered with something unusable."""
