"""Settings from files and the command line: every fault is found before anything runs, and said where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_edt.cli import run
from recbole_edt.config import recbole_keys
from recbole_edt.config.recbole_config import check_model, model_values, recbole_config
from recbole_edt.config.settings import Settings, load_settings, with_keys
from recbole_edt.errors import ConfigError
from recbole_edt.files import read_yaml
from recbole_edt.profile.settings import ProfileConfig


@pytest.fixture
def refused(workplace, capsys):
    """A function that runs the stage ``prepare`` with bad arguments and gives the message, line by line."""

    def check(*arguments: str) -> list[str]:
        dataset = [] if any(one.startswith("--dataset") for one in arguments) else ["--dataset=tiny"]
        status = run(["prepare", *dataset, *arguments])
        printed = capsys.readouterr()
        assert status == 2, printed
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        return printed.err.removeprefix("error: ").splitlines()

    return check


# ---- unknown keys and names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("epoch=3", "epochs"),
        ("learning_rat=0.1", "learning_rate"),
        ("augment.tua=0.9", "augment.tau"),
        ("profile.clusters=3", "profile.n_clusters"),
        ("embed.embeder=x", "embed.embedder"),
        ("recommend.sen=true", "recommend.seen"),
        ("item_representatoin=id", "item_representation"),
        ("hiden_size=8", "hidden_size"),
        ("finetune_epoch=8", "finetune_epochs"),
        ("candidate=all", "candidates"),
        ("model_settings.SASRec.learnig_rate=1", "model_settings.SASRec.learning_rate"),
    ],
)
def test_a_mistyped_key_is_named_with_the_nearest_one(refused, given, meant):
    key = given.partition("=")[0]
    assert refused(f"--{given}") == [f"command line: unknown key '{key}' (did you mean '{meant}'?)"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("model=sasrec", "model: unknown model 'sasrec' (did you mean 'SASRec'?)"),
        ("model=LLM-EDT", "model: unknown model 'LLM-EDT' (did you mean 'LLMEDT'?)"),
        ("models=SASRec,GRU4Re", "models: unknown model 'GRU4Re' (did you mean 'GRU4Rec'?)"),
        ("models=SASRec SASRec", "models: 'SASRec' is there more than once"),
        ("models=", "models: expected names such as [SASRec, LLMEDT], found None"),
        ("models=5", "models: expected names such as [SASRec, LLMEDT], found 5"),
        ("models=[[a]]", "models: unknown model '['a']'"),
        ("model=[a]", "model: unknown model '['a']'"),
        ("model_settings.Foo.seed=1", "model_settings.Foo: unknown model 'Foo'"),
        ("model_settings.SASRec.data_path=x", "model_settings.SASRec.data_path: data_path is one for all models"),
        ("model_settings.LLMEDT.augment.k=3", "model_settings.LLMEDT.augment: augment is one for all models"),
        ("model_settings.SASRec.topk=[5]", "model_settings.SASRec.topk: topk is one for all models"),
        ("model_settings=5", "model_settings: expected models below it, found 5"),
        ("model_settings.SASRec=5", "model_settings.SASRec: expected keys below it, found 5"),
        ("augment=5", "augment: expected keys below it, found 5"),
    ],
)
def test_wrong_names_are_refused(refused, given, message):
    assert refused(f"--{given}") == [f"command line: {message}"]


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/passwd", "..", ".hidden", "", "a b", "a\\b"])
def test_a_data_set_name_is_never_a_path(refused, name):
    assert "is not a plain name" in refused(f"--dataset={name}")[0]


def test_the_name_that_recbole_keeps_for_itself_is_refused(refused):
    (line,) = refused("--dataset=ml-100k")
    assert "its own folder" in line and "ml-100k-cross" in line


# ---- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("epochs=abc", "epochs: 'abc' is not a whole number"),
        ("epochs=1.5", "epochs: 1.5 is not a whole number"),
        ("epochs=true", "epochs: True is not a whole number"),
        ("epochs=", "epochs: None is not a whole number"),
        ("epochs=-1", "epochs: -1 is not a number of at least 0"),
        ("train_batch_size=0", "train_batch_size: 0 is not a number of at least 1"),
        ("MAX_ITEM_LIST_LENGTH=0", "MAX_ITEM_LIST_LENGTH: 0 is not a number of at least 1"),
        ("seed=-1", "seed: -1 is not a number of at least 0 and at most 4294967295"),
        ("learning_rate=abc", "learning_rate: 'abc' is not a number"),
        ("learning_rate=.nan", "learning_rate: nan is not a number of at least 0 and at most 1000.0"),
        ("hidden_dropout_prob=1.5", "hidden_dropout_prob: 1.5 is not a number of at least 0 and at most 1"),
        ("num_layers=0", "num_layers: 0 is not a number of at least 1"),
        ("block_num=1.5", "block_num: 1.5 is not a whole number"),
        ("dilations=[1, 0]", "dilations: [1, 0] is not a list of whole numbers above 0"),
        ("mask_ratio=1.5", "mask_ratio: 1.5 is not a number of at least 0 and at most 1"),
        ("backbone=NARM", "backbone: 'NARM' is not one of SASRec, GRU4Rec, BERT4Rec, NextItNet; its forward() has no"),
        ("hidden_size=wide", "hidden_size: 'wide' is not a whole number"),
        ("use_gpu=maybe", "use_gpu: 'maybe' is not true or false"),
        ("learner=adamm", "learner: 'adamm' is not one of adam, adamw, sgd, adagrad, rmsprop, sparse_adam"),
        ("hidden_act=foo", "hidden_act: 'foo' is not one of gelu, relu, swish, tanh, sigmoid"),
        ("clip_grad_norm=5", "clip_grad_norm: 5 is not a mapping such as {max_norm: 5, norm_type: 2}"),
        ("clip_grad_norm={foo: 1}", "clip_grad_norm: {'foo': 1} is not a mapping such as {max_norm: 5"),
        ("worker=-1", "worker: -1 is not a number of at least 0"),
        ("initializer_range=-1", "initializer_range: -1 is not a number of at least 0"),
        ("loss_decimal_place=-1", "loss_decimal_place: -1 is not a number of at least 0"),
        ("checkpoint_dir=elsewhere", "checkpoint_dir: 'elsewhere' is not supported here: weights lie in the folder"),
        ("train_neg_sample_args={distribution: foo}", "train_neg_sample_args: {'distribution': 'foo'} is not a"),
        ("model_settings.NARM.dropout_probs=[0.5]", "model_settings.NARM.dropout_probs: [0.5] is not a list of two"),
        ("user_profiles=5", "user_profiles: 5 is not the path of a file"),
        ("load_col={inter: [user_id]}", "load_col: {'inter': ['user_id']} is not supported here: no column but"),
        ("gpu_id=first", "gpu_id: 'first' is not a list of numbers such as 0 or '0,1'"),
        ("norm_first=often", "norm_first: 'often' is not true or false"),
        ("augment.injection_ratio=30", "augment.injection_ratio: 30 is not above 0 and at most 1"),
        ("alpha=-1", "alpha: -1 is below 0"),
        ("item_representation=text", "item_representation: 'text' is not one of llm, id, llm+id"),
        ("item_ids=svd", "item_ids: 'svd' is not one of random, pca"),
        ("item_ids=pca", "item_ids: pca has no meaning where item_representation: llm has no learnt embeddings"),
        ("loss_type=MSE", "loss_type: 'MSE' is not one of BPR, BCE, CE, SSM"),
        ("finetune_epochs=-1", "finetune_epochs: -1 is not a number of at least 0"),
        ("model_settings.SASRec.epochs=x", "model_settings.SASRec.epochs: 'x' is not a whole number"),
        ("model_settings.LLMEDT.alpha=-1", "model_settings.LLMEDT.alpha: -1 is below 0"),
        ("topk=[0]", "topk: [0] is not a list of whole numbers above 0"),
        ("valid_metric=NDCG@7", "valid_metric: 'NDCG@7' is not Hit, NDCG or MRR at one of topk, [5, 10, 20]"),
        ("topk=[5, 20]", "valid_metric: 'NDCG@10' is not Hit, NDCG or MRR at one of topk, [5, 20], such as 'NDCG@5'"),
        ("model_settings.SASRec.valid_metric=MRR@3", "model_settings.SASRec.valid_metric: 'MRR@3' is not Hit, NDCG or"),
        ("metrics=[Recall]", "metrics: ['Recall'] is not supported here: hit, NDCG and MRR are always measured"),
        ("eval_args.split={RS: [8, 1, 1]}", "eval_args: fixed to "),
        ("training=prefixes", "training: 'prefixes' is not one of sequence, prefix"),
        ("candidates=sampled-0", "candidates: 'sampled-0' is not one of domain, all, sampled-N"),
        ("domains=[food, overall]", "domains: 'overall' is the name for all users in every table"),
        ("domains=[food]", "domains: expected two names such as [food, kitchen], found ['food']"),
        ("k_core=true", "k_core: True is not a whole number of at least 0"),
        ("data_path=", "data_path: None is not a folder"),
        ("augment.tau=7", "augment.tau: 7 is not in [-1, 1]"),
        ("augment.k=0", "augment.k: 0 is not a whole number of at least 1"),
        ("augment.generator=[1]", "augment.generator: [1] is not one of offline"),
        ("embed.embedder=[1]", "embed.embedder: [1] is not one of wordllama"),
        ("embed.vectors=3", "embed.vectors: 3 is not the path of a file"),
        ("prepare.source={a: 1}", "prepare.source: {'a': 1} is not one of ml-100k"),
        ("profile.pipeline=long", "profile.pipeline: 'long' is not one of sra, hierarchical, plain"),
        ("recommend.k=true", "recommend.k: True is not a whole number above 0"),
        ("recommend.seen=maybe", "recommend.seen: 'maybe' is not true or false"),
        ("user_inter_num_interval='[5,inf)'", "user_inter_num_interval: '[5,inf)' is not supported here: rows are"),
        ("USER_ID_FIELD=uid", "USER_ID_FIELD: 'uid' is not supported here: the columns are user_id"),
        ("normalize_all=true", "normalize_all: True is not supported here"),
        ("benchmark_filename=[a, b, c]", "benchmark_filename: ['a', 'b', 'c'] is not supported here"),
    ],
)
def test_values_of_another_kind_or_out_of_range_are_refused(refused, given, message):
    (line,) = refused(f"--{given}")
    assert line.startswith(f"command line: {message}"), line


def test_what_each_model_is_validated_by_must_be_among_the_cut_offs_of_all(refused):
    both = {"topk": [3], "valid_metric": "NDCG@3"}
    load_settings("tiny", [], {**both, "model_settings.SASRec.valid_metric": "MRR@3"})
    shared = [f"--{key}={value}" for key, value in both.items()]
    (line,) = refused(*shared, "--model_settings.SASRec.valid_metric=NDCG@10")
    assert line.startswith("command line: model_settings.SASRec.valid_metric: 'NDCG@10' is not Hit, NDCG or MRR at one")


def test_keys_that_cancel_each_other_are_refused(refused):
    (line,) = refused("--profiles=sra", "--profile.pipeline=plain")
    assert line.startswith("command line: profile.pipeline: 'plain' does nothing beside profiles: sra; give one of")
    load_settings("tiny", [], {"profiles": "sra", "profile.pipeline": "sra"})
    (line,) = refused("--recommend.histories=b.csv", "--recommend.output=x/../b.csv")
    assert line.endswith("recommend.output: 'x/../b.csv' is the file of recommend.histories, which it would replace")


def test_weights_and_biases_are_refused_where_they_are_not_installed(refused, monkeypatch):
    find = recbole_keys.find_spec
    monkeypatch.setattr(recbole_keys, "find_spec", lambda name: None if name == "wandb" else find(name))
    assert refused("--log_wandb=true")[0].endswith("log_wandb: needs a package that is not here: pip install wandb")
    assert refused("--log_wandb=2") == ["command line: log_wandb: 2 is not true or false"]


@pytest.mark.parametrize("key", ["learning_rate", "epochs", "augment.tau", "hidden_size"])
def test_a_value_is_never_evaluated(refused, workplace, key):
    refused(f"--{key}=__import__('os').system('touch pwned')")
    refused(f"--{key}=__import__('pathlib').Path('pwned').touch()")
    assert "tag" in refused(f'--{key}=!!python/object/apply:os.system ["touch pwned"]')[0]
    assert not (workplace / "pwned").exists()


def test_a_file_cannot_build_objects_either(refused, workplace):
    Path("evil.yaml").write_text("epochs: !!python/object/apply:os.system ['touch pwned']\n")
    assert refused("--config_files=evil.yaml")[0].startswith("evil.yaml, line 1, column 9: ")
    assert not (workplace / "pwned").exists()


def test_all_faults_come_at_once_each_with_its_origin(refused):
    Path("a.yaml").write_text("augment: {tua: 0.9, k: 0}\nepoch: 3\n")
    Path("b.yaml").write_text("model_settings:\n  SASRec:\n    learning_rate: fast\n")
    lines = refused("--config_files=a.yaml b.yaml", "--seed=x", "--augment.tau=3")
    assert sorted(lines) == [
        "a.yaml: augment.k: 0 is not a whole number of at least 1",
        "a.yaml: unknown key 'augment.tua' (did you mean 'augment.tau'?)",
        "a.yaml: unknown key 'epoch' (did you mean 'epochs'?)",
        "b.yaml: model_settings.SASRec.learning_rate: 'fast' is not a number",
        "command line: augment.tau: 3 is not in [-1, 1]; write a cosine such as 0.9 or a quantile such as q0.10",
        "command line: seed: 'x' is not a whole number",
    ]


def test_the_origin_is_that_of_the_value_that_counts(refused):
    Path("a.yaml").write_text("seed: x\n")
    assert refused("--config_files=a.yaml") == ["a.yaml: seed: 'x' is not a whole number"]
    assert refused("--config_files=a.yaml", "--seed=y") == ["command line: seed: 'y' is not a whole number"]


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epochs: 3\nx: [1, 2\ny: 3\n", "bad.yaml, line 3, column 2: expected ',' or ']', but got ':'"),
        (b"a: 1\n b: 2\n", "bad.yaml, line 2, column 3: mapping values are not allowed here"),
        (b"- a\n- b\n", "bad.yaml: expected 'key: value' lines, found a list"),
        (b"just text\n", "bad.yaml: expected 'key: value' lines, found a str"),
        (b"epochs: 3\n# caf\xe9\n", "bad.yaml cannot be read: 'utf-8' codec can't decode byte 0xe9"),
        (b"1: 2\n", "bad.yaml: unknown key '1'"),
        (b"epochs: 3\nseed: 1\nepochs: 4\n", "bad.yaml, line 3, column 1: key 'epochs' is given twice"),
        (b"seed: 2020-13-45\n", "bad.yaml: month must be in 1..12"),
        (b"augment: &x {tau: *x}\n", "bad.yaml: a value is nested too deep, or holds itself"),
        (b"topk: " + b"[" * 3000 + b"]" * 3000, "bad.yaml: a value is nested too deep, or holds itself"),
        (b"dataset: other\n", "bad.yaml: dataset: 'other', but this run is for 'tiny'"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(refused, content, message):
    Path("bad.yaml").write_bytes(content)
    assert refused("--config_files=bad.yaml")[0].startswith(message)


def test_a_missing_file_is_named(refused):
    assert refused("--config_files=nope.yaml") == ["nope.yaml does not exist"]


def test_later_files_and_the_command_line_win_key_by_key(workplace):
    Path("dataset_configs").mkdir()
    Path("dataset_configs/tiny.yaml").write_text("epochs: 1\nseed: 1\naugment: {k: 1, tau: 0.1}\n")
    Path("a.yaml").write_text("seed: 2\naugment: {tau: 0.2}\nprofile:\n")
    settings = load_settings("tiny", [Path("a.yaml")], {"augment.n_clusters": 7, "learning_rate": 1})
    assert settings.recbole == {"epochs": 1, "seed": 2, "learning_rate": 1}
    assert (settings.augment.k, settings.augment.tau, settings.augment.n_clusters) == (1, 0.2, 7)
    assert settings.profile == ProfileConfig()


ELSEWHERE = {"llm.base_url": "https://api.deepseek.com/v1", "llm.api_key_env": "DEEPSEEK_API_KEY", "llm.model": "m"}


@pytest.mark.parametrize(
    ("embed", "url", "variable"),
    [
        ({}, "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
        ({"base_url": "https://api.deepseek.com/v2"}, "https://api.deepseek.com/v2", "DEEPSEEK_API_KEY"),
        ({"base_url": "http://127.0.0.1:9/v1"}, "http://127.0.0.1:9/v1", None),
        ({"base_url": "https://api.voyageai.com/v1", "api_key_env": "MINE"}, "https://api.voyageai.com/v1", "MINE"),
        ({"api_key_env": "MINE"}, "https://api.deepseek.com/v1", "MINE"),
    ],
)
def test_the_key_of_the_llm_is_that_of_the_vectors_on_the_same_server_alone(workplace, embed, url, variable):
    keys = {f"embed.{key}": value for key, value in {"embedder": "endpoint", "model": "e", **embed}.items()}
    asked = load_settings("tiny", [], {**ELSEWHERE, **keys}).embedding
    assert (asked.base_url, asked.api_key_env, asked.model) == (url, variable, "e")


def test_another_server_beyond_this_network_needs_the_name_of_its_own_key(workplace, refused):
    keys = {**ELSEWHERE, "embed.embedder": "endpoint", "embed.model": "e", "embed.base_url": "https://api.openai.com/v1"}
    (line,) = refused(*(f"--{key}={value}" for key, value in keys.items()))
    assert line.startswith("command line: embed.api_key_env: embed.base_url is another server than llm.base_url, whose")
    load_settings("tiny", [], {**keys, "embed.embedder": "wordllama"})
    load_settings("tiny", [], keys, asks=False)


def test_keys_of_every_method_may_stand_for_all_models_and_a_methods_own_are_its_own(workplace, refused):
    settings = load_settings("tiny", [], {"beta": 0.3, "models": ["SASRec"]})
    assert "beta" not in model_values(settings, "SASRec")
    assert model_values(settings, "LLM4CDSR")["beta"] == 0.3
    shared = load_settings("tiny", [], {"norm_first": True, "n_negatives": 8, "alpha": 0.5})
    assert model_values(shared, "SASRec") == {"norm_first": True, "n_negatives": 8}
    assert model_values(with_keys(shared, {"profiles": "plain"}, "x"), "BPR") == {}
    (line,) = refused("--model_settings.LLM4CDSR.item_ids=pca")
    assert line.startswith("command line: unknown key 'model_settings.LLM4CDSR.item_ids'")
    (line,) = refused("--model_settings.SASRec.item_ids=pca")
    assert line.startswith("command line: unknown key 'model_settings.SASRec.item_ids'")


@pytest.mark.parametrize(("key", "value"), [("loss_type", "XE"), ("backbone", "Foo"), ("item_representation", "text")])
def test_a_wrong_value_for_all_models_is_refused_though_a_model_has_its_own(workplace, refused, key, value):
    own = {"loss_type": "SSM", "backbone": "GRU4Rec", "item_representation": "id"}[key]
    (line,) = refused(f"--{key}={value}", f"--model_settings.LLMEDT.{key}={own}", "--models=LLMEDT")
    assert line.startswith(f"command line: {key}: '{value}' is not one of ") and own in line


def test_values_for_all_models_may_not_fit_a_models_own(workplace):
    shared = {"item_ids": "pca", "item_representation": "llm+id"}
    chosen = load_settings("tiny", [], {**shared, "model_settings.LLMEDT.item_ids": "random"})
    assert model_values(chosen, "LLMEDT")["item_ids"] == "random"


def test_norm_first_for_all_models_is_not_for_a_backbone_without_such_layers(workplace, refused):
    chosen = load_settings("tiny", [], {"norm_first": True, "backbone": "GRU4Rec"})
    assert model_values(chosen, "SASRec") == {"norm_first": True}
    for method in ("LLMEDT", "LLM4CDSR"):
        assert model_values(chosen, method) == {"backbone": "GRU4Rec"}
        check_model(chosen, method)
    (line,) = refused("--backbone=GRU4Rec", "--model_settings.LLMEDT.norm_first=true")
    assert line == (
        "command line: model_settings.LLMEDT.norm_first: GRU4Rec has no transformer layers; SASRec and BERT4Rec have"
    )


@pytest.mark.parametrize("name", ["amazon-fk-overlap", "amazon-fk-full", "amazon2014-food-kitchen"])
def test_another_backbone_is_one_option_whatever_the_ready_configuration(monkeypatch, name):
    monkeypatch.chdir(Path(__file__).parents[2])
    for files in ([], [Path("dataset_configs/paper.yaml")]):
        for backbone in ("GRU4Rec", "BERT4Rec"):
            chosen = load_settings(name, files, {"backbone": backbone, "model": "LLMEDT"})
            assert model_values(chosen, "LLMEDT")["backbone"] == backbone
            check_model(chosen, "LLMEDT")


@pytest.mark.parametrize(
    ("stage", "arguments", "models"),
    [
        ("train", ["--model=LLM4CDSR", "--alpha=0.9"], ["LLM4CDSR"]),
        ("train", ["--model=LLM4CDSR", "--alpha=0.3"], []),
        ("train", ["--model=LLM4CDSR", "--alpha=0.9", "--model_settings.LLM4CDSR.alpha=0.9"], []),
        ("train", ["--models=LLM4CDSR", "--alpha=0.9"], ["LLMEDT"]),
        ("compare", ["--models=SASRec,LLM4CDSR", "--alpha=0.9"], ["LLM4CDSR"]),
        ("compare", ["--models=SASRec", "--alpha=0.9"], []),
        ("experiment table2", ["--alpha=0.9"], ["LLM4CDSR", "LLMEDT"]),
        ("experiment table3", ["--alpha=0.9"], ["LLMEDT"]),
        ("tune", ["--model=LLM4CDSR", "--trials=1", "--alpha=0.9"], ["LLM4CDSR"]),
        ("prepare", ["--alpha=0.9", "--data_path=elsewhere"], []),
        ("compare", ["--models=LLM4CDSR", "--data_path=elsewhere"], []),
    ],
)
def test_a_key_on_the_command_line_that_does_not_count_is_said(workplace, capsys, stage, arguments, models):
    Path("own.yaml").write_text("model_settings: {LLM4CDSR: {alpha: 0.3}, LLMEDT: {alpha: 0.3}}")
    # There are no files yet, so that every stage ends early.
    assert run([*stage.split(), "--dataset=none", "--config_files=own.yaml", *arguments]) in (1, 2)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: --")]
    assert notes == [
        f"note: --alpha=0.9 does not count for {model}, whose own is 0.3: give --model_settings.{model}.alpha"
        for model in models
    ]


def test_loading_changes_nothing_that_the_caller_gave(workplace):
    overrides = {"model_settings": {"SASRec": {"seed": 1}}, "model_settings.SASRec.epochs": 2}
    settings = load_settings("tiny", [], overrides)
    assert settings.model_settings == {"SASRec": {"seed": 1, "epochs": 2}}
    assert overrides == {"model_settings": {"SASRec": {"seed": 1}}, "model_settings.SASRec.epochs": 2}


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3", ".001"])
def test_every_way_to_write_a_small_number_is_one(text):
    assert read_yaml(text) == 0.001


def test_recboles_own_defaults_pass_the_checks():
    for model in recbole_keys._model_names():
        load_settings("any", [], {"models": [model], "model_settings": {model: recbole_keys.hyper_parameters(model)}})


# ---- what RecBole sees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["LLMEDT", "SASRec", "BERT4Rec", "BPR"])
def test_recbole_gets_our_values_and_not_those_of_the_process(workplace, monkeypatch, model):
    monkeypatch.setattr("sys.argv", ["run", "--epochs=99", "--seed=99"])
    settings = load_settings("tiny", [], {"epochs": 4, f"model_settings.{model}.seed": 7})
    own = recbole_config(settings, model, "tiny", Path("out"))
    assert (own["epochs"], own["seed"], own["stopping_step"]) == (4, 7, 20)
    assert own["eval_args"]["split"] == {"LS": "valid_and_test"} and own["topk"] == [5, 10, 20]


@pytest.mark.parametrize(("model", "drawn"), [("BPR", "uniform"), ("SASRec", "none")])
def test_negatives_that_are_left_open_are_those_that_the_model_needs(workplace, model, drawn):
    settings = load_settings("tiny", [], {"train_neg_sample_args": None})
    own = recbole_config(settings, model, "tiny", Path("out"))
    assert own["train_neg_sample_args"]["distribution"] == drawn
    without = recbole_config(load_settings("tiny"), model, "tiny", Path("out"))
    assert own.final_config_dict == without.final_config_dict


def test_text_that_looks_like_code_stays_text_in_recboles_configuration(workplace):
    settings = Settings("tiny", recbole={"learner": "__import__('os').getcwd()"})
    assert recbole_config(settings, "SASRec", "tiny", Path("out"))["learner"] == "__import__('os').getcwd()"


def test_without_the_gpu_the_device_is_the_processor(workplace):
    settings = load_settings("tiny", [], {"use_gpu": False})
    assert recbole_config(settings, "SASRec", "tiny", Path("out"))["device"].type == "cpu"


SAMPLED = {"train_neg_sample_args": {"distribution": "popularity"}}


@pytest.mark.parametrize(
    ("keys", "model", "message"),
    [
        ({"loss_type": "SSM"}, "BERT4Rec", "BERT4Rec: loss_type: 'SSM' is not one of BPR, CE"),
        ({"loss_type": "BCE", "training": "prefix"}, "SASRec", "SASRec: loss_type: 'BCE' is not one of BPR, CE"),
        ({"model_settings.SASRec.loss_type": "MSE"}, "SASRec", "'MSE' is not one of BPR, CE, BCE, SSM"),
        ({"model_settings.BERT4Rec.hidden_size": 31}, "BERT4Rec", "hidden_size: 31 is not a multiple of n_heads, 2"),
        ({"hidden_size": 9}, "LLMEDT", "LLMEDT: hidden_size: 9 is not a multiple of n_heads, 2"),
        ({"hidden_size": 9, "backbone": "BERT4Rec"}, "LLMEDT", "hidden_size: 9 is not a multiple of n_heads, 2"),
        ({"norm_first": True, "training": "prefix"}, "SASRec", "SASRec: norm_first needs training: sequence"),
        ({"model_settings.GRU4Rec.norm_first": True}, "GRU4Rec", "GRU4Rec: norm_first is for SASRec, BERT4Rec, LLM"),
        (SAMPLED, "LLMEDT", "LLMEDT: train_neg_sample_args does nothing: its loss draws its own"),
        ({**SAMPLED, "loss_type": "BPR"}, "SASRec", "SASRec: train_neg_sample_args does nothing: its loss draws"),
        ({**SAMPLED, "loss_type": "CE"}, "NARM", "NARM: train_neg_sample_args does nothing: with loss_type CE it has"),
        ({"shuffle": False}, "LLMEDT", "LLMEDT: shuffle: false does nothing: whole sequences are always shuffled"),
        ({"shuffle": False}, "GRU4Rec", "GRU4Rec: shuffle: false does nothing"),
        ({}, "KGAT", "KGAT needs more than interactions"),
        ({}, "FM", "FM needs more than interactions"),
        ({}, "SASRecF", "SASRecF needs more than interactions"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_before_others_train(keys, model, message):
    settings = load_settings("any", [], {**keys, "models": ["Pop", model]})
    with pytest.raises(ConfigError, match=message):
        check_model(settings, model)


def test_recboles_sampler_is_left_to_the_models_that_draw_from_it(workplace):
    settings = load_settings("any", [], {**SAMPLED, "loss_type": "BPR", "training": "prefix"})
    for model in ("SASRec", "BPR"):
        check_model(settings, model)
        drawn = recbole_config(settings, model, "tiny", Path("out"))["train_neg_sample_args"]
        assert drawn["distribution"] == "popularity"


@pytest.mark.parametrize("backbone", ["GRU4Rec", "NextItNet"])
def test_a_backbone_without_heads_may_have_any_width(backbone):
    check_model(load_settings("any", [], {"backbone": backbone, "hidden_size": 9}), "LLMEDT")
