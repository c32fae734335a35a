"""Whole runs by the command line: outputs, a second run, a planted pattern, kills, no look at held-out items."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, write_tiny

import recbole_edt
from recbole_edt.augment.augment import user_representatives
from recbole_edt.cli import run
from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.config.settings import load_settings
from recbole_edt.files import read_json
from recbole_edt.pipeline import stages
from recbole_edt.text.vectors import EmbeddingTable
from recbole_edt.train import comparison
from recbole_edt.train.checkpoints import load_checkpoint
from recbole_edt.train.phases import single_targets
from recbole_edt.train.run import loaders

RUN_EDT = Path(recbole_edt.__file__).parents[1] / "run_edt.py"
MODELS = ("GRU4Rec", "BERT4Rec", "SASRec", "LLMEDT")
TINY = ["--dataset=tiny", *(f"--{key}={value}" for key, value in QUICK.items())]


def model_folder(name: str, runs: str = "runs") -> Path:
    (folder,) = Path(runs).glob(f"*/{name}-*")
    return folder


# ---- one whole run -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The working directory and the printed text of two runs of everything, one after the other."""
    place = tmp_path_factory.mktemp("whole")
    write_tiny(place / "atomic_files", "tiny")
    printed, times = [], []
    for _ in range(2):
        command = [sys.executable, str(RUN_EDT), *TINY]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
        times.append({path: path.stat().st_mtime_ns for path in place.rglob("best.pth")})
    return place, printed, times


def test_everything_runs_and_prints_one_table(whole):
    _, (printed, _), _ = whole
    lines = printed.splitlines()
    (head,) = [line for line in lines if "hit@10" in line]
    assert head.count("hit@10") == head.count("ndcg@10") == head.count("mrr@10") == 3
    assert "food" in printed and "kitchen" in printed and "overall" in printed
    rows = [line for line in lines if line.startswith(MODELS)]
    assert [row.split()[0].rstrip("†") for row in rows] == list(MODELS)
    assert all(len(row.split()) == 10 for row in rows)
    assert "no LLM was called" in printed and "\x1b" not in printed


def test_every_promised_file_is_there(whole):
    place, _, _ = whole
    (folder,) = (place / "runs").iterdir()
    for name in ("report.md", "curves.png", "metrics.json", "metrics.csv", "comparison.json"):
        assert (folder / name).stat().st_size > 0
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert all(f"| {model}" in (folder / "report.md").read_text(encoding="utf-8") for model in MODELS)
    for model in MODELS:
        (run_dir,) = folder.glob(f"{model}-*")
        for name in ("config.yaml", "epochs.csv", "best.pth", "log.txt", "ranks.csv", "result.json"):
            assert (run_dir / name).stat().st_size > 0, (model, name)
        assert not (run_dir / "last.pth").exists()
        phases = pd.read_csv(run_dir / "epochs.csv")["phase"].tolist()
        assert phases == (["pretrain"] * 2 + ["finetune"] * 2 if model == "LLMEDT" else ["train"] * 2)
    assert [path for path in place.rglob(".*")] == []


def test_the_reported_metrics_follow_from_the_saved_ranks(whole):
    place, _, _ = whole
    (folder,) = (place / "runs").iterdir()
    flat = pd.read_csv(folder / "metrics.csv").set_index(["model", "domain"])
    checked = 0
    for model in MODELS:
        (run_dir,) = folder.glob(f"{model}-*")
        ranks = pd.read_csv(run_dir / "ranks.csv")
        assert len(ranks) == 40 and ranks["user"].is_unique
        for domain in ("food", "kitchen", "overall"):
            part = ranks if domain == "overall" else ranks[ranks["domain"] == domain]
            for k in (5, 10, 20):
                gains = {"hit": lambda p: 1.0, "ndcg": lambda p: 1 / math.log2(p + 1), "mrr": lambda p: 1 / p}
                for metric, gain in gains.items():
                    values = [
                        np.mean([gain(p) if p <= k else 0.0 for p in range(higher + 1, higher + tied + 2)])
                        for higher, tied in zip(part["higher"], part["tied"], strict=True)
                    ]
                    assert flat.loc[(model, domain), f"{metric}@{k}"] == pytest.approx(np.mean(values), abs=1e-12)
                    checked += 1
        test = json.loads((run_dir / "result.json").read_text())["test"]
        assert test["ndcg@10"] == pytest.approx(flat.loc[(model, "overall"), "ndcg@10"], abs=1e-6)
    assert checked == 4 * 3 * 9
    report = json.loads((folder / "metrics.json").read_text())
    numbers = flat.loc[("LLMEDT", "overall"), "ndcg@10"]
    assert str(numbers)[:12] in json.dumps(report["LLMEDT"])


