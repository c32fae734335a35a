"""LLM-enhanced cross-domain sequential recommendation (LLM-EDT) for RecBole.

Importing this package changes nothing; ``register()`` makes the model known to RecBole.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "register"]


def register() -> None:
    """Make the methods known to RecBole by name; see ``recbole_edt.train.register.register``."""
    from recbole_edt.train import register

    register.register()


def load(run_dir: Any, data_path: Any = None) -> Any:
    """Open a trained model from its run directory; ``data_path`` if the atomic files have moved since.

    See ``recbole_edt.recommend.recommender.load``.
    """
    from recbole_edt.recommend import recommender

    return recommender.load(run_dir, data_path)
