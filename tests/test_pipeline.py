"""Stages on files: own vectors, items without text, work that is not done twice, and one folder per result."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK
from filelock import FileLock

from recbole_edt import atomic, config, embeddings, pipeline
from recbole_edt.errors import ConfigError, DataError


def silent(line: str) -> None:
    pass


def settings(**keys):
    return config.load("tiny", [], {**QUICK, **keys})


def augmented(**keys) -> atomic.TwoDomainData:
    for stage in ("embed", "augment"):
        pipeline.STAGES[stage](settings(**keys), silent)
    return atomic.read(Path("atomic_files/tiny-edt"), "tiny-edt")


def test_own_vectors_take_the_place_of_the_embedder(workplace):
    items = pipeline.read(settings()).items
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(items), 4)).astype(np.float32)
    lines = [f"{item}\t{' '.join(map(repr, row.tolist()))}" for item, row in zip(items[1:], vectors[1:], strict=True)]
    Path("own.itememb").write_text("\n".join(["iid:token\tv:float_seq", *lines]) + "\n", encoding="utf-8")
    said = []
    pipeline.embed(settings(**{"embed.vectors": "own.itememb"}), said.append)
    assert f"{len(items) - 1} distinct, with own.itememb; 1 without text or vector" in said[0]
    table = embeddings.EmbeddingTable.load(Path("atomic_files/tiny/tiny.itemvec.safetensors"))
    np.testing.assert_array_equal(table.lookup(items), np.vstack([np.zeros((1, 4)), vectors[1:]]))
    dropped = augmented(**{"embed.vectors": "own.itememb", "embed.missing_text": "drop"})
    assert list(dropped.items) == list(items[1:])


def test_own_vectors_of_other_items_are_refused(workplace):
    Path("own.itememb").write_text("iid:token\tv:float_seq\nnobody\t1 2\n", encoding="utf-8")
    with pytest.raises(DataError, match="has a vector for none of the 30 items"):
        pipeline.embed(settings(**{"embed.vectors": "own.itememb"}), silent)


def test_items_without_text_stay_or_go_by_name_of_the_policy(workplace):
    path = Path("atomic_files/tiny/tiny.item")
    lines = path.read_text(encoding="utf-8").splitlines()
    token, domain, _ = lines[1].split("\t")
    path.write_text("\n".join([lines[0], f"{token}\t{domain}\t", *lines[2:]]) + "\n", encoding="utf-8")
    assert token in augmented().items
    assert token not in augmented(**{"embed.missing_text": "drop"}).items


def test_a_stage_whose_inputs_have_not_changed_writes_nothing(workplace):
    for stage in ("embed", "augment", "profile"):
        pipeline.STAGES[stage](settings(), silent)
    before = {path: path.stat().st_mtime_ns for path in workplace.rglob("*") if path.is_file()}
    for stage in ("embed", "augment", "profile"):
        pipeline.STAGES[stage](settings(), silent)
    assert before == {path: path.stat().st_mtime_ns for path in workplace.rglob("*") if path.is_file()}
    pipeline.augment_data(settings(**{"augment.k": 1}), silent)
    inter = workplace / "atomic_files/tiny-edt/tiny-edt.inter"
    assert inter.stat().st_mtime_ns != before[inter]


def test_augmented_files_that_were_changed_by_hand_are_not_trained_on(workplace):
    augmented()
    path = Path("atomic_files/tiny-edt/tiny-edt.inter")
    path.write_text(path.read_text(encoding="utf-8") + "u0\tf1\t1\t0\n", encoding="utf-8")
    with pytest.raises(DataError, match="not as the stage augment wrote them: run it again"):
        pipeline.open_experiment(settings())


def test_k_core_holds_in_the_augmented_files_too(workplace):
    data = augmented(k_core=3)
    raw = ~data.generated
    assert np.bincount(data.item[raw], minlength=len(data.items)).min() >= 3
    part = data.user[raw] * 2 + data.item_domain[data.item[raw]]
    assert np.unique(part, return_counts=True)[1].min() >= 3


def folder_of(**keys) -> str:
    experiment = pipeline.open_experiment(settings(**keys))
    return str(pipeline.run_directory(experiment, "SASRec")), str(pipeline.run_directory(experiment, "LLMEDT"))


def test_a_run_folder_is_named_after_everything_that_shapes_its_result(workplace):
    for stage in ("embed", "augment", "profile"):
        pipeline.STAGES[stage](settings(), silent)
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
    pipeline.augment_data(settings(**{"augment.k": 1}), silent)
    again = folder_of()
    assert again[0] == sasrec and again[1] != llmedt
    # it still reads vectors and profiles when it leaves the rows out
    pipeline.profile(settings(**{"profile.n_words": 1}), silent)
    assert folder_of(use_generated=False)[1] != without_rows


def test_sampled_candidates_are_stored_and_of_the_targets_domain(workplace):
    for stage in ("embed", "augment", "profile"):
        pipeline.STAGES[stage](settings(), silent)
    experiment = pipeline.open_experiment(settings(candidates="sampled-3"))
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
        pipeline.STAGES[stage](settings(), silent)
    first = pipeline.open_experiment(settings(candidates="sampled-3"))
    path = first.folder / "candidates-test.npy"
    before = path.stat().st_mtime_ns
    again = pipeline.open_experiment(settings(candidates="sampled-3"))
    assert path.stat().st_mtime_ns == before and first.candidates_hash == again.candidates_hash
    validation, test = first.candidates["validation"], first.candidates["test"]
    shared = [len(set(a) & set(b)) for a, b in zip(validation.ids.tolist(), test.ids.tolist(), strict=True)]
    assert np.mean(shared) < 2  # of three; the same seed would give nearly all


def test_a_larger_catalogue_is_another_experiment(workplace):
    augmented()
    pipeline.profile(settings(), silent)
    before = pipeline.open_experiment(settings()).folder
    path = Path("atomic_files/tiny/tiny.item")
    path.write_text(path.read_text(encoding="utf-8") + "f999\tfood\tnew tea\n", encoding="utf-8")
    augmented()
    assert pipeline.open_experiment(settings()).folder != before


def test_own_vector_files_name_the_run(workplace):
    augmented()
    pipeline.profile(settings(), silent)
    table = embeddings.EmbeddingTable.load(Path("atomic_files/tiny-edt/tiny-edt.itemvec.safetensors"))
    folders = set()
    for scale in (1, 2):
        own = embeddings.EmbeddingTable(table.tokens, table.rows, np.array(table.vectors) * scale, table.meta)
        own.save(Path("own.safetensors"))
        folders.add(folder_of(item_embeddings="own.safetensors")[1])
    assert len(folders) == 2


def test_the_ablation_without_filter_says_that_all_were_kept(workplace):
    said = []
    pipeline.embed(settings(), silent)
    pipeline.augment_data(settings(**{"augment.filter": False}), said.append)
    assert "all kept (no filter)" in said[0] and "all kept (no filter)" in said[1]


def test_the_way_sequences_are_made_into_rows_does_not_rename_a_run_of_llmedt(workplace):
    augmented()
    pipeline.profile(settings(), silent)
    sequence, prefix = folder_of(training="sequence"), folder_of(training="prefix")
    assert sequence[1] == prefix[1] and sequence[0] != prefix[0]


def test_logs_have_no_colours_and_miss_nothing_that_was_off_before(tmp_path):
    pipeline.logging.getLogger().info("off")
    with pipeline._log_to(tmp_path / "log.txt"):
        pipeline.logging.getLogger().info("\x1b[1;32mepoch 0\x1b[0m")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").endswith("INFO epoch 0\n")


def test_rows_that_were_made_with_other_settings_are_not_trained_on_without_a_word(workplace):
    augmented()
    said = []
    pipeline.check_rows(settings(), said.append, ["LLMEDT"])
    assert said == []
    pipeline.check_rows(settings(**{"augment.k": 2, "augment.filter": False}), said.append, ["LLMEDT"])
    assert said[0].startswith("note: the rows are as they were made, with another augment.filter, augment.k; run")
    (Path("atomic_files/tiny-edt") / "augment.json").unlink()  # then the files are somebody else's
    pipeline.check_rows(settings(**{"augment.k": 2}), said.append, ["LLMEDT"])
    assert len(said) == 1


def test_profiles_that_were_made_with_other_settings_are_not_read_without_a_word(workplace):
    augmented()
    pipeline.profile(settings(), silent)
    said = []
    for models in (["LLMEDT"], ["SASRec"]):  # the second reads none
        pipeline.check_rows(settings(**{"profile.n_words": 2}), said.append, models)
    note = "note: the profiles are as they were made, with another profile.n_words; run profile to make them anew"
    assert said == [note]


@pytest.mark.parametrize("stage", [pipeline.train, pipeline.compare, pipeline.recommend])
def test_rows_that_were_made_of_other_data_are_refused(workplace, stage):
    augmented()
    path = Path("atomic_files/tiny/tiny.inter")
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="is not what atomic_files/tiny-edt was made of: run everything again"):
        stage(settings(), silent)
    with pytest.raises(DataError, match="is not what atomic_files/tiny-edt was made of"):  # whatever else differs
        stage(settings(**{"augment.k": 2}), silent)


@pytest.mark.parametrize("stage", [pipeline.train, pipeline.compare, pipeline.recommend])
def test_profiles_of_an_older_split_are_refused(workplace, stage):
    augmented()
    pipeline.profile(settings(), silent)
    path = Path("atomic_files/tiny/tiny.inter")
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:-1]) + "\n", encoding="utf-8")
    augmented()
    with pytest.raises(DataError, match="atomic_files/tiny-edt is not what its profiles were made of: run everything"):
        stage(settings(), silent)
    pipeline.check_rows(settings(), silent, ["SASRec"])  # reads none


def test_vectors_of_other_texts_or_another_embedder_are_refused(workplace):
    augmented()
    items = pipeline.read(settings()).items
    table = embeddings.EmbeddingTable(items, np.zeros(len(items), np.int32), np.ones((1, 4), np.float32), {})
    table.save(Path("own.safetensors"))
    with pytest.raises(DataError, match=r"tiny.itemvec.safetensors: made of other texts, or with other settings"):
        pipeline.augment_data(settings(**{"embed.vectors": "own.safetensors"}), silent)
    path = Path("atomic_files/tiny/tiny.item")
    path.write_text(path.read_text(encoding="utf-8").rstrip("\n") + " more\n", encoding="utf-8")
    with pytest.raises(DataError, match="made of other texts"):
        pipeline.augment_data(settings(), silent)
    Path("atomic_files/tiny/embed.json").unlink()  # then the vectors are somebody else's
    pipeline.augment_data(settings(), silent)


def test_the_best_epoch_is_found_among_those_that_were_validated(workplace):
    augmented()
    experiment = pipeline.open_experiment(settings(model="SASRec", epochs=1))
    pipeline.train_model(experiment, "SASRec")
    run_dir = pipeline.run_directory(experiment, "SASRec")
    metric = pipeline.read_json(run_dir / "result.json")["valid_metric"]
    scores = [None, 0.2, None, 0.4, None, 0.4]
    table = pd.DataFrame({"phase": "train", "train_loss": 1.0, "epoch": range(6), metric: scores})
    for rows, best in ((table, 6), (table.iloc[:5], 4), (table.iloc[:3], 2), (table.iloc[:1], None)):
        rows.to_csv(run_dir / "epochs.csv", index=False)
        assert pipeline.read_result(run_dir).best_epoch == best
    assert pipeline.read_result(run_dir).max_epochs == 1
    assert pipeline.read_json(run_dir / "result.json")["made_with"]["augment"]["config"]["n_clusters"] == 3
    # With adapter_residual the weights are those of the last phase, however good the one before was.
    phases = {"phase": ["pretrain"] * 2 + ["finetune"] * 2, "epoch": [0, 1] * 2}
    pd.DataFrame({**phases, metric: [0.5, 0.4, 0.2, 0.3]}).to_csv(run_dir / "epochs.csv", index=False)
    result = pipeline.read_json(run_dir / "result.json")
    for residual, best in ((False, 1), (True, 4)):
        pipeline.write_json(run_dir / "result.json", {**result, "settings": {"adapter_residual": residual}})
        assert pipeline.read_result(run_dir).best_epoch == best
    (run_dir / "config.yaml").write_text("a: [1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="config.yaml, line 2"):
        pipeline.read_result(run_dir)
    (run_dir / "epochs.csv").write_text("", encoding="utf-8")
    for read in (pipeline.read_result, pipeline.chosen_epochs):
        with pytest.raises(DataError, match=r"epochs\.csv: no table of epochs \(No columns .*\); delete its folder to"):
            read(run_dir)
    pipeline.write_json(run_dir / "result.json", {**result, "settings": []})
    with pytest.raises(DataError, match=r"result\.json: has a value of another type at settings, so it is damaged"):
        pipeline.read_result(run_dir)


def test_a_score_on_validation_is_read_only_for_the_settings_that_it_was_found_with(workplace):
    augmented()
    folder = Path("trial-0001")

    def trained(epochs: int) -> int:
        experiment = pipeline.open_experiment(settings(model="SASRec", epochs=epochs))
        return pipeline.validate_model(experiment, "SASRec", folder)["epochs"]

    assert trained(1) == 1
    before = (folder / "valid.json").stat().st_mtime_ns
    assert trained(1) == 1 and (folder / "valid.json").stat().st_mtime_ns == before
    assert trained(2) == 2
    (folder / "valid.json").unlink()
    (folder / "last.pth").write_bytes(b"of other settings")  # a search that was stopped, and then begun anew
    assert trained(1) == 1


def test_models_are_compared_where_the_augmented_files_are_all_there_is(workplace):
    augmented()
    pipeline.profile(settings(), silent)
    shutil.rmtree("atomic_files/tiny")
    pipeline.compare(settings(models=["Pop"], topk=[3, 10]), silent)
    (folder,) = Path("runs").glob("tiny-*")
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "The data set is not at hand: " in text and "No language model was called" in text
    header = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"hit@3", "ndcg@10"} < set(header) and "hit@5" not in header


def test_names_of_domains_are_text_in_the_report_and_nothing_else(workplace):
    path = Path("atomic_files/tiny/tiny.item")
    path.write_text(path.read_text(encoding="utf-8").replace("\tfood\t", "\t<img src=x>|*a*\t"), encoding="utf-8")
    text = pipeline._data_section(settings())
    assert "img src" in text and "<img" not in text and "x>|" not in text and "*a*" not in text.replace("\\*", "")
    assert "It is not known whether a language model was called" in text
    assert pipeline.llm_note(settings()) == "not known how rows and profiles were made"


def test_two_processes_never_train_into_one_folder(workplace):
    augmented()
    experiment = pipeline.open_experiment(settings(model="Pop"))
    run_dir = pipeline.run_directory(experiment, "Pop")
    run_dir.mkdir(parents=True)
    with FileLock(run_dir / ".lock"), pytest.raises(DataError, match="another process is training this run"):
        pipeline.train_model(experiment, "Pop")
    assert pipeline.train_model(experiment, "Pop").name == "Pop"
    with FileLock(run_dir / ".lock"):  # a finished run is read by any number of them
        assert pipeline.train_model(experiment, "Pop").name == "Pop"


def test_a_run_whose_weights_are_damaged_or_gone_names_the_folder_to_delete(workplace):
    augmented()
    experiment = pipeline.open_experiment(settings(model="SASRec", epochs=1))
    first = pipeline.train_model(experiment, "SASRec")
    run_dir = pipeline.run_directory(experiment, "SASRec")
    weights = run_dir / "best.pth"
    weights.write_bytes(weights.read_bytes()[:100])
    for _ in range(2):
        message = rf"best\.pth is not a readable checkpoint \(.*\); delete {run_dir} to train anew"
        with pytest.raises(DataError, match=message) as error:
            pipeline.open_run(experiment, "SASRec", run_dir)
        assert "\n" not in str(error.value)
        weights.unlink(missing_ok=True)
    pd.testing.assert_frame_equal(pipeline.train_model(experiment, "SASRec").ranks, first.ranks)  # read, without them
    assert not weights.exists()
    shutil.rmtree(run_dir)
    pipeline.train_model(experiment, "SASRec")
    pipeline.open_run(experiment, "SASRec", run_dir)


def test_parameters_are_counted_without_those_that_nothing_uses(workplace):
    for stage in ("embed", "augment", "profile"):
        pipeline.STAGES[stage](settings(), silent)
    counted = {}
    for epochs in (0, 1):
        experiment = pipeline.open_experiment(settings(model="LLMEDT", epochs=1, finetune_epochs=epochs))
        counted[epochs] = pipeline.train_model(experiment, "LLMEDT").n_parameters
    own = QUICK["hidden_size"], 64  # of the two user adapters, each down and up again with a bias
    assert counted[1] - counted[0] == 2 * (2 * own[0] * own[1] + sum(own))


@pytest.mark.parametrize("kind", ["train", "validate", "on all"])
def test_a_run_that_another_process_ends_just_before_the_lock_is_read(workplace, monkeypatch, kind):
    augmented()
    experiment = pipeline.open_experiment(settings(model="Pop"))
    run_dir = pipeline.run_directory(experiment, "Pop")
    path, train = {
        "train": (run_dir / "result.json", lambda: pipeline.train_model(experiment, "Pop")),
        "validate": (run_dir / "t" / "valid.json", lambda: pipeline.validate_model(experiment, "Pop", run_dir / "t")),
        "on all": (run_dir / "all-data" / "result.json", lambda: pipeline.train_on_all(experiment, "Pop")),
    }[kind]
    if kind == "on all":
        pipeline.train_model(experiment, "Pop")
    alone, written = pipeline.alone_in, []

    @contextmanager
    def too_late(folder):
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "alone_in", alone)
            train()  # the other process
        written.append(path.stat().st_mtime_ns)
        with alone(folder):
            yield

    monkeypatch.setattr(pipeline, "alone_in", too_late)
    assert train()
    assert written == [path.stat().st_mtime_ns]
