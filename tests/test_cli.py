"""The command line as a user meets it: help, stages on their own, and one readable message for every bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from conftest import QUICK, write_tiny

import recbole_edt
from recbole_edt import cli
from recbole_edt.cli import run
from recbole_edt.errors import ConfigError

FLAGS = [f"--{key}={value}" for key, value in {**QUICK, "epochs": 1, "finetune_epochs": 1}.items()]
TINY = ["--dataset=tiny", *FLAGS]
RUN_EDT = Path(recbole_edt.__file__).parents[1] / "run_edt.py"


@pytest.fixture
def fails(capsys):
    """A function that runs the command line, expects exit status 1 and gives the one-line message."""

    def check(*arguments: str) -> str:
        capsys.readouterr()
        status = run(list(arguments))
        message = capsys.readouterr().err
        assert status == 1, message
        assert message.startswith("error: ") and message.count("\n") == 1, message
        return message

    return check


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- arguments ---------------------------------------------------------------------------------------------------


def test_help_names_every_stage_and_the_stages_help_says_what_it_reads_and_writes(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {stage} " in text for stage in cli.STAGES)
    for stage in cli.STAGES:
        assert run([stage, "-h"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"python run_edt.py {stage} ")
        assert "\nReads " in text and "\nWrites " in text


def test_without_recbole_there_is_one_message_that_says_how_to_install_it(workplace):
    code = "import sys; sys.modules['recbole'] = None; from recbole_edt import cli; sys.exit(cli.run(['doctor']))"
    code = f"import sys; sys.path.insert(0, {str(RUN_EDT.parent)!r}); {code}"  # it need not be installed
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: RecBole is not installed: pip install recbole==1.2.1")


def test_every_key_that_the_help_names_exists():
    from recbole_edt.config.settings import GROUPS

    named = [key.strip(" ,\n") for text in cli.STAGES.values() for key in text.split() if "." in key]
    keys = [key for key in named if key.partition(".")[0] in GROUPS and not key.endswith(("json", "csv"))]
    assert len(keys) > 10
    for key in keys:
        group, _, name = key.partition(".")
        assert name in GROUPS[group].__dataclass_fields__, key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["traim"], "unknown stage 'traim' (did you mean 'train'?)"),
        (["everything"], "unknown stage 'everything' (stages are prepare, embed,"),
        (["train", "compare"], "two stages, train and compare: give one at a time\n"),
        (["prepare", "prepare"], "two stages, prepare and prepare: give one at a time\n"),
        (["--dataset", "tiny"], "--dataset: expected --key=value; write --dataset=tiny\n"),
        (["--seen", "--k=3"], "--seen: expected --key=value\n"),
        (["-dataset=tiny"], "-dataset=tiny: expected --key=value"),
        (["--epochs=[1"], "--epochs, line 1, column 3: "),
    ],
)
def test_arguments_of_another_form_are_refused(workplace, capsys, arguments, message):
    assert run(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_main_leaves_with_the_exit_status(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["traim"])
    assert left.value.code == 2


def test_texts_that_the_terminal_cannot_show_are_escaped(monkeypatch):
    content = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(content, encoding="ascii"))
    monkeypatch.setattr(cli, "run", lambda arguments: print("café"))
    with pytest.raises(SystemExit):
        cli.main([])
    assert content.getvalue() == b"caf\\xe9\n"


def test_a_reader_that_leaves_early_is_no_traceback():
    process = subprocess.Popen([sys.executable, str(RUN_EDT), "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.parametrize("stage", ["train", "compare", "recommend", "report", "profile"])
def test_a_data_set_that_is_not_there_at_all_is_named_with_where_it_was_looked_for(workplace, fails, stage):
    message = fails(stage, "--dataset=nosuch")
    assert "no data set nosuch in atomic_files/ and no dataset_configs/nosuch.yaml" in message


def test_a_report_before_any_training_says_what_to_run(workplace, fails):
    for stage in ("embed", "augment"):
        assert run([stage, *TINY]) == 0
    assert "no finished run: run `python run_edt.py compare --dataset=tiny` (or train) first" in fails("report", *TINY)


# ---- stages on their own -----------------------------------------------------------------------------------------


def test_each_stage_works_on_the_files_of_the_ones_before_and_names_the_one_that_is_missing(workplace, fails):
    (workplace / "empty").mkdir()
    for stage in ("prepare", "embed"):
        message = fails(stage, *TINY, "--data_path=empty")
        assert "empty/tiny/tiny." in message and "no such file" in message
    assert "embed" in fails("augment", *TINY)
    for stage in ("profile", "train", "compare", "recommend"):
        assert "atomic_files/tiny-edt/tiny-edt.inter does not exist: run the stage augment first" in fails(stage, *TINY)
    assert run(["embed", *TINY]) == 0
    assert "run the stage augment first" in fails("profile", *TINY)
    assert run(["augment", *TINY]) == 0
    assert "tiny-edt.uservec.safetensors does not exist" in fails("train", *TINY)
    assert run(["train", "--model=SASRec", *TINY]) == 0  # needs no profiles
    assert run(["profile", *TINY]) == 0
    assert "run the stage train first" in fails("recommend", *TINY)
    assert run(["train", *TINY]) == 0
    assert run(["recommend", *TINY]) == 0
    assert run(["compare", "--models=SASRec,LLMEDT", *TINY]) == 0


def test_with_a_model_and_no_stage_the_run_ends_with_that_model(workplace, capsys):
    assert run(["--model=LLMEDT", *TINY]) == 0
    printed = capsys.readouterr().out
    assert "LLMEDT" in printed and "SASRec" not in printed
    (folder,) = Path("runs").iterdir()
    assert [path.name.partition("-")[0] for path in folder.iterdir()] == ["LLMEDT"]


# ---- bad data ----------------------------------------------------------------------------------------------------

ITEMS = "item_id:token\tdomain:token\ttitle:token_seq\nf\tfood\ttea\ng\tfood\trice\nk\tkitchen\tpan\n"
ROWS = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(
    f"u{user}\t{item}\t{time}\n" for user in range(3) for time, item in enumerate("fgkf")
)


def spoilt(rows: str | bytes | None = ROWS, items: str | bytes | None = ITEMS) -> None:
    for end, content in (("inter", rows), ("item", items)):
        path = Path("atomic_files/tiny") / f"tiny.{end}"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture
def embedded(workplace):
    """The tiny data set with the outputs of every stage before training."""
    for stage in ("embed", "augment", "profile"):
        assert run([stage, *TINY]) == 0
    return workplace


BAD_DATA = {
    "missing .inter": ({"rows": None}, "tiny.inter: no such file; check"),
    "missing .item": ({"items": None}, "tiny.item: no such file; check"),
    "missing column": ({"rows": ROWS.replace("timestamp", "when")}, "no column 'timestamp' (found:"),
    "no types": ({"rows": ROWS.replace("timestamp:float", "timestamp")}, "line 1: the header has 'timestamp'"),
    "third domain": ({"items": ITEMS + "t\ttoys\tball\n"}, "'domain': 3 domain(s) found ('food', 'kitchen', 'toys')"),
    "one domain": ({"items": ITEMS.replace("kitchen", "food")}, "column 'domain': 1 domain(s) found ('food')"),
    "item twice": ({"items": ITEMS + "g\tfood\trice\n"}, "line 5, column 'item_id': item 'g' is already on line 3"),
    "unknown item": ({"rows": ROWS + "u1\tz\t9\n"}, "line 14, column 'item_id': item 'z' is not in tiny.item"),
    "nan": ({"rows": ROWS + "u1\tf\tnan\n"}, "line 14, column 'timestamp': 'nan' is not a finite number"),
    "text time": ({"rows": ROWS + "u1\tf\tMonday\n"}, "line 14, column 'timestamp': 'Monday' is not a finite number"),
    "short row": ({"rows": ROWS + "u1\tf\n"}, "tiny.inter, line 14: 2 tab-separated field(s), expected 3"),
    "empty .inter": ({"rows": ""}, "tiny.inter: the file is empty"),
    "empty .item": ({"items": ""}, "tiny.item: the file is empty"),
    "header only": ({"rows": ROWS.splitlines()[0] + "\n"}, "tiny.inter: there is a header but no row"),
    "latin-1": ({"rows": ROWS.encode() + b"caf\xe9\tf\t9\n"}, "tiny.inter, line 14: byte 0xe9 is not UTF-8; convert"),
    "nul bytes": ({"items": ITEMS.encode() + b"x\tfood\t\0\n"}, "tiny.item, line 5: a NUL byte"),
}


def test_bad_data_ends_in_one_message_and_touches_nothing(embedded, fails):
    for name, (files, message) in BAD_DATA.items():
        spoilt(**files)
        before = snapshot(embedded)
        for stage in ("prepare", "embed", "augment"):
            assert message in fails(stage, *TINY), name
        assert message in fails(*TINY), name
        assert snapshot(embedded) == before, name
        spoilt()
    assert run(["prepare", *TINY, "--augment.n_clusters=1", "--profile.n_clusters=1"]) == 0


def test_users_with_one_interaction_each_leave_nothing_to_train_on(workplace, fails):
    rows = "".join(f"u{i}\t{'fgk'[i % 3]}\t1\n" for i in range(9))
    spoilt(ROWS.splitlines()[0] + "\n" + rows)
    message = fails(*TINY)
    assert "tiny.inter: no user has 3 interactions" in message


def test_more_drawn_candidates_than_there_are_is_an_error(embedded, fails):
    message = fails("train", "--candidates=sampled-100", *TINY)
    assert "cannot draw 100 candidates" in message and "candidates: domain" in message


def test_a_damaged_artefact_is_named(embedded, fails):
    path = Path("atomic_files/tiny-edt/tiny-edt.itemvec.safetensors")
    for content in (path.read_bytes()[:-100], b""):
        path.write_bytes(content)
        message = fails("train", *TINY)
        assert str(path.parent) in message and "the stage augment" in message
    assert run(["augment", *TINY]) == 0  # notices, and writes it again
    assert run(["train", *TINY]) == 0


# ---- folders and disks -------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_named(embedded, fails):
    Path("file").write_text("")
    message = fails("train", "--runs_path=file", *TINY)
    assert message.startswith("error: file/tiny-") and "cannot be written (Not a directory)" in message
    assert "cannot be read (Not a directory)" in fails("embed", "--data_path=file", *TINY)


def test_a_full_disk_at_the_last_moment_leaves_the_old_files(embedded, fails, monkeypatch):
    before = snapshot(embedded)

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for stage, key, name in (("augment", "augment.k=1", "tiny-edt."), ("profile", "profile.n_clusters=2", "tiny-edt.")):
        message = fails(stage, *TINY, f"--{key}")
        assert name in message and "cannot be written (No space left on device); free space" in message
    assert snapshot(embedded) == before
    spoilt()
    assert "tiny.itemvec.safetensors: cannot be written (No space left" in fails("embed", *TINY)
    write_tiny(Path("atomic_files"), "tiny")
    assert snapshot(embedded) == before


def limited_run(arguments: list[str], n_bytes: int) -> subprocess.CompletedProcess:
    """Run in a process that may not write files above ``n_bytes``: a write fails half way, as on a full disk."""
    resource = pytest.importorskip("resource")
    return subprocess.run(
        [sys.executable, str(RUN_EDT), *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes)),
        capture_output=True,
        text=True,
    )


def test_a_checkpoint_that_does_not_fit_is_one_message_and_leaves_no_half_file(embedded):
    done = limited_run(["train", "--runs_path=small", *TINY], 30_000)
    assert done.returncode == 1
    assert done.stderr.startswith("error: small/tiny-") and done.stderr.count("\n") == 1, done.stderr
    assert "last.pth: cannot be written" in done.stderr
    left = [path for path in Path("small").rglob("*") if path.is_file()]
    assert {path.suffix for path in left} <= {".yaml", ".txt", ".0"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("size", ["40k", "200k"])
def test_a_disk_that_runs_full_is_one_message(embedded, size):
    Path("disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "disk"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done = subprocess.run(
            [sys.executable, str(RUN_EDT), "train", "--runs_path=disk", *TINY], capture_output=True, text=True
        )
        left = [path.name for path in Path("disk").rglob(".*")]
    finally:
        subprocess.run(["umount", "disk"], check=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: disk/tiny-") and done.stderr.count("\n") == 1, done.stderr
    assert "cannot be written (No space left on device)" in done.stderr
    assert left == []


TOO_MANY = ["--augment.n_clusters=16", "--profile.n_clusters=16"]


@pytest.mark.parametrize("stage", ["augment", "ablate", None])
def test_more_clusters_than_items_are_refused_before_any_work(workplace, capsys, stage):
    if stage == "augment":
        assert run(["embed", *TINY]) == 0
    before = snapshot(workplace)
    capsys.readouterr()
    status = run([*([stage] if stage else []), *TINY, *TOO_MANY])
    lines = capsys.readouterr().err.removeprefix("error: ").splitlines()
    assert status == 2
    assert lines == [f"{group}.n_clusters: 16 is more than the 15 items of food" for group in ("augment", "profile")]
    assert snapshot(workplace) == before


def test_more_clusters_than_items_are_a_note_of_prepare_alone_after_its_statistics(workplace, capsys):
    assert run(["prepare", *TINY, *TOO_MANY]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("tiny: users 40, items food 15, items kitchen 15, ") and printed.err == ""
    told = "n_clusters: 16 is more than the 15 items of food; give fewer before the stage augment"
    assert lines[1:] == [f"note: {group}.{told}" for group in ("augment", "profile")]


def test_a_dry_run_of_ablate_is_refused_in_true_words():
    with pytest.raises(ConfigError, match="ablate asks for each variant whose rows or profiles differ"):
        cli._options("ablate", {"dry_run": "true"})
    with pytest.raises(ConfigError, match="train asks nothing"):
        cli._options("train", {"dry_run": "true"})


def test_no_argument_at_all_is_the_whole_run_of_the_default_data_set():
    assert cli.parse([]) == (None, {}, False)
