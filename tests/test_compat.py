"""Each repair of RecBole is needed, does what the original did, and the check names what does not fit."""

from __future__ import annotations

import importlib.metadata
import logging
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import MethodType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import recbole
import torch
from conftest import QUICK, write_tiny
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.model.layers import FeedForward
from recbole.trainer import Trainer
from recbole.utils import FeatureSource, FeatureType
from scipy.sparse import coo_matrix, dok_matrix, issparse

import recbole_edt
from recbole_edt import compat
from recbole_edt.config import recbole_config
from recbole_edt.config.settings import load_settings
from recbole_edt.errors import ConfigError
from recbole_edt.pipeline import stages
from recbole_edt.train import comparison, run

# Taken while the tests are collected, before anything is repaired.
FILL_NAN, SAVE, GELU = Dataset._fill_nan, Trainer._save_checkpoint, FeedForward.gelu
ML_100K = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
PANDAS_3 = int(pd.__version__.split(".")[0]) >= 3
NUMPY_2 = int(np.__version__.split(".")[0]) >= 2


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])  # RecBole's Config evaluates them


def run_python(code: str, **kwargs) -> str:
    """What a fresh interpreter prints."""
    repository = Path(recbole_edt.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys; sys.path.insert(0, {str(repository)!r}); {code}"],
        capture_output=True,
        text=True,
        **kwargs,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- the readers of atomic files ---------------------------------------------------------------------------------


def load(pandas, path: Path, source=FeatureSource.INTERACTION, **settings):
    """One file read by RecBole with its own pandas or ours, and all that it noted of the fields."""
    defaults = {"field_separator": "\t", "seq_separator": " ", "encoding": "utf-8", "load_col": None}
    values = {**defaults, "unload_col": None, "seq_len": None, **settings}
    notes = SimpleNamespace(field2source={}, field2type={}, field2seqlen={}, field2bucketnum={})
    dataset = SimpleNamespace(config=values, logger=logging.getLogger("compat"), **vars(notes))
    dataset._get_load_and_unload_col = MethodType(Dataset._get_load_and_unload_col, dataset)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr("recbole.data.dataset.dataset.pd", pandas)
        return Dataset._load_feat(dataset, str(path), source), vars(notes)


OURS = compat.AtomicPandas()


def assert_same_frame(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    assert list(ours) == list(theirs)
    for name in ours:
        assert len(ours[name]) == len(theirs[name])
        for one, other in zip(ours[name], theirs[name], strict=True):
            if isinstance(one, np.ndarray):
                assert one.dtype == other.dtype and one.tolist() == other.tolist()
            else:
                assert type(one) is type(other) and (one == other or (pd.isna(one) and pd.isna(other)))


@pytest.mark.parametrize("end", ["inter", "item", "user"])
def test_ml_100k_is_read_as_recbole_reads_it(end):
    theirs, their_notes = load(pd, ML_100K / f"ml-100k.{end}")
    ours, our_notes = load(OURS, ML_100K / f"ml-100k.{end}")
    assert our_notes == their_notes
    if PANDAS_3:
        theirs = theirs.astype({name: object for name in theirs if not pd.api.types.is_float_dtype(theirs[name])})
    assert_same_frame(ours, theirs)


FIELDS = "item_id:token\ttitle:token_seq\tvector:float_seq\tprice:float\tyear:token\n"


def fields_file(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "some.item"
    path.write_text(FIELDS + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"seq_len": {"title": 2, "vector": 1}},
        {"seq_len": {"title": 9}},
        {"load_col": {"item": ["item_id", "vector"]}},
        {"load_col": {"item": ["item_id"]}},
        {"load_col": {"item": "*"}},
        {"load_col": {"inter": ["user_id"]}},
        {"load_col": {"item": ["nothing"]}},
        {"unload_col": {"item": ["title", "price"]}},
        {"seq_separator": "."},
    ],
)
def test_sequences_columns_and_lengths_are_those_of_recbole(tmp_path, settings):
    rows = ["i1\ta b  c\t0.1 0.2\t1.5\t1999", "02\tÄpfel\t0.1 1e-3 3\t0.1\t01", 'i3\tsay "x y" z\t7\t2\t7']
    path = fields_file(tmp_path, *rows)
    if settings.get("seq_separator") == ".":
        path.write_text(path.read_text(encoding="utf-8").replace("0.1 ", "1."), encoding="utf-8")
        settings = {**settings, "unload_col": {"item": ["vector"]}}
    theirs, their_notes = load(pd, path, FeatureSource.ITEM, **settings)
    ours, our_notes = load(OURS, path, FeatureSource.ITEM, **settings)
    assert our_notes == their_notes
    if theirs is None:
        assert ours is None
    else:
        assert_same_frame(ours, theirs)


def test_the_longest_sequence_is_noted_after_cutting(tmp_path):
    path = fields_file(tmp_path, "i1\ta b c\t1 2\t1\t1")
    frame, notes = load(OURS, path, FeatureSource.ITEM, seq_len={"title": 2})
    assert frame["title"][0].tolist() == ["a", "b"] and frame["vector"][0].tolist() == [1.0, 2.0]
    assert notes["field2seqlen"] == {"item_id": 1, "price": 1, "year": 1, "title": 2, "vector": 2}
    assert notes["field2bucketnum"] == {"vector": 2, "price": 2}


def test_missing_values_become_empty_sequences_and_stay_missing_elsewhere(tmp_path):
    path = fields_file(tmp_path, "i1\t\t\t\t", "i2\ta\t1\t2\t3")
    ours, notes = load(OURS, path, FeatureSource.ITEM)
    assert [len(value) for value in ours["title"]] == [0, 1] and [len(value) for value in ours["vector"]] == [0, 1]
    assert np.isnan(ours["price"][0]) and pd.isna(ours["year"][0])
    if PANDAS_3:  # the repair is needed: the original's filling in place does nothing, then it splits a NaN
        with pytest.raises(AttributeError):
            load(pd, path, FeatureSource.ITEM)
    else:
        theirs, their_notes = load(pd, path, FeatureSource.ITEM)
        assert notes == their_notes
        assert_same_frame(ours, theirs)


def test_every_digit_of_a_float_survives(tmp_path):
    path = fields_file(tmp_path, "i1\ta\t1\t0.1234567890123456789\t1", "i2\ta\t1\t1700000000.123457\t1")
    frame, _ = load(OURS, path, FeatureSource.ITEM)
    assert frame["price"].tolist() == [0.1234567890123456789, 1700000000.123457]


def test_quotes_are_read_as_recbole_reads_them(tmp_path):
    path = fields_file(tmp_path, 'i1\t"quoted title"\t1\t1\t1', 'i2\tpart "quoted"\t1\t1\t1')
    assert_same_frame(
        load(OURS, path, FeatureSource.ITEM)[0], load(pd, path, FeatureSource.ITEM)[0]
    )


def test_missing_values_are_filled_by_padding_the_mean_and_empty_sequences():
    kinds = {"id": "token", "price": "float", "words": "token_seq", "vector": "float_seq"}

    def dataset() -> SimpleNamespace:
        frame = pd.DataFrame({"id": [3.0, np.nan], "price": [np.nan, 4.0]})
        frame["words"] = pd.Series([np.array([1, 2]), np.nan], dtype=object)
        frame["vector"] = pd.Series([np.nan, np.array([0.5])], dtype=object)
        types = {name: FeatureType(kind) for name, kind in kinds.items()}
        logger = logging.getLogger("compat")
        return SimpleNamespace(feat_name_list=["item_feat"], item_feat=frame, field2type=types, logger=logger)

    compat._restore_numpy_names()
    ours, theirs = dataset(), dataset()
    compat._fill_nan(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        FILL_NAN(theirs)
    filled = ours.item_feat
    assert filled["id"].tolist() == [3, 0] and filled["price"].tolist() == [4.0, 4.0]
    assert [value.tolist() for value in filled["words"]] == [[1, 2], []]
    assert [value.tolist() for value in filled["vector"]] == [[], [0.5]]
    if PANDAS_3:  # the repair is needed
        assert theirs.item_feat["price"].isna().any()
    else:
        assert_same_frame(filled, theirs.item_feat)


def test_a_recbole_data_set_with_missing_values_loads(tmp_path):
    folder = tmp_path / "gaps"
    folder.mkdir()
    inter = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(
        f"u{u}\ti{(u + i) % 4}\t{i}\n" for u in range(3) for i in range(4)
    )
    (folder / "gaps.inter").write_text(inter, encoding="utf-8")
    (folder / "gaps.item").write_text(
        "item_id:token\tprice:float\twords:token_seq\ni0\t1\ta b\ni1\t\t\ni2\t3\tc\ni3\t\td\n", encoding="utf-8"
    )
    compat.apply()
    keys = {"data_path": str(tmp_path), "load_col": {"inter": "*", "item": "*"}, "checkpoint_dir": str(tmp_path)}
    if PANDAS_3:  # RecBole numbers the tokens of sequences by Series.agg(len), which is another thing there
        keys["load_col"] = {"inter": "*", "item": ["item_id", "price"]}
    dataset = Dataset(Config("BPR", "gaps", config_dict=keys))
    dataset._change_feat_format()
    place = {token: i for i, token in enumerate(dataset.field2id_token["item_id"])}
    price = dataset.item_feat["price"]
    assert [price[place[f"i{i}"]].item() for i in range(4)] == [1, 2, 3, 2]  # the mean of 1 and 3
    if not PANDAS_3:
        assert dataset.item_feat["words"][place["i1"]].tolist() == [0, 0]


# ---- checkpoints -------------------------------------------------------------------------------------------------


def trainer_like(model: torch.nn.Module, path: Path) -> SimpleNamespace:
    config_ = recbole_config.EDTConfig("BPR", "any", config_dict={})
    return SimpleNamespace(
        config=config_,
        cur_step=3,
        best_valid_score=np.float64(0.5),
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        saved_model_file=str(path),
        logger=logging.getLogger("compat"),
    )


class Remembering(torch.nn.Linear):
    """A model with extra state, as RecBole's neighbourhood models have."""

    def __init__(self):
        super().__init__(2, 1)
        rows = coo_matrix((np.array([1.5, 2.5], np.float32), ([0, 1], [2, 0])), shape=(2, 3))
        self.state = {
            "csr": rows.tocsr(),
            "lil": rows.tolil(),
            "csc": rows.tocsc(),
            "array": np.arange(6, dtype=np.float32).reshape(2, 3),
            "matrix": np.asmatrix([[1.0, 2.0]]),
            "count": 7,
            "tensor": torch.ones(2),
        }

    def other_parameter(self):
        return self.state


def test_a_checkpoint_holds_tensors_and_plain_values_only(tmp_path):
    path = tmp_path / "new" / "model.pth"
    trainer = trainer_like(torch.nn.Linear(2, 1), path)
    trainer.model.other_parameter = dict
    compat.apply()
    compat.save_plain_checkpoint(trainer, 4)
    state = torch.load(path, weights_only=True)
    assert state["config"] == {"model": "BPR", "dataset": "any"}
    assert (state["epoch"], state["cur_step"], state["best_valid_score"]) == (4, 3, 0.5)
    assert type(state["best_valid_score"]) is float
    torch.testing.assert_close(state["state_dict"], dict(trainer.model.state_dict()))
    assert b"EDTConfig" not in path.read_bytes() and [file.name for file in path.parent.iterdir()] == ["model.pth"]


def test_the_original_checkpoint_is_refused_by_torch(tmp_path):
    trainer = trainer_like(torch.nn.Linear(2, 1), tmp_path / "old.pth")
    trainer.model.other_parameter = dict
    SAVE(trainer, 0)
    with pytest.raises(Exception, match="[Ww]eights"):
        torch.load(tmp_path / "old.pth", weights_only=True)


def test_matrices_beside_the_weights_come_back_as_they_were(tmp_path):
    model = Remembering()
    compat.save_plain_checkpoint(trainer_like(model, tmp_path / "m.pth"), 0, verbose=False)
    saved = torch.load(tmp_path / "m.pth", weights_only=True)["other_parameter"]
    other = SimpleNamespace()
    compat._load_other_parameter(other, saved)
    for key, value in model.state.items():
        again = getattr(other, key)
        assert type(again) is type(value), key
        if issparse(value):
            assert again.dtype == value.dtype and again.shape == value.shape and (again != value).nnz == 0
        else:
            np.testing.assert_array_equal(again, value)
    compat._load_other_parameter(other, None)  # RecBole passes None if the checkpoint has none


# ---- the rest ----------------------------------------------------------------------------------------------------


def test_numpy_names_that_recbole_reads_exist(monkeypatch):
    for name in ("float_", "complex_", "unicode_", "float"):
        monkeypatch.delattr(np, name, raising=False)
    if NUMPY_2:
        with pytest.raises(AttributeError):
            Config("BPR", "any", config_dict={})
    compat._restore_numpy_names()
    assert (np.float_, np.complex_, np.unicode_, np.float) == (np.float64, np.complex128, np.str_, np.float64)
    Config("BPR", "any", config_dict={})


def test_names_that_numpy_still_has_are_left_alone(monkeypatch):
    marker = type("marker", (), {})
    monkeypatch.setattr(np, "float_", marker, raising=False)
    compat._restore_numpy_names()
    assert np.float_ is marker


def test_lightgcn_builds_its_graph(tmp_path, monkeypatch):
    from recbole.model.general_recommender import LightGCN

    class Two:
        """Users 1 and 2, items 1 and 2; user 1 has both items, user 2 the second."""

        def num(self, field):
            return 3

        def inter_matrix(self, form):
            return coo_matrix((np.ones(3, np.float32), ([1, 1, 2], [1, 2, 2])), shape=(3, 3))

    settings = recbole_config.EDTConfig("LightGCN", "any", config_dict={"gpu_id": "", "embedding_size": 2})
    monkeypatch.setattr(dok_matrix, "_update", None, raising=False)
    monkeypatch.delattr(dok_matrix, "_update")
    if not hasattr(dok_matrix, "_update"):
        with pytest.raises(AttributeError):
            LightGCN(settings, Two())
    compat._restore_dok_update()
    graph = LightGCN(settings, Two()).norm_adj_matrix.to_dense()
    assert torch.equal(graph, graph.T) and int((graph > 0).sum()) == 6
    # Entry (user 1, item 1): degrees 2 and 1.
    assert graph[1, 3 + 1].item() == pytest.approx((2 * 1) ** -0.5, abs=1e-6)


def test_anomaly_detection_is_off_although_a_recbole_module_turns_it_on():
    code = "import torch, recbole.model.sequential_recommender; print(torch.is_anomaly_enabled()); "
    code += "from recbole_edt import compat; compat.apply(); print(torch.is_anomaly_enabled()); "
    code += "from recbole.utils import get_model; get_model('SINE'); print(torch.is_anomaly_enabled())"
    assert run_python(code).split() == ["True", "False", "False"]


def test_gelu_equals_the_original():
    compat.apply()
    x = torch.linspace(-6, 6, 2001, dtype=torch.float32, requires_grad=True)
    ours, theirs = FeedForward.gelu(None, x), GELU(None, x)
    assert FeedForward.gelu is not GELU
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    slopes = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*slopes, atol=1e-6, rtol=1e-6)


def test_the_layer_of_a_transformer_uses_the_faster_gelu():
    compat.apply()
    layer = FeedForward(4, 8, 0.0, "gelu", 1e-12)
    assert layer.intermediate_act_fn.__func__ is FeedForward.gelu


def test_applying_twice_changes_nothing():
    compat.apply()
    before = Dataset._fill_nan, Trainer._save_checkpoint, dok_matrix._update
    compat.apply()
    assert before == (Dataset._fill_nan, Trainer._save_checkpoint, dok_matrix._update)


# ---- the check ---------------------------------------------------------------------------------------------------


def test_the_installed_recbole_passes():
    compat.check()


def test_another_version_is_named_with_the_command_that_mends_it(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.1.1")
    with pytest.raises(ConfigError, match=r"RecBole 1\.1\.1 is installed.*pip install recbole==1\.2\.1"):
        compat.check()


def test_a_missing_recbole_is_named_with_the_command_that_installs_it(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ConfigError, match=r"not installed: pip install recbole==1\.2\.1.*--no-deps"):
        compat.check()


@pytest.mark.parametrize(("owner", "hook"), [(Dataset, "_fill_nan"), (Trainer, "_valid_epoch")])
def test_a_missing_hook_is_named(monkeypatch, owner, hook):
    monkeypatch.delattr(owner, hook)
    with pytest.raises(ConfigError, match=hook):
        compat.check()


# ---- imports -----------------------------------------------------------------------------------------------------

MODULES = [module.name for module in pkgutil.iter_modules(recbole_edt.__path__, "recbole_edt.")]


def test_no_module_imports_recboles_quick_start_or_ray(tmp_path):
    code = f"import importlib; [importlib.import_module(name) for name in {MODULES}]; "
    code += "print([name for name in sys.modules if name.split('.')[0] == 'ray' or 'quick_start' in name])"
    assert run_python(code, cwd=tmp_path) == "[]"
    assert list(tmp_path.iterdir()) == []  # importing writes nothing


def test_importing_the_package_changes_nothing_in_recbole():
    code = "from recbole.data.dataset import Dataset; before = dict(vars(Dataset)); "
    code += f"import importlib; [importlib.import_module(name) for name in {MODULES}]; "
    code += "print(before == dict(vars(Dataset)), hasattr(Dataset, 'LLMEDTDataset'))"
    assert run_python(code) == "True False"


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_a_run_of_a_baseline_prints_no_warning_of_recboles_own_lines(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "atomic_files", "tiny")
    settings = load_settings("tiny", [], {**QUICK, "epochs": 1, "models": [model], "model": model})
    stages.embed(settings, lambda line: None)
    stages.augment_data(settings, lambda line: None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)  # as Python does outside __main__
        compat.apply()
        run.train_model(comparison.open_experiment(settings), model)
    assert [str(one.message) for one in seen if "recbole/" in one.filename] == []
