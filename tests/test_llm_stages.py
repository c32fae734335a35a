"""The stages with a language model that is a real server: on the command line, and with everything that goes wrong."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import write_tiny
from faulty_server import FaultyServer, batch_answers, word_vector
from llm_runs import KEY, STAGES, arguments, left
from test_end_to_end import swap_held_out

from recbole_edt.cli import run
from recbole_edt.config import settings
from recbole_edt.llm import client, templates
from recbole_edt.llm.store import AnswerStore
from recbole_edt.pipeline import manifest, model_access
from recbole_edt.text.vectors import EmbeddingTable

N_USERS = 12


def place_of(folder: Path) -> Path:
    write_tiny(folder / "atomic_files", "tiny", n_users=N_USERS)
    return folder


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # Waits between repetitions are tested with the client; here they would only take time.
    monkeypatch.setattr(model_access, "Client", partial(client.Client, backoff_s=0.001))


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer(api_key=KEY) as running:
        yield running


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return place_of(tmp_path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> SimpleNamespace:
    """What an undisturbed run leaves, the calls it took, and its cache; the URL is that of a server that is gone."""
    place = place_of(tmp_path_factory.mktemp("reference"))
    with pytest.MonkeyPatch.context() as patch, FaultyServer(api_key=KEY) as server:
        patch.chdir(place)
        patch.setenv("OPENAI_API_KEY", KEY)
        stages(arguments(server.url))
        return SimpleNamespace(place=place, left=left(place), bodies=server.bodies, url=server.url, port=server.port)


def stages(given: list[str], *names: str) -> None:
    for stage in names or STAGES:
        assert run([stage, *given]) == 0, stage


def counts(stage: str) -> dict:
    folder = "tiny" if stage == "embed" else "tiny-edt"
    return json.loads(Path(f"atomic_files/{folder}/{stage}.json").read_text())["counts"]


def said_last(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


# ---- what a run gives --------------------------------------------------------------------------------------------


def test_the_whole_run_asks_each_question_once_and_a_second_one_asks_nothing(place, server, capsys):
    given = arguments(server.url, epochs=1, finetune_epochs=1)
    assert run(given) == 0
    assert max(server.bodies.values()) == 1
    n_calls, files = server.n_calls, left(place)
    capsys.readouterr()
    assert run(given) == 0
    assert server.n_calls == n_calls and left(place) == files
    printed = capsys.readouterr().out
    assert "LLM: items written by writer, profiles by writer, texts embedded by vectors" in printed
    report = next(place.glob("runs/*/report.md")).read_text(encoding="utf-8")
    assert "| augment | answers |" in report and "no LLM was called" not in report
    assert "| augment | answers | " in report and " | 0.000194 |" in report and " | 0.000477 |" in report
    augment, profile = counts("augment"), counts("profile")
    assert augment["inserted"] > 5 and augment["failed"] == profile["failed"] == {}
    assert profile["profiles"] == N_USERS
    items = pd.read_csv("atomic_files/tiny-edt/tiny-edt.item", sep="\t", dtype=str)
    assert items["item_id:token"].str.startswith("edt-virtual-").sum() > 0


def test_no_file_that_a_run_leaves_holds_the_key(place, server):
    server.fault_share = 0.3
    server.cue("401")
    given = arguments(server.url, epochs=1, finetune_epochs=1, llm__timeout_s=1)
    assert run(given) == 1
    assert run(given) == 0
    assert run(["inspect", "--user=u1", *given]) == 0
    assert run(["cache", "export", "--file=answers.jsonl", *given]) == 0
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_other_held_out_interactions_change_no_question(place, server):
    assert swap_held_out(Path("atomic_files/tiny"), Path("swapped/tiny")) == 2 * N_USERS
    asked = []
    for folder in ("atomic_files", "swapped"):
        server.forget()
        stages([*arguments(server.url), f"--data_path={folder}"])
        asked.append(dict(server.bodies))
    assert len(asked[0]) > 3 * N_USERS and asked[0] == asked[1]


@pytest.mark.parametrize(
    ("generators", "questions"),
    [
        ({"augment__generator": "offline"}, {"summarize", "reform", "analyze"}),
        ({"profile__generator": "offline", "embed__embedder": "wordllama"}, {"generate"}),
        ({"profile__pipeline": "plain", "augment__generated_items": "catalog"}, {"generate", "plain"}),
        ({"profile__pipeline": "hierarchical", "augment__generator": "offline"}, {"summarize", "compose"}),
    ],
)
def test_each_part_may_be_offline(place, server, generators, questions):
    stages(arguments(server.url, **generators))
    with AnswerStore(Path("atomic_files/llm_cache.sqlite")) as store:
        found = {row["template"].partition("@")[0] for row in store.stats() if row["kind"] == "chat"}
    assert found == questions
    endpoint = generators.get("embed__embedder") is None
    assert any(path.endswith("embeddings") for path, _, _ in server.calls) == endpoint


@pytest.mark.parametrize("change", ["llm.temperature=0.1", "llm.seed=7", "llm.model=other", "llm.templates=own"])
def test_another_model_parameter_or_prompt_asks_anew_and_back_again_asks_nothing(place, server, change):
    Path("own").mkdir()
    packaged = (Path(templates.__file__).parent / "templates/generate.txt").read_text(encoding="utf-8")
    Path("own/generate.txt").write_text(packaged.replace("$items", "In short:\n$items"), encoding="utf-8")
    given = arguments(server.url, profile__generator="offline", embed__embedder="wordllama")
    stages(given)
    before = left(place)
    server.forget()
    stages([*given, f"--{change}"], "augment")
    assert server.n_calls == counts("augment")["used"]["chat"]["calls"] > 10
    server.forget()
    stages(given)
    assert server.n_calls == 0 and left(place) == before


def test_own_vectors_and_written_items_share_one_space(place, server, capsys):
    items = pd.read_csv("atomic_files/tiny/tiny.item", sep="\t", dtype=str)
    for dim, status in ((16, 0), (5, 1)):
        vectors = [" ".join(map(str, word_vector(title, dim))) for title in items["title:token_seq"]]
        lines = [f"{item}\t{vector}" for item, vector in zip(items["item_id:token"], vectors, strict=True)]
        Path("own.itememb").write_text("\n".join(["iid:token\tv:float_seq", *lines]) + "\n", encoding="utf-8")
        given = arguments(server.url, embed__vectors="own.itememb", profile__generator="offline")
        stages(given, "prepare", "embed")
        assert run(["augment", *given]) == status
    assert "5 numbers" in said_last(capsys)
    table = EmbeddingTable.load(Path("atomic_files/tiny-edt/tiny-edt.itemvec.safetensors"))
    assert table.dim == 16
    virtual = [token for token in table.tokens if token.startswith("edt-virtual-")]
    assert virtual and np.abs(table.lookup(virtual)).sum(axis=1).min() > 0


def test_a_user_can_be_inspected(place, server, capsys):
    given = arguments(server.url)
    server.choose = lambda body, nth: "not json" if len(body.get("messages", [])) == 2 else None  # the first turn
    stages(given)
    n_calls = server.n_calls
    assert run(["inspect", "--user=u1", *given]) == 0
    printed = capsys.readouterr().out
    page = Path("atomic_files/tiny-edt/inspect/u1.html").read_text(encoding="utf-8")
    kept = [json.loads(line) for line in Path("atomic_files/tiny-edt/augment_trace.jsonl").read_text().splitlines()]
    titles = [one["title"] for one in kept if one["user"] == "u1"]
    assert "Sure! Here are a few nice products." in page  # an answer that was unusable, and asked for again
    assert titles and all(title in page for title in titles)
    assert "u1" in printed and "kitchen" in printed
    assert server.n_calls == n_calls
    for other, named in (
        ("--llm.max_tokens=500", "augment was run with other settings or data (llm.max_tokens)"),
        ("--augment.tau=0.5", "augment was run with other settings or data (augment.tau)"),
        ("--profile.n_words=2", "profile was run with other settings or data (profile.n_words)"),
    ):
        assert run(["inspect", "--user=u1", *given, other]) == 1
        assert named in said_last(capsys)
    assert Path("atomic_files/tiny-edt/inspect/u1.html").read_text(encoding="utf-8") == page
    assert run(["inspect", "--user=nobody", *given]) == 1
    assert "data set 'tiny' has no user 'nobody'" in said_last(capsys)


# ---- before anything is sent -------------------------------------------------------------------------------------


def test_a_dry_run_sends_and_writes_nothing_and_its_ranges_hold(place, server, capsys):
    given = arguments(server.url)
    before = left(place)
    assert run(["--dry-run", *given]) == 0
    printed = capsys.readouterr().out
    assert server.n_calls == 0 and left(place) == before
    assert not list(place.rglob("*.sqlite*"))
    stages(given)
    foreseen = cells(printed)
    assert "offline embedder" in printed  # the vectors that choose who speaks for a user are not there yet
    for step, used in (
        ("generate", counts("augment")["used"]["chat"]),
        ("profile", counts("profile")["used"]["chat"]),
    ):
        steps = ("summarize", "reform", "analyze") if step == "profile" else (step,)
        for key, column in (("calls", "calls"), ("prompt_tokens", "prompt tokens")):
            least, most = (sum(number(foreseen[one][column])[end] for one in steps) for end in (0, 1))
            assert least * 0.9 <= used[key] <= most * 1.1, (step, key)
    capsys.readouterr()
    assert run(["--dry-run", *given]) == 0
    again = cells(capsys.readouterr().out)
    assert again["total"]["calls"] == again["total"]["prompt tokens"] == "0"


def test_two_kinds_of_profiles_are_foreseen_asked_once_and_inspected(place, server, capsys):
    given = arguments(server.url, models="LLMEDT,LLM4CDSR", augment__generator="offline")
    stages(given, "prepare", "embed")
    capsys.readouterr()
    assert run(["--dry-run", *given]) == 0
    foreseen = cells(capsys.readouterr().out)
    stages(given, "augment", "profile")
    with AnswerStore(Path("atomic_files/llm_cache.sqlite")) as store:
        asked = {row["template"].partition("@")[0]: row["answers"] for row in store.stats() if row["kind"] == "chat"}
    assert set(asked) == {"summarize", "reform", "analyze", "compose"}
    assert N_USERS < asked["summarize"] < 2 * N_USERS  # those of users without inserted rows serve both
    for step, calls in asked.items():
        assert number(foreseen[step]["calls"]) == (calls, calls), step
    assert counts("profile")["profiles"] == counts("profile.hierarchical")["profiles"] == N_USERS
    n_calls = server.n_calls
    stages(given)
    assert run(["inspect", "--user=u1", *given]) == 0
    page = Path("atomic_files/tiny-edt/inspect/u1.html").read_text(encoding="utf-8")
    assert "one comprehensive profile" in page and "How the activity is spread" in page
    assert server.n_calls == n_calls


def test_the_dry_run_of_the_readme_works_before_any_stage(tmp_path, monkeypatch, capsys):
    shutil.copytree("dataset_configs", tmp_path / "dataset_configs")
    monkeypatch.chdir(tmp_path)
    assert run(["--dataset=ml-100k-llm", "--dry-run"]) == 0
    foreseen = cells(capsys.readouterr().out)
    assert number(foreseen["generate"]["calls"])[0] > 900  # nearly every user has too little of one of the domains
    assert {path.name for path in tmp_path.glob("atomic_files/*/*")} == {
        "ml-100k-llm.inter",
        "ml-100k-llm.item",
        "prepare.json",
        "card.json",
        "card.md",
        "card.png",
    }


def test_a_dry_run_counts_answers_at_the_mean_of_stored_ones(place, server, capsys):
    given = arguments(server.url)
    stages(given)
    with sqlite3.connect("atomic_files/llm_cache.sqlite") as db:
        db.execute("UPDATE answers SET completion_tokens = 1500 WHERE template = 'generate@1'")  # it thinks first
        db.execute("UPDATE answers SET completion_tokens = 3 WHERE template = 'summarize@1'")
    capsys.readouterr()
    assert run(["--dry-run", *given, "--augment.n_generated=2"]) == 0
    foreseen = cells(capsys.readouterr().out)
    (calls,) = set(number(foreseen["generate"]["calls"]))
    assert number(foreseen["generate"]["answer tokens"]) == (1500 * calls, 1500 * calls)
    calls, tokens = (number(foreseen["summarize"][column]) for column in ("calls", "answer tokens"))
    assert tokens[0] in (3 * calls[0], 3 * calls[1]) and tokens[1] > tokens[0]


def cells(printed: str) -> dict[str, dict[str, str]]:
    """The table of a dry run by step and column."""
    rows = [re.split(r"  +", line.strip()) for line in printed.splitlines() if re.search(r"\w  +\w", line)]
    head, *rest = [row for row in rows if len(row) >= 6]
    return {row[0]: dict(zip(head[1:], row[1:], strict=False)) for row in rest}


def number(cell: str) -> tuple[int, int]:
    """Least and most of a cell such as ``1,200 to 3,000``."""
    found = [int(one.replace(",", "")) for one in cell.split(" to ")]
    return found[0], found[-1]


def test_the_limit_on_money_holds_for_all_stages_together(place, server, capsys):
    Path("prices.yaml").write_text("writer: {input: 100, output: 100}\nvectors: {input: 100}\n")
    given = arguments(server.url, llm__prices="prices.yaml", llm__concurrency=1)
    stages(given)
    by_stage = [sum(used["cost_usd"] for used in counts(stage)["used"].values()) for stage in STAGES[1:]]
    limit = by_stage[0] + by_stage[1] + by_stage[2] / 2
    dearest = 0.1  # no call has a thousand tokens
    for name in ("tiny-edt", "llm_cache.sqlite", "tiny/embed.json"):
        path = Path("atomic_files") / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run([f"--max-cost={limit}", *given]) == 1
    assert "max_cost" in said_last(capsys)
    with AnswerStore(Path("atomic_files/llm_cache.sqlite")) as store:
        spent = sum(row["cost_usd"] for row in store.stats())
    assert limit <= spent <= limit + dearest


def test_the_limit_on_money_holds_for_both_kinds_of_profiles_together(place, server, capsys):
    Path("prices.yaml").write_text("writer: {input: 1000, output: 1000}\nvectors: {input: 0}\n")
    given = arguments(server.url, models="LLMEDT,LLM4CDSR", llm__prices="prices.yaml", llm__concurrency=1)
    stages(given, "prepare", "embed", "augment")
    with AnswerStore(Path("atomic_files/llm_cache.sqlite")) as store:
        before = sum(row["cost_usd"] for row in store.stats())
        assert run(["profile", "--max-cost=12", *given]) == 1  # 8.87 for the first kind
        assert "max_cost" in said_last(capsys)
        assert 12 <= sum(row["cost_usd"] for row in store.stats()) - before < 13


def test_a_price_of_vectors_that_is_not_known_is_told_before_a_question_is_paid(place, server, capsys, monkeypatch):
    monkeypatch.setattr(client, "is_loopback", lambda url: False)
    Path("prices.yaml").write_text("writer: {input: 1, output: 1}\n")
    given = arguments(server.url, llm__prices="prices.yaml")
    stages(given, "prepare", "embed")
    server.forget()
    assert run(["augment", "--max-cost=50", *given]) == 2
    assert "llm.max_cost: the price of vectors is not known" in capsys.readouterr().err and server.n_calls == 0


def test_the_limit_on_money_stops_a_run_and_a_higher_one_goes_on(place, server, capsys):
    Path("prices.yaml").write_text("writer: {input: 1000, output: 1000}\nvectors: {input: 0}\n")
    given = arguments(server.url, llm__prices="prices.yaml", llm__concurrency=2)
    assert run(["--max-cost=1", *given, "augment"]) == 1  # the vectors are not there
    stages(given, "prepare", "embed")
    capsys.readouterr()
    assert run(["augment", "--max-cost=1", *given]) == 1
    assert "max_cost" in capsys.readouterr().err
    paid = server.n_calls
    assert run(["augment", *given]) == 0
    assert max(server.bodies.values()) == 1 and server.n_calls > paid
    cost = counts("augment")["used"]["chat"]["cost_usd"]
    assert cost > 1


# ---- faults ------------------------------------------------------------------------------------------------------


def test_with_three_faults_in_ten_every_user_is_accounted_for(place, server):
    server.fault_share = 0.3
    given = arguments(server.url, llm__retries=3, llm__timeout_s=2)
    stages(given)
    augment, profile = counts("augment"), counts("profile")
    trace = pd.read_json("atomic_files/tiny-edt/augment_trace.jsonl", lines=True, dtype=False)
    for way in ("food_to_kitchen", "kitchen_to_food"):
        source = way.split("_")[0]
        asked, answered = augment[f"users_asked_{way}"], augment[f"users_answered_{way}"]
        assert asked + augment[f"users_not_asked_{way}"] == N_USERS
        assert trace.loc[trace["source"] == source, "user"].nunique() == asked
        assert asked - answered <= sum(augment["failed"].values())
    assert profile["profiles"] + profile["users_failed"] <= N_USERS
    assert sum(server.stats()["faults"].values()) > 10
    rows = pd.read_csv("atomic_files/tiny-edt/tiny-edt.inter", sep="\t", dtype=str)
    items = pd.read_csv("atomic_files/tiny-edt/tiny-edt.item", sep="\t", dtype=str)
    assert set(rows["item_id:token"]) <= set(items["item_id:token"])
    assert items["title:token_seq"].str.len().min() > 0


def test_the_note_on_the_model_says_how_many_of_its_answers_failed(place, server):
    given = arguments(server.url, llm__retries=0, profile__generator="offline", embed__embedder="wordllama")
    heard: list[str] = []

    def third_question(body, nth):
        heard.append(json.dumps(body))
        return "503" if len(heard) == 3 else None

    server.choose = third_question
    stages(given)
    asked = counts("augment")["asked"]
    note = manifest.llm_note(settings.load_settings("tiny"))
    assert f"items written by writer (1 of {asked} requests failed), profiles made" in note
    server.choose = None
    stages(given)
    assert "items written by writer, profiles made" in manifest.llm_note(settings.load_settings("tiny"))


def test_a_run_after_failures_asks_for_those_alone_and_then_equals_an_undisturbed_one(place, server, reference):
    given = arguments(server.url, llm__retries=0)
    stages(given, "prepare", "embed")
    server.cue(None, None, "500", None, "500")
    stages(given, "augment")
    assert counts("augment")["failed"] == {"server": 2}
    server.forget()
    stages(given, "augment")
    assert sum(path.endswith("completions") for path, _, _ in server.calls) == 2
    assert counts("augment")["failed"] == {}
    stages(given, "profile")
    same_but_manifests = {name: content for name, content in left(place).items() if not name.endswith(".json")}
    for name, content in same_but_manifests.items():
        assert reference.left[name] == content, name


@pytest.mark.parametrize(
    ("fault", "message"),
    [("401", "OPENAI_API_KEY"), ("402", "Insufficient Balance"), ("404", "writer"), ("quota", "quota")],
)
def test_what_no_repetition_can_help_stops_at_once_in_one_message(place, server, capsys, fault, message):
    given = arguments(server.url)
    stages(given, "prepare", "embed")
    capsys.readouterr()
    n_calls = server.n_calls
    server.always = fault
    assert run(["augment", *given]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error and KEY not in error
    assert server.n_calls - n_calls <= 16
    server.always = None
    stages(given, "augment")


def test_without_a_server_the_message_names_it(place, capsys):
    given = arguments("http://127.0.0.1:9/v1", embed__embedder="wordllama", llm__retries=1)
    stages(given, "prepare", "embed")
    assert run(["augment", *given]) == 1
    assert "127.0.0.1:9" in said_last(capsys)
    assert not Path("atomic_files/tiny-edt/augment.json").exists()


# ---- the same answers, another way -------------------------------------------------------------------------------


def test_a_replay_needs_no_server_and_leaves_the_same_files(reference, place, capsys):
    shutil.copytree(reference.place / "atomic_files/tiny", "atomic_files/tiny", dirs_exist_ok=True)
    shutil.copy(reference.place / "atomic_files/llm_cache.sqlite", "atomic_files")
    given = [*arguments(reference.url), "--llm.replay=true"]
    stages(given)
    assert left(place) == reference.left
    shutil.rmtree("atomic_files/tiny-edt")
    assert run(["cache", "prune", "--template=generate", *given]) == 0
    capsys.readouterr()
    assert run(["augment", *given]) == 1
    error = capsys.readouterr().err
    assert "u0" in error or "user" in error


def test_a_mistyped_cache_is_named_and_not_made(place, server, capsys):
    given = arguments(server.url)
    stages(given)
    wrong = "--llm.cache=elsewhere/mistyped.sqlite"
    shutil.copytree("atomic_files/tiny", "other/tiny")
    Path("other/tiny/embed.json").unlink()
    for command in (["inspect", "--user=u1"], ["embed", "--llm.replay=true", "--data_path=other"], ["cache", "stats"]):
        assert run([*command, *given, wrong]) == 1
        assert "mistyped.sqlite: no answers are stored yet" in said_last(capsys)
    assert not Path("elsewhere").exists()


def test_answers_by_batch_files_leave_the_same_files_and_one_call(place, server, reference, capsys):
    given = arguments(server.url)
    waves = 0
    while True:
        Path("batch.jsonl").unlink(missing_ok=True)
        assert run(["batch", "export", "--file=batch.jsonl", *given]) == 0
        if not Path("batch.jsonl").exists():
            break
        results = batch_answers(Path("batch.jsonl").read_text(encoding="utf-8"))
        Path("results.jsonl").write_text(results, encoding="utf-8")
        assert run(["batch", "import", "--file=results.jsonl", *given]) == 0
        waves += 1
        assert waves < 8
    assert waves == 7  # vectors of items, items, their vectors by domain, summaries, profiles, their vectors
    (first,) = server.calls  # the one question that tells how this endpoint is to be asked
    assert first[0].endswith("completions")
    Path("results.jsonl").unlink()
    for name, content in left(place).items():
        if not name.endswith(".json"):
            assert reference.left[name] == content, name
    stages(given)
    assert server.n_calls == 1


def test_the_cache_can_be_counted_exported_and_pruned(place, server, capsys):
    given = arguments(server.url)
    assert run(["cache", "stats", *given]) == 1
    assert "no answers are stored yet" in said_last(capsys)
    stages(given)
    capsys.readouterr()
    assert run(["cache", "stats", *given]) == 0
    printed = capsys.readouterr().out
    assert "generate@1" in printed and "vectors" in printed
    assert run(["cache", "export", "--file=answers.jsonl", *given]) == 0
    lines = Path("answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 3 * N_USERS and json.loads(lines[0])["model"] in ("writer", "vectors")
    assert run(["cache", "prune", *given]) == 2
    asked = counts("augment")["used"]["chat"]["calls"]  # equal questions are asked once
    assert run(["cache", "prune", "--model=writer", "--template=generate", *given]) == 0
    assert f"\n{asked} answers deleted" in capsys.readouterr().out
    for days in ("soon", "0", "-1", "nan", "1000000", "1e12"):
        assert run(["cache", "prune", f"--older-than={days}", *given]) == 2
        assert "is not a number of days above 0 and up to 36,500" in capsys.readouterr().err
    assert run(["cache", "prune", "--older-than=36500", *given]) == 0
