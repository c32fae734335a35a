"""One model: its candidates, its folder, its training and its result."""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK
from filelock import FileLock
from tiny_stages import augmented, settings, silent

from recbole_edt import files
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.experiments import compare
from recbole_edt.files import read_json, write_json
from recbole_edt.pipeline import stages
from recbole_edt.text import vectors
from recbole_edt.train import comparison, run, run_files


def test_augmented_files_that_were_changed_by_hand_are_not_trained_on(workplace):
    augmented()
    path = Path("atomic_files/tiny-edt/tiny-edt.inter")
    path.write_text(path.read_text(encoding="utf-8") + "u0\tf1\t1\t0\n", encoding="utf-8")
    with pytest.raises(DataError, match="not as the stage augment wrote them: run it again"):
        comparison.open_experiment(settings())


def folder_of(**keys) -> str:
    experiment = comparison.open_experiment(settings(**keys))
    return str(run.run_directory(experiment, "SASRec")), str(run.run_directory(experiment, "LLMEDT"))


def test_a_run_folder_is_named_after_everything_that_shapes_its_result(workplace):
    for stage in ("embed", "augment", "profile"):
        compare.STAGES[stage](settings(), silent)
    sasrec, llmedt = folder_of()
    assert (sasrec, llmedt) == folder_of()
    other_rate = folder_of(learning_rate=0.5)
    assert other_rate[0] != sasrec and other_rate[1] != llmedt
    assert folder_of(candidates="all")[0].split("/")[1] != sasrec.split("/")[1]
    # keys of other methods do not
    assert (sasrec, llmedt) == folder_of(beta=0.5, regulariser_temperature=0.1)
    assert sasrec == folder_of(alpha=0.5, item_representation="id", finetune_epochs=7)[0]
    without_rows = folder_of(use_generated=False)[1]
    # other augmented rows matter to LLM-EDT, and not to a model that never sees them
    stages.augment_data(settings(**{"augment.k": 1}), silent)
    again = folder_of()
    assert again[0] == sasrec and again[1] != llmedt
    # it still reads vectors and profiles when it leaves the rows out
    stages.profile(settings(**{"profile.n_words": 1}), silent)
    assert folder_of(use_generated=False)[1] != without_rows


def test_sampled_candidates_are_stored_and_of_the_targets_domain(workplace):
    for stage in ("embed", "augment", "profile"):
        compare.STAGES[stage](settings(), silent)
    experiment = comparison.open_experiment(settings(candidates="sampled-3"))
    dataset = experiment.dataset
    for part, mark in (("validation", 1), ("test", 2)):
        table = experiment.candidates[part]
        assert (experiment.folder / f"candidates-{part}.npy").is_file()
        rows = dataset.sequences.raw(dataset.item_domain)
        target = dict(zip(rows.user[rows.mark == mark].tolist(), rows.item[rows.mark == mark].tolist(), strict=True))
        for user, ids in zip(table.user.tolist(), table.ids.tolist(), strict=True):
            own = set(rows.item[rows.user == user].tolist())
            assert len(set(ids)) == 3 and not own & set(ids)
            assert {int(dataset.item_domain[i]) for i in ids} == {int(dataset.item_domain[target[user]])}


def test_candidates_are_drawn_once_and_early_stopping_does_not_see_those_of_the_test(workplace):
    for stage in ("embed", "augment", "profile"):
        compare.STAGES[stage](settings(), silent)
    first = comparison.open_experiment(settings(candidates="sampled-3"))
    path = first.folder / "candidates-test.npy"
    before = path.stat().st_mtime_ns
    again = comparison.open_experiment(settings(candidates="sampled-3"))
    assert path.stat().st_mtime_ns == before and first.candidates_hash == again.candidates_hash
    validation, test = first.candidates["validation"], first.candidates["test"]
    shared = [len(set(a) & set(b)) for a, b in zip(validation.ids.tolist(), test.ids.tolist(), strict=True)]
    assert np.mean(shared) < 2  # of three; the same seed would give nearly all


