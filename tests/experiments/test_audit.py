"""The released code's protocol on one trained model: what each leak changes, and that none of it looks comparable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, write_tiny
from toy import dataset, sequences, table_of

from recbole_edt.augment.settings import AugmentConfig
from recbole_edt.cli import run
from recbole_edt.config.settings import load_settings
from recbole_edt.evaluate.metrics import domain_metrics
from recbole_edt.evaluate.ranking import read_ranks
from recbole_edt.experiments import audit
from recbole_edt.models.llmedt import LLMEDT
from recbole_edt.train import comparison
from recbole_edt.train.dataset import eval_loader
from recbole_edt.train.run import finished_run, open_run

KEYS = {**QUICK, "epochs": 2, "finetune_epochs": 8, "finetune_learning_rate": 0.05}
TINY = ["--dataset=tiny", *(f"--{key}={value}" for key, value in KEYS.items())]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a trained run of LLM-EDT on the tiny data set."""
    folder = tmp_path_factory.mktemp("audit")
    write_tiny(folder / "atomic_files", "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("embed", "augment", "profile", "train"):
            assert run([stage, *TINY]) == 0
    return folder


@pytest.fixture
def opened(place, monkeypatch):
    monkeypatch.chdir(place)
    experiment = comparison.open_experiment(load_settings("tiny", [], KEYS))
    run_dir = finished_run(experiment, "LLMEDT")
    model, _, test_data = open_run(experiment, "LLMEDT", run_dir)
    return experiment, run_dir, model, test_data


def test_the_table_is_honest_then_leak_by_leak_then_all_and_everything_is_labelled(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(audit, "N_NEGATIVES", 5)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert run(["audit", *TINY]) == 0
    printed = capsys.readouterr().out
    run_dir = next(Path("runs").glob("*/LLMEDT-*"))
    table, text = pd.read_csv(run_dir / "audit.csv"), (run_dir / "audit.md").read_text(encoding="utf-8")
    names = [protocol.name for protocol in audit.PROTOCOLS]
    assert table["protocol"].unique().tolist() == names and len(table) == 3 * len(names)
    assert (table.loc[table["protocol"] == "honest", "comparable"] == "yes").all()
    assert (table.loc[table["protocol"] != "honest", "comparable"] == "no").all()
    assert printed.startswith("NOT COMPARABLE: tiny") and text.startswith("# NOT COMPARABLE: tiny")
    for output in (printed, text):
        for name in names[1:]:
            assert f"{name} (not comparable)" in output
        assert "honest (not" not in output
    # The first row is what the run itself says, to the last digit.
    honest = table[table["protocol"] == "honest"].set_index("domain")
    own = domain_metrics(read_ranks(run_dir / "ranks.csv"))
    np.testing.assert_allclose(honest.loc[own.index, own.columns].to_numpy(float), own.to_numpy(float), atol=1e-12)
    # Nothing else is touched: no rank table, nothing that compare or report would read.
    after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert {path.name for path in after.keys() - before.keys()} == {"audit.csv", "audit.md"}
    assert all(after[path] == content for path, content in before.items() if path.name != "log.txt")
    assert run(["audit", *TINY]) == 0
    assert capsys.readouterr().out == printed


def test_the_audit_runs_only_when_it_is_asked_for(workplace, capsys):
    assert run([*TINY, "--models=LLMEDT"]) == 0  # every stage
    assert run(["report", "--dataset=tiny"]) == 0
    assert not list(workplace.rglob("*audit*"))
    pages = [*workplace.rglob("report.md"), *workplace.rglob("report.html")]
    texts = [path.read_text(encoding="utf-8") for path in pages]
    assert len({path.suffix for path in pages}) == 2
    assert not any("not comparable" in text.lower() for text in [*texts, capsys.readouterr().out])


def test_leaks_that_need_more_items_than_there_are_are_left_out_with_a_note(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert run(["audit", *TINY]) == 0
    printed = capsys.readouterr().out
    assert printed.count("is left out: cannot draw 100 candidates") == 2
    assert "misaligned scores (not comparable)" in printed
    (run_dir,) = Path("runs").glob("*/LLMEDT-*")
    told = "Note: 100 negatives and all three leaks are left out: a domain has too few items for 100 negatives."
    assert told in (run_dir / "audit.md").read_text(encoding="utf-8") and told in printed


def test_a_row_that_is_as_the_honest_one_says_why(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    flags = [*TINY, f"--runs_path={tmp_path}", "--finetune_epochs=0"]
    assert run(["train", *flags]) == 0
    assert run(["audit", *flags]) == 0
    (run_dir,) = tmp_path.glob("*/LLMEDT-*")
    why = "no domain has a part of its own, since there was no fine-tuning"
    told = f"Note: misaligned scores ranks every target as honest does: {why}."
    assert told in (run_dir / "audit.md").read_text(encoding="utf-8") and told in capsys.readouterr().out
    table = pd.read_csv(run_dir / "audit.csv").drop(columns=["comparable", "note"]).set_index(["protocol", "domain"])
    pd.testing.assert_frame_equal(table.loc["honest"], table.loc["misaligned scores"])


def test_the_audit_augments_as_the_runs_rows_were_made_and_reads_no_audit_of_others(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert run(["audit", *TINY]) == 0
    (run_dir,) = Path("runs").glob("*/LLMEDT-*")
    before = (run_dir / "audit.csv").read_bytes()
    settings = load_settings("tiny", [], {**KEYS, "augment.k": 9, "augment.tau": -1})
    assert run(["audit", *TINY, "--augment.k=9", "--augment.tau=-1"]) == 0
    assert (run_dir / "audit.csv").read_bytes() == before and audit.is_current(run_dir, settings)
    table = pd.read_csv(run_dir / "audit.csv")
    table.assign(augmented_with="other").to_csv(run_dir / "audit.csv", index=False)
    assert not audit.is_current(run_dir, settings)
    table.drop(columns="augmented_with").to_csv(run_dir / "audit.csv", index=False)  # of before it was written
    assert not audit.is_current(run_dir, settings)
    table.drop(columns="note").to_csv(run_dir / "audit.csv", index=False)
    assert not audit.is_current(run_dir, settings)
    table.to_csv(run_dir / "audit.csv", index=False)
    assert audit.is_current(run_dir, settings)
    monkeypatch.setattr(audit, "VERSION", 1)  # numbers of before misaligned scores were ranked by
    assert not audit.is_current(run_dir, settings)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--model=SASRec"], 2, "the audit is of LLMEDT's protocol alone, not of SASRec"),
        (["--epochs=7"], 1, "is no finished run of LLMEDT: run the stage train first; with other settings there is"),
    ],
)
def test_what_cannot_be_audited_is_said(place, monkeypatch, capsys, arguments, status, message):
    monkeypatch.chdir(place)
    assert run(["audit", *TINY, *arguments]) == status
    assert message in capsys.readouterr().err


def test_misaligned_scores_take_the_domains_part_from_another_item_and_leave_the_target_its_own(opened):
    _, _, model, test_data = opened
    batch = next(iter(test_data))[0]
    with torch.no_grad():
        honest = model.full_sort_predict(batch)
        scores = audit.misaligned_scores(model, batch, torch.Generator().manual_seed(3))
        again = audit.misaligned_scores(model, batch, torch.Generator().manual_seed(3))
        shared = model.backbone(batch["item_id_list"], batch["item_length"])
        table = model.item_embedding.weight
        vectors = model.user_vectors(batch)
    assert torch.equal(scores, again)
    row = torch.arange(len(batch))
    assert torch.equal(scores[row, batch["item_id"]], honest[row, batch["item_id"]])
    moved = 0
    for d, items in enumerate(model.scored):
        own = (vectors[d] - shared) @ table[items].T
        borrowed = scores[:, items] - shared @ table[items].T
        for b in range(len(batch)):
            for place, item in enumerate(items.tolist()):
                gap = (borrowed[b, place] - own[b]).abs()
                assert gap.min() < 1e-5  # the part of some item of the same domain
                moved += bool(gap[place] > 1e-5) and item != int(batch["item_id"][b])
    assert moved > 0.8 * len(batch) * 30 * 0.9
    with torch.no_grad():
        assert torch.equal(LLMEDT.full_sort_predict(model, batch), honest)


def test_the_audit_ranks_by_misaligned_scores_as_numpy_does(opened, capsys):
    """It once computed them and ranked by the honest ones."""
    _, run_dir, model, test_data = opened
    assert run(["audit", *TINY]) == 0
    part, generator = test_data._dataset, torch.Generator().manual_seed(42)
    hits, gains = [], []
    for batch, _, row, item in eval_loader(test_data.config, part):
        with torch.no_grad():
            scores = audit.misaligned_scores(model, batch, generator)[row].numpy()
        for own, target in zip(scores, item.tolist(), strict=True):
            rivals = [i for i in range(1, len(own)) if part.item_domain[i] == part.item_domain[target] and i != target]
            rank = 1 + sum(own[i] > own[target] for i in rivals)
            hits.append(rank <= 10)
            gains.append((rank <= 10) / np.log2(rank + 1))
    table = pd.read_csv(run_dir / "audit.csv").set_index(["protocol", "domain"])
    found = table.loc[("misaligned scores", "overall"), ["hit@10", "ndcg@10"]].to_numpy(float)
    np.testing.assert_allclose(found, [np.mean(hits), np.mean(gains)], atol=1e-6)
    assert abs(found[1] - table.loc[("honest", "overall"), "ndcg@10"]) > 1e-3
    assert "misaligned scores ranks every target" not in capsys.readouterr().out


def test_without_fine_tuning_that_was_kept_nothing_can_be_misaligned_and_that_is_why(opened):
    _, _, model, test_data = opened
    batch, misaligned, ranks = next(iter(test_data))[0], audit.PROTOCOLS[2], pd.DataFrame({"higher": [1, 2]})
    said = "misaligned scores ranks every target as honest does"
    assert audit.has_own_parts(model) and audit._alike(misaligned, ranks, ranks, model) == said
    assert audit._alike(misaligned, ranks + 1, ranks, model) == ""
    for adapter in model.user_adapters:  # as they start
        torch.nn.init.zeros_(adapter.outer.weight)
        torch.nn.init.zeros_(adapter.outer.bias)
    why = ": no domain has a part of its own, since fine-tuning was not kept"
    assert audit._alike(misaligned, ranks, ranks, model) == said + why
    with torch.no_grad():
        assert torch.equal(audit._scorer(model, misaligned, 1)(batch).user, LLMEDT.vector_scores(model, batch).user)


def test_a_split_after_augmenting_lets_inserted_items_be_targets_and_held_out_ones_shape_them(opened):
    experiment, _, _, test_data = opened
    leaky, inserted = audit.split_after_augmenting(test_data._dataset, experiment)
    honest = test_data._dataset
    assert len(leaky.row) == len(honest.row) == 40
    user, target = leaky.sequences.user[leaky.row], leaky.sequences.item[leaky.row]
    columns = honest.sequences.user[honest.row], honest.sequences.item[honest.row]
    raw = dict(zip(*(column.tolist() for column in columns), strict=True))
    other = np.array([raw[u] != i for u, i in zip(user.tolist(), target.tolist(), strict=True)])
    assert 0 < inserted.sum() < 40 and inserted[user.numpy()].sum() == inserted.sum()
    # A target that is not the raw one is an inserted row, and the other way round.
    assert other.tolist() == inserted[user.numpy()].tolist()
    assert not leaky.virtual[target].any()
    assert len(honest.row) == 40 and not honest.sequences.generated[honest.row].any()  # the honest part is as it was


def test_augmentation_with_held_out_rows_inserts_after_them_and_keeps_the_raw_rows():
    rows = ["f1 k1 f2 k2", "f1 k1 f2 k2", "f3 k3", "f1 k2 f3 k3 f2 k1"]
    data = dataset(rows)
    table = table_of(data, np.random.default_rng(0).normal(size=(len(data.items), 3)))
    settings = AugmentConfig(n_clusters=2, tau=-1.0, filter=False)
    done = audit.augmented_with_held_out_rows(data, table, settings)
    texts = sequences(done)
    for text, before in zip(texts, rows, strict=True):
        assert " ".join(word for word in text.split() if not word.startswith("*")) == before
    assert any(text.split()[-1].startswith("*") for text in texts)
    assert "*" in texts[2]  # two rows are enough where the split comes later


def test_negatives_are_of_the_domain_and_new_to_the_user(opened, monkeypatch):
    monkeypatch.setattr(audit, "N_NEGATIVES", 4)
    experiment, _, _, test_data = opened
    for part in (test_data._dataset, audit.split_after_augmenting(test_data._dataset, experiment)[0]):
        table = audit.negatives(part, seed=1)
        target = dict(zip(part.sequences.user[part.row].tolist(), part.sequences.item[part.row].tolist(), strict=True))
        for user, ids in zip(table.user.tolist(), table.ids, strict=True):
            met = set(part.sequences.item[part.sequences.user == user].tolist())
            assert len(set(ids.tolist())) == 4 and not met & set(ids.tolist())
            assert {int(part.item_domain[i]) for i in ids} == {int(part.item_domain[target[user]])}
