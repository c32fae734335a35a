"""Files that are whole or absent, hashes of what went into them, and one manifest per stage."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import yaml
from filelock import FileLock, Timeout

from recbole_edt.errors import ConfigError, DataError

LIBRARIES = ("recbole_edt", "numpy", "pandas", "scipy", "scikit-learn", "torch", "recbole", "openai")
_BLOCK = 2**20


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder; the lock ends with the process, however that ends.

    Raises: DataError if another process is in there, or the folder cannot be written to.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise DataError(f"{folder}: another process is training this run; wait until it is done, or stop it") from None
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # who waited for it finds the work done
        lock.release()


@contextmanager
def write_safely(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder that becomes ``path`` if the block succeeds.

    Parent folders are made. If the block fails or is interrupted, the temporary is deleted and a file
    already at ``path`` stays as it was.

    Raises: DataError naming ``path`` if it cannot be written (disk full, no permission, a folder).
    """
    path = Path(path)
    if not path.name:
        raise DataError(f"{path}: is a folder; name a file")
    # The suffix stays last: numpy.save and others add one where it is missing.
    temporary = path.with_name(f".{uuid4().hex[:12]}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 with ``\\n`` line ends, whole or not at all."""
    with write_safely(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write ``obj`` as indented JSON with sorted keys; numpy scalars, arrays and paths are allowed."""
    write_text(path, json.dumps(obj, indent=1, sort_keys=True, default=_plain) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises: DataError if the file is missing, unreadable or not JSON (with line and column).
    """
    content = read_bytes(path)
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise DataError(f"{where}: not valid JSON ({error.msg}); restore or delete the file") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, a number of thousands of digits, too deep
        raise DataError(f"{path}: not valid JSON ({error}); restore or delete the file") from error


def faults_of(value: Any, kinds: Mapping[str, type | tuple[type, ...]]) -> str:
    """Why a value that was read is no object with these keys, each of its type; empty if it is one."""
    if not isinstance(value, dict):
        return "is no object with keys"
    if lacking := [key for key in kinds if key not in value]:
        return f"lacks {', '.join(lacking)}"
    wrong = [key for key, kind in kinds.items() if not isinstance(value[key], kind)]
    return f"has a value of another type at {', '.join(wrong)}" if wrong else ""


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a whole file.

    Raises: DataError if the file is missing or unreadable.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def sha256_of(*parts: Any) -> str:
    """Hex SHA-256 of any mix of parts; their number, order and kinds matter.

    A ``Path`` stands for the content of its file (streamed). Numeric arrays count with type and shape,
    arrays of text by their values alone. Everything else is hashed as canonical JSON.

    Raises: DataError if a file cannot be read; TypeError if a part has no JSON form.
    """
    whole = hashlib.sha256()
    for part in parts:
        whole.update(_digest(part))
    return whole.hexdigest()


def is_current(path: str | os.PathLike[str], inputs_hash: str, outputs: Sequence[Path]) -> bool:
    """Whether the manifest at ``path`` has this inputs hash and every output is as it was written.

    A missing or damaged manifest is simply not current.
    """
    try:
        manifest = read_json(path)
        recorded = manifest["outputs"]
        if manifest["inputs_hash"] != inputs_hash:
            return False
        return all(recorded[_relative(output, path)] == sha256_of(Path(output)) for output in outputs)
    except (DataError, KeyError, TypeError):
        return False


def write_manifest(
    path: str | os.PathLike[str],
    stage: str,
    inputs_hash: str,
    config: Mapping[str, Any],
    counts: Mapping[str, Any],
    outputs: Sequence[Path],
    made_of: str = "",
) -> None:
    """Write what a stage read, did and produced, so that ``is_current`` can skip it the next time.

    Args:
        path: the manifest, in the folder of the outputs.
        stage: name of the stage.
        inputs_hash: ``sha256_of`` everything that the outputs depend on.
        config: settings of the stage, for the reader.
        counts: what was kept and dropped, for the reader.
        outputs: files that the stage wrote; each is recorded with its SHA-256.
        made_of: ``sha256_of`` the data alone, where somebody asks for it.
    """
    manifest = {
        "stage": stage,
        "inputs_hash": inputs_hash,
        "made_of": made_of,
        "config": dict(config),
        "counts": dict(counts),
        "versions": library_versions(),
        "outputs": {_relative(output, path): sha256_of(Path(output)) for output in outputs},
    }
    write_json(path, manifest)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that shape the results."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


def _digest(part: Any) -> bytes:
    if isinstance(part, Path):
        return _tagged("file", _file_digest(part))
    if isinstance(part, (bytes, bytearray, memoryview)):
        return _tagged("bytes", hashlib.sha256(part).digest())
    if isinstance(part, np.ndarray) and part.dtype.kind in "biufc":
        content = hashlib.sha256(np.ascontiguousarray(part).data).digest()
        return _tagged(f"array {part.dtype.str} {part.shape}", content)
    return _tagged("json", hashlib.sha256(_canonical_json(part)).digest())


def _tagged(kind: str, digest: bytes) -> bytes:
    return hashlib.sha256(kind.encode() + b"\0" + digest).digest()


def _file_digest(path: Path) -> bytes:
    content = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                content.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    return content.digest()


def _canonical_json(obj: Any) -> bytes:
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), default=_plain).encode("ascii")


def _plain(obj: Any) -> Any:
    """The JSON form of numpy values and paths inside other objects."""
    if isinstance(obj, (np.generic, np.ndarray)):
        return obj.tolist()
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    raise TypeError(f"no JSON form for {type(obj).__name__}")


def _relative(output: str | os.PathLike[str], manifest: str | os.PathLike[str]) -> str:
    """Path of an output as seen from its manifest, so that a moved folder stays current."""
    return Path(os.path.relpath(output, Path(manifest).parent)).as_posix()


def _unreadable(path: str | os.PathLike[str], error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file; check the folder and the name")
    return DataError(f"{path}: cannot be read ({error.strerror or error}); check that it is a readable file")


def _unwritable(path: Path, error: OSError) -> DataError:
    remedy = "give yourself the right to" if isinstance(error, PermissionError) else "free space"
    return DataError(f"{path}: cannot be written ({error.strerror or error}); {remedy} or choose another folder")


class _Loader(yaml.SafeLoader):
    """Plain YAML, except that 1e-3 is a number and that a key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)

TOO_DEEP = "a value is nested too deep, or holds itself; write it out without '&' and '*'"


def read_yaml(text: str, where: str = "configuration") -> Any:
    """Parse YAML without building any object but plain ones.

    Raises: ConfigError with the line and column of a syntax error.
    """
    try:
        return copy.deepcopy(_parsed(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: {getattr(error, 'problem', error)}") from None
    except ValueError as error:  # a date such as 2020-13-45
        raise ConfigError(f"{where}: {error}; put the text in quotes") from None
    except RecursionError:
        raise ConfigError(f"{where}: {TOO_DEEP}") from None


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # slow, and RecBole's own files are read again for every variant


def read_file(path: Path) -> dict[str, Any]:
    """One configuration file as a mapping.

    Raises: ConfigError if it is missing, not UTF-8 or not a mapping.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found a {type(values).__name__}")
    return values