def test_a_larger_catalogue_is_another_experiment(workplace):
    augmented()
    stages.profile(settings(), silent)
    before = comparison.open_experiment(settings()).folder
    path = Path("atomic_files/tiny/tiny.item")
    path.write_text(path.read_text(encoding="utf-8") + "f999\tfood\tnew tea\n", encoding="utf-8")
    augmented()
    assert comparison.open_experiment(settings()).folder != before


def test_own_vector_files_name_the_run(workplace):
    augmented()
    stages.profile(settings(), silent)
    table = vectors.EmbeddingTable.load(Path("atomic_files/tiny-edt/tiny-edt.itemvec.safetensors"))
    folders = set()
    for scale in (1, 2):
        own = vectors.EmbeddingTable(table.tokens, table.rows, np.array(table.vectors) * scale, table.meta)
        own.save(Path("own.safetensors"))
        folders.add(folder_of(item_embeddings="own.safetensors")[1])
    assert len(folders) == 2


def test_the_way_sequences_are_made_into_rows_does_not_rename_a_run_of_llmedt(workplace):
    augmented()
    stages.profile(settings(), silent)
    sequence, prefix = folder_of(training="sequence"), folder_of(training="prefix")
    assert sequence[1] == prefix[1] and sequence[0] != prefix[0]


def test_logs_have_no_colours_and_miss_nothing_that_was_off_before(tmp_path):
    logging.getLogger().info("off")
    with run._log_to(tmp_path / "log.txt"):
        logging.getLogger().info("\x1b[1;32mepoch 0\x1b[0m")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").endswith("INFO epoch 0\n")


