"""What a bug report needs: versions, known troubles of the installation, and a check of the data set."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable

import numpy as np
import torch

from recbole_edt import compat
from recbole_edt.config.settings import Settings
from recbole_edt.data import atomic, split, statistics
from recbole_edt.errors import EDTError
from recbole_edt.files import library_versions
from recbole_edt.llm.settings import OPENAI, shown
from recbole_edt.pipeline import stages
from recbole_edt.text import embedders, item_text

Say = Callable[[str], None]


def run(settings: Settings, say: Say) -> int:
    """Print everything; 0 if all is well, 1 if anything is broken."""
    say("versions: " + ", ".join(f"{name} {version}" for name, version in library_versions().items()))
    say(f"system: {platform.system()} {platform.machine()}, torch sees {_device()}")
    broken = [problem for check in (_installation, _quick_start) if (problem := check(say))]
    if (settings.folder / f"{settings.dataset}.inter").is_file():
        broken += [problem for problem in [_data(settings, say)] if problem]
    elif settings.prepare.source is not None:
        say(f"data: {settings.folder} has no {settings.dataset}.inter yet (the stage prepare makes it)")
    else:
        broken.append(f"{settings.folder} has no {settings.dataset}.inter: put your data there, or correct --dataset")
    say(_language_model(settings))
    for problem in broken:
        say(f"PROBLEM: {problem}")
    say("no problem found" if not broken else f"{len(broken)} problem(s) found")
    return 1 if broken else 0


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"no GPU, {torch.get_num_threads()} threads"


def _installation(say: Say) -> str | None:
    try:
        compat.check()
        compat.apply()
        embedders.EMBEDDERS["wordllama"]()
    except EDTError as error:
        return str(error)
    say(f"installation: RecBole {compat.RECBOLE_VERSION} with the hooks we use; default embedder present")
    return None


def _quick_start(say: Say) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import recbole.quick_start  # noqa: F401  (needs ray; only RecBole's own runner uses it)
    except Exception as error:  # whatever ray trips over
        cause = f"{type(error).__name__}: {error}"
        say(f"RecBole's own quick start does not import here ({cause}); this package does not use it")
    else:
        say("RecBole's own quick start imports: run_recbole works after recbole_edt.register()")
    return None


def _language_model(settings: Settings) -> str:
    """What would be asked, without asking it; of the key only whether it is there."""
    asked = {
        "chat": settings.llm if "llm" in (settings.augment.generator, settings.profile.generator) else None,
        "vectors": settings.embedding if settings.embed.embedder == embedders.ENDPOINT else None,
    }
    told = [
        f"{name}: {one.model or 'no model named (llm.model)'} at "
        f"{one.base_url or OPENAI}, {_presence(one.api_key_env)}"
        for name, one in asked.items()
        if one is not None
    ]
    return "; ".join(told) if told else "language model: none is asked with these settings"


def _presence(variable: str | None) -> str:
    if variable is None:
        return "no key"
    return f"{shown(variable)} is {'set' if os.environ.get(variable) else 'not set'}"


def _data(settings: Settings, say: Say) -> str | None:
    try:
        data = atomic.read(settings.folder, settings.dataset, settings.domains, settings.k_core)
        found = statistics.card(data)
        for line in (f"data {settings.dataset}: {statistics.listed(found)}", *statistics.oddities(found, data.domains)):
            say(line)
        stages.check_clusters(settings, data)
    except EDTError as error:
        return str(error)
    n_rows = np.diff(data.offsets)
    same_user, ties = statistics.tied(data)
    marks = split.leave_one_out(data)
    texts = item_text.item_text(data.item_fields)
    silent = len(data.items) - len(np.unique(data.item))
    say(f"  {ties.sum()} of {same_user.sum()} neighbouring interactions have the same time (the file's order decides)")
    say(f"  {(n_rows < split.MIN_RAW_ROWS).sum()} users with fewer than 3 interactions only train")
    say(f"  {(marks == split.TEST).sum()} users have a validation and a test target")
    say(f"  {sum(not text for text in texts)} items without text, {silent} without interactions")
    return None