def test_a_second_run_trains_nothing_and_prints_the_same(whole):
    _, (first, second), (before, after) = whole
    assert len(before) == 4 and after == before
    assert second == first


# ---- a planted pattern -------------------------------------------------------------------------------------------

WORDS = "apple river stone cloud mirror garden engine violin copper desert window forest pepper harbor saddle".split()


def write_planted(folder: Path, n_items: int = 40, n_users: int = 160) -> None:
    """Domains take turns, and the last item alone decides the next one."""
    rng = np.random.default_rng(0)
    following = [rng.permutation(n_items), rng.permutation(n_items)]
    items = ["item_id:token\tdomain:token\ttitle:token_seq"]
    for place in range(2 * n_items):
        domain = ("food", "kitchen")[place // n_items]
        items.append(f"{domain[0]}{place % n_items}\t{domain}\t{' '.join(rng.choice(WORDS, 3))}")
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(n_users):
        domain, item = int(rng.integers(2)), int(rng.integers(n_items))
        for step in range(int(rng.integers(6, 13))):
            rows.append(f"u{user}\t{'fk'[domain]}{item}\t{step}")
            domain, item = 1 - domain, int(following[domain][item])
    folder.mkdir(parents=True)
    (folder / "planted.item").write_text("\n".join(items) + "\n")
    (folder / "planted.inter").write_text("\n".join(rows) + "\n")


def test_a_planted_pattern_is_learnt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_planted(tmp_path / "atomic_files" / "planted")
    keys = {
        **QUICK,
        "models": "SASRec,LLMEDT",
        "item_representation": "llm+id",
        "learning_rate": 0.01,
        "epochs": 20,
        "finetune_epochs": 1,
        "hidden_size": 32,
        "train_batch_size": 32,
        "MAX_ITEM_LIST_LENGTH": 12,
        "hidden_dropout_prob": 0.1,
        "attn_dropout_prob": 0.1,
    }
    assert run(["--dataset=planted", *(f"--{key}={value}" for key, value in keys.items())]) == 0
    metrics = pd.read_csv(next(Path("runs").glob("*/metrics.csv"))).set_index(["model", "domain"])["hit@10"]
    for domain in ("food", "kitchen"):  # chance is 10 of 40 items, 0.25
        assert metrics["SASRec", domain] > 0.9
        assert metrics["LLMEDT", domain] > 0.6


# ---- stopped and killed ------------------------------------------------------------------------------------------

LONG = [
    *TINY,
    "--epochs=25",
    "--finetune_epochs=25",
    "--stopping_step=99",
    "--finetune_stopping_step=99",
    "--train_batch_size=4",
]


def stop(arguments: list[str], epochs: Path, n_rows: int, how: signal.Signals) -> subprocess.CompletedProcess:
    """Start a run in a process of its own, and send ``how`` once its log has ``n_rows`` epochs."""
    process = subprocess.Popen(
        [sys.executable, str(RUN_EDT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background of a shell has Ctrl-C switched off, and hands that on.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    patience = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < patience:
        if epochs.is_file() and len(epochs.read_text().splitlines()) > n_rows:
            break
        time.sleep(0.003)
    time.sleep(0.02)  # into the next epoch
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.parametrize(
    ("model", "moments"),
    [
        ("LLMEDT", [(2, signal.SIGINT), (9, signal.SIGKILL), (29, signal.SIGINT), (37, signal.SIGKILL)]),
        ("SASRec", [(3, signal.SIGKILL), (12, signal.SIGINT)]),
    ],
)
def test_a_run_that_is_stopped_and_killed_again_and_again_ends_the_same(workplace, capsys, model, moments):
    for stage in ("embed", "augment", "profile"):
        assert run([stage, *TINY]) == 0
    train = ["train", f"--model={model}", *LONG]
    assert run([*train, "--runs_path=undisturbed"]) == 0
    one = model_folder(model, "undisturbed")
    other = Path("broken", *one.parts[1:])
    for n_rows, how in moments:
        hidden = set(Path("broken").rglob(".*"))
        stopped = stop([*train, "--runs_path=broken"], other / "epochs.csv", n_rows, how)
        assert stopped.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), stopped.stderr
        assert not (other / "result.json").exists()
        reached = pd.read_csv(other / "epochs.csv")
        assert n_rows <= len(reached) < 25 + 25 * (model == "LLMEDT"), "too late to be in the middle"
        if how == signal.SIGINT:
            assert stopped.stderr == "\nstopped; the same command goes on from here\n"
            assert set(Path("broken").rglob(".*")) <= hidden  # a kill may leave a temporary file, Ctrl-C none
    assert run([*train, "--runs_path=broken"]) == 0
    weights, again = (load_checkpoint(folder / "best.pth")["state_dict"] for folder in (one, other))
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert (one / "ranks.csv").read_bytes() == (other / "ranks.csv").read_bytes()
    epochs, continued = (pd.read_csv(folder / "epochs.csv").drop(columns="train_seconds") for folder in (one, other))
    pd.testing.assert_frame_equal(epochs, continued, check_exact=True)


# ---- nothing held out is looked at -------------------------------------------------------------------------------


def swap_held_out(source: Path, target: Path) -> int:
    """Copy the tiny data set with other items in each user's last two rows; how many rows changed."""
    inter = pd.read_csv(source / "tiny.inter", sep="\t", dtype=str)
    items = pd.read_csv(source / "tiny.item", sep="\t", dtype=str)["item_id:token"].to_numpy()
    rng, changed = np.random.default_rng(5), 0
    numbers = inter["timestamp:float"].astype(float)
    for _, rows in inter.groupby("user_id:token", sort=False):
        last = numbers[rows.index].sort_values(kind="stable").index[-2:]
        for row in last if len(rows) >= 3 else []:
            before = inter.at[row, "item_id:token"]
            inter.at[row, "item_id:token"] = rng.choice(items[items != before])
            changed += 1
    target.mkdir(parents=True)
    inter.to_csv(target / "tiny.inter", sep="\t", index=False)
    (target / "tiny.item").write_bytes((source / "tiny.item").read_bytes())
    return changed


def test_other_held_out_items_change_no_count_no_inserted_row_no_profile_and_no_training_batch(workplace):
    assert swap_held_out(Path("atomic_files/tiny"), Path("swapped/tiny")) == 80
    rows, batches, counts, speaking, pairs, losses = [], [], [], [], [], []
    for folder in ("atomic_files", "swapped"):
        arguments = [*TINY, f"--data_path={folder}"]
        for stage in ("embed", "augment", "profile"):
            assert run([stage, *arguments]) == 0
        lines = (Path(folder) / "tiny-edt" / "tiny-edt.inter").read_text().splitlines()
        rows.append([(n, line) for n, line in enumerate(lines) if line.endswith("\t1")])
        keys = {**QUICK, "data_path": folder, "runs_path": f"{folder}-runs"}
        batches.append([])
        for backbone in ("SASRec", "BERT4Rec"):
            settings = load_settings("tiny", [], {**keys, "backbone": backbone})
            experiment = comparison.open_experiment(settings)
            own = recbole_config(settings, "LLMEDT", "tiny-edt", experiment.folder)
            loader, _, _, cls = loaders(experiment, own, "LLMEDT")
            batches[-1] += [*loader, *single_targets(loader)]
            pairs.append(loader._dataset.training_pairs)
            torch.manual_seed(3)  # weights, masks and negatives
            model = cls(own, loader._dataset)
            losses.append([loss.item() for batch in loader for loss in model.calculate_loss(batch)])
        table = EmbeddingTable.load(stages.item_vectors(settings))
        raw = stages.read(settings)
        speaking.append([rows.tolist() for rows in user_representatives(raw, table, settings.augment)])
        folder = Path(folder) / "tiny-edt"
        counts.append([read_json(folder / f"{stage}.json")["counts"] for stage in ("augment", "profile")])
    assert counts[0] == counts[1]
    assert len(speaking[0][0]) > 40 and speaking[0] == speaking[1]
    assert losses[:2] == losses[2:]
    for one, other in zip(pairs[:2], pairs[2:], strict=True):
        assert len(one[0]) > 100 and all(map(torch.equal, one, other))
    assert len(rows[0]) > 20 and rows[0] == rows[1]
    for name in ("tiny-edt.item", "tiny-edt.itemvec.safetensors", "tiny-edt.user", "tiny-edt.uservec.safetensors"):
        one, other = (Path(folder) / "tiny-edt" / name for folder in ("atomic_files", "swapped"))
        assert one.read_bytes() == other.read_bytes(), name
    assert len(batches[0]) == len(batches[1]) > 1
    for one, other in zip(*batches, strict=True):
        assert one.interaction.keys() == other.interaction.keys() and len(one.interaction) > 5
        for key, column in one.interaction.items():
            assert torch.equal(column, other[key]), key