def test_the_best_epoch_is_found_among_those_that_were_validated(workplace):
    augmented()
    experiment = comparison.open_experiment(settings(model="SASRec", epochs=1))
    run.train_model(experiment, "SASRec")
    run_dir = run.run_directory(experiment, "SASRec")
    metric = read_json(run_dir / "result.json")["valid_metric"]
    scores = [None, 0.2, None, 0.4, None, 0.4]
    table = pd.DataFrame({"phase": "train", "train_loss": 1.0, "epoch": range(6), metric: scores})
    for rows, best in ((table, 6), (table.iloc[:5], 4), (table.iloc[:3], 2), (table.iloc[:1], None)):
        rows.to_csv(run_dir / "epochs.csv", index=False)
        assert run_files.read_result(run_dir).best_epoch == best
    assert run_files.read_result(run_dir).max_epochs == 1
    assert read_json(run_dir / "result.json")["made_with"]["augment"]["config"]["n_clusters"] == 3
    # With adapter_residual the weights are those of the last phase, however good the one before was.
    phases = {"phase": ["pretrain"] * 2 + ["finetune"] * 2, "epoch": [0, 1] * 2}
    pd.DataFrame({**phases, metric: [0.5, 0.4, 0.2, 0.3]}).to_csv(run_dir / "epochs.csv", index=False)
    result = read_json(run_dir / "result.json")
    for residual, best in ((False, 1), (True, 4)):
        write_json(run_dir / "result.json", {**result, "model": "LLMEDT", "settings": {"adapter_residual": residual}})
        assert run_files.read_result(run_dir).best_epoch == best
    (run_dir / "config.yaml").write_text("a: [1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="config.yaml, line 2"):
        run_files.read_result(run_dir)
    (run_dir / "epochs.csv").write_text("", encoding="utf-8")
    for read in (run_files.read_result, run_files.chosen_epochs):
        with pytest.raises(DataError, match=r"epochs\.csv: no table of epochs \(No columns .*\); delete its folder to"):
            read(run_dir)
    write_json(run_dir / "result.json", {**result, "settings": []})
    with pytest.raises(DataError, match=r"result\.json: has a value of another type at settings, so it is damaged"):
        run_files.read_result(run_dir)


def test_a_score_on_validation_is_read_only_for_the_settings_that_it_was_found_with(workplace):
    augmented()
    folder = Path("trial-0001")

    def trained(epochs: int) -> int:
        experiment = comparison.open_experiment(settings(model="SASRec", epochs=epochs))
        return run.validate_model(experiment, "SASRec", folder)["epochs"]

    assert trained(1) == 1
    before = (folder / "valid.json").stat().st_mtime_ns
    assert trained(1) == 1 and (folder / "valid.json").stat().st_mtime_ns == before
    assert trained(2) == 2
    (folder / "valid.json").unlink()
    (folder / "last.pth").write_bytes(b"of other settings")  # a search that was stopped, and then begun anew
    assert trained(1) == 1


def test_two_processes_never_train_into_one_folder(workplace):
    augmented()
    experiment = comparison.open_experiment(settings(model="Pop"))
    run_dir = run.run_directory(experiment, "Pop")
    run_dir.mkdir(parents=True)
    with FileLock(run_dir / ".lock"), pytest.raises(DataError, match="another process is training this run"):
        run.train_model(experiment, "Pop")
    assert run.train_model(experiment, "Pop").name == "Pop"
    with FileLock(run_dir / ".lock"):  # a finished run is read by any number of them
        assert run.train_model(experiment, "Pop").name == "Pop"


def test_a_run_whose_weights_are_damaged_or_gone_names_the_folder_to_delete(workplace):
    augmented()
    experiment = comparison.open_experiment(settings(model="SASRec", epochs=1))
    first = run.train_model(experiment, "SASRec")
    run_dir = run.run_directory(experiment, "SASRec")
    weights = run_dir / "best.pth"
    weights.write_bytes(weights.read_bytes()[:100])
    for _ in range(2):
        message = rf"best\.pth is not a readable checkpoint \(.*\); delete {run_dir} to train anew"
        with pytest.raises(DataError, match=message) as error:
            run.open_run(experiment, "SASRec", run_dir)
        assert "\n" not in str(error.value)
        weights.unlink(missing_ok=True)
    pd.testing.assert_frame_equal(run.train_model(experiment, "SASRec").ranks, first.ranks)  # read, without them
    assert not weights.exists()
    shutil.rmtree(run_dir)
    run.train_model(experiment, "SASRec")
    run.open_run(experiment, "SASRec", run_dir)


def test_parameters_are_counted_without_those_that_nothing_uses(workplace):
    for stage in ("embed", "augment", "profile"):
        compare.STAGES[stage](settings(), silent)
    counted = {}
    for epochs in (0, 1):
        experiment = comparison.open_experiment(settings(model="LLMEDT", epochs=1, finetune_epochs=epochs))
        counted[epochs] = run.train_model(experiment, "LLMEDT").n_parameters
    own = QUICK["hidden_size"], 64  # of the two user adapters, each down and up again with a bias
    assert counted[1] - counted[0] == 2 * (2 * own[0] * own[1] + sum(own))


@pytest.mark.parametrize("kind", ["train", "validate", "on all"])
def test_a_run_that_another_process_ends_just_before_the_lock_is_read(workplace, monkeypatch, kind):
    augmented()
    experiment = comparison.open_experiment(settings(model="Pop"))
    run_dir = run.run_directory(experiment, "Pop")
    path, train = {
        "train": (run_dir / "result.json", lambda: run.train_model(experiment, "Pop")),
        "validate": (run_dir / "t" / "valid.json", lambda: run.validate_model(experiment, "Pop", run_dir / "t")),
        "on all": (run_dir / "all-data" / "result.json", lambda: run.train_on_all(experiment, "Pop")),
    }[kind]
    if kind == "on all":
        run.train_model(experiment, "Pop")
    alone, written = files.alone_in, []

    @contextmanager
    def too_late(folder):
        with monkeypatch.context() as patch:
            patch.setattr(run, "alone_in", alone)
            train()  # the other process
        written.append(path.stat().st_mtime_ns)
        with alone(folder):
            yield

    monkeypatch.setattr(run, "alone_in", too_late)
    assert train()
    assert written == [path.stat().st_mtime_ns]
