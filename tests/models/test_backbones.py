"""Which of RecBole's sequential models work as backbones, and that those which do keep their contract."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import recbole
import recbole.model.sequential_recommender as recbole_models
import torch
from conftest import QUICK, write_tiny
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.layers import MultiHeadAttention, TransformerEncoder
from recbole.utils import get_model

from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.config.settings import load_settings
from recbole_edt.errors import ConfigError
from recbole_edt.experiments import compare
from recbole_edt.files import read_file
from recbole_edt.models.parts import backbones
from recbole_edt.models.parts.backbones import BACKBONES, MASKED, NO_BACKBONE, build_backbone, item_encoder
from recbole_edt.models.parts.batch_fields import LAST_WINDOW, TARGET_SEQ
from recbole_edt.models.parts.faster import CausalAttention, CausalEncoder
from recbole_edt.models.parts.states import AllPositions, last_state
from recbole_edt.train import comparison, run
from recbole_edt.train.dataset import EDTDataset
from recbole_edt.train.phases import FrozenStates, single_targets

CAUSAL = [name for name in BACKBONES if name != MASKED]
SEQUENTIAL = sorted(
    name
    for name, cls in vars(recbole_models).items()
    if inspect.isclass(cls)
    and issubclass(cls, SequentialRecommender)
    and cls.__module__.startswith("recbole.model.sequential_recommender.")
)
L = 6


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Training rows of a data set that has interactions and nothing else."""
    folder = tmp_path_factory.mktemp("backbones")
    write_tiny(folder, "tiny")
    settings = load_settings("tiny", [], {"data_path": str(folder), "MAX_ITEM_LIST_LENGTH": L})
    dataset = EDTDataset(recbole_config(settings, "SASRec", "tiny", folder))
    dataset._change_feat_format()
    return dataset.parts(False, "prefix")[0]


class Defaults:
    """A model's own defaults over the configuration of a run."""

    def __init__(self, name: str, train: EDTDataset) -> None:
        path = Path(recbole.__file__).parent / "properties" / "model" / f"{name}.yaml"
        self.values, self.config = read_file(path), train.config

    def __getitem__(self, key: str):
        value = self.values.get(key)
        return self.config[key] if value is None else value


def what_it_lacks(name: str, train: EDTDataset) -> str | None:
    """The first demand of the contract that a model of RecBole fails, found by trying; None if it keeps all."""
    cls = get_model(name)
    wants = list(inspect.signature(cls.forward).parameters)[1:]
    for argument, reason in (("next_items", backbones._TARGET), ("user", backbones._USER)):
        if argument in wants:
            return reason
    try:
        stock = cls(Defaults(name, train), train).eval()
    except (KeyError, ValueError):
        return backbones._FEATURES
    item_seq, length = torch.tensor([[3, 4, 5, 6, 7, 8]]), torch.tensor([L])
    open_model = type(name, (AllPositions, cls), {})(Defaults(name, train), train).eval()

    def states(model, item_seq):
        found = cls.forward(model, *(item_seq, length)[: len(wants)])
        return found[-1] if isinstance(found, list) else found  # a list has the output of every layer

    try:
        before = states(open_model, item_seq)
    except RuntimeError:  # it goes on computing with what it takes for the last state
        return backbones._ONE_VECTOR
    if before.shape[:-1] != (1, L):
        return backbones._ONE_VECTOR
    for t in range(1, L):
        changed = item_seq.clone()
        changed[0, t] = 11
        if not torch.allclose(states(open_model, changed)[:, :t], before[:, :t], atol=1e-6):
            return backbones._FUTURE
    if states(stock, item_seq).dim() != 2:
        return backbones._SCORES
    return None


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_every_sequential_model_of_recbole_is_a_backbone_or_lacks_what_its_error_says(name, train):
    if name in (MASKED, "NextItNet"):  # their own first bases open them, see below
        assert name in BACKBONES
        return
    lacks = what_it_lacks(name, train)
    assert (name in BACKBONES) == (lacks is None)
    if lacks is not None:
        assert NO_BACKBONE[name] in (lacks, lacks.format("SASRec"), lacks.format("GRU4Rec"))


def test_the_lists_hold_every_sequential_model_of_recbole_once():
    assert len(SEQUENTIAL) > 25
    assert sorted([*BACKBONES, *NO_BACKBONE]) == SEQUENTIAL


@pytest.mark.parametrize("name", ["GRU4Rec", "NextItNet"])
def test_pre_norm_is_refused_where_there_are_no_transformer_layers(name):
    with pytest.raises(ConfigError, match=f"norm_first: {name} has no transformer layers; SASRec and BERT4Rec have"):
        load_settings("tiny", [], {"backbone": name, "model_settings.LLMEDT.norm_first": True})


@pytest.mark.parametrize("name, why", [("NARM", "no state per position"), ("S3Rec", "features"), ("SASRek", None)])
def test_another_backbone_is_an_error_with_the_list_and_the_reason(name, why):
    with pytest.raises(ConfigError) as error:
        load_settings("tiny", [], {"backbone": name})
    message = str(error.value)
    assert f"backbone: '{name}' is not one of SASRec, GRU4Rec, BERT4Rec, NextItNet" in message
    assert why is None or why in message


# ---- the contract ------------------------------------------------------------------------------------------------


def backbone(name: str, tmp_path: Path, **keys) -> torch.nn.Module:
    torch.manual_seed(3)
    values = {"n_heads": 2, "MAX_ITEM_LIST_LENGTH": 8, "backbone": name, "hidden_size": 8, **keys}
    view = recbole_config(load_settings("none", [], values), "LLMEDT", "none", tmp_path)

    class FewItems:
        def num(self, field: str) -> int:
            return 20

    encoder = item_encoder(name)(20, 8, "id", initializer_range=1.0)
    return build_backbone(name, view, FewItems(), encoder).eval()


def stock_states(model: torch.nn.Module, *arguments: torch.Tensor) -> torch.Tensor:
    """What RecBole's class computes on the same weights, without any base or module of ours."""
    cls = get_model(type(model).__name__)
    plain = cls.__new__(cls)
    plain.__dict__.update(copy.deepcopy(model).__dict__)
    for module in plain.modules():
        for own, recboles in ((CausalEncoder, TransformerEncoder), (CausalAttention, MultiHeadAttention)):
            if type(module) is own:
                module.__class__ = recboles
    return cls.forward(plain, *arguments)


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec"])
def test_the_last_of_all_states_is_the_stock_models_output(name, tmp_path):
    model = backbone(name, tmp_path)
    item_seq, length = torch.tensor([[3, 4, 5, 6, 0], [7, 8, 0, 0, 0]]), torch.tensor([4, 2])
    expected = stock_states(model, item_seq, length)
    torch.testing.assert_close(model(item_seq, length), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(last_state(model.states(item_seq, length), length), expected, atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(model(item_seq, length), expected, atol=1e-6, rtol=0)


def test_the_last_of_nextitnets_states_is_the_stock_models_output_where_that_reads_no_padding(tmp_path):
    model = backbone("NextItNet", tmp_path)
    item_seq, length = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 3]]), torch.tensor([4, 4])
    torch.testing.assert_close(model(item_seq, length), stock_states(model, item_seq), atol=1e-6, rtol=0)
    # A short sequence gives what the stock model gives without its padding.
    short = model(torch.tensor([[3, 4, 0, 0]]), torch.tensor([2]))
    torch.testing.assert_close(short, stock_states(model, torch.tensor([[3, 4]])), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", CAUSAL)
def test_changing_a_later_item_changes_no_earlier_state(name, tmp_path):
    no_earlier_state_changes(backbone(name, tmp_path))


def test_pre_norm_changes_no_earlier_state_either_and_ends_in_a_norm(tmp_path):
    model = backbone("SASRec", tmp_path, norm_first=True)
    no_earlier_state_changes(model)
    states = model.states(torch.tensor([[3, 4, 5, 6]]), torch.tensor([4]))
    torch.testing.assert_close(states.mean(-1), torch.zeros(1, 4), atol=1e-6, rtol=0)
    kinds = [type(layer).__name__ for layer in model.trm_encoder.layer]
    assert kinds == ["PreNormLayer", "PreNormLayer", "FinalNorm"]


def no_earlier_state_changes(model: torch.nn.Module) -> None:
    item_seq, length = torch.tensor([[3, 4, 5, 6]]), torch.tensor([4])
    states = model.states(item_seq, length)
    for t in range(1, 4):
        changed = item_seq.clone()
        changed[0, t] = 11
        other = model.states(changed, length)
        assert torch.equal(states[:, :t], other[:, :t])
        assert (states[:, t:] - other[:, t:]).abs().max() > 1e-4


@pytest.mark.parametrize("name", CAUSAL)
def test_padding_changes_no_state(name, tmp_path):
    model = backbone(name, tmp_path)
    item_seq, length = torch.tensor([[3, 4, 5]]), torch.tensor([3])
    padded = torch.tensor([[3, 4, 5, 0, 0, 0]])
    torch.testing.assert_close(
        model.states(padded, length)[:, :3], model.states(item_seq, length), atol=1e-6, rtol=0
    )


# ---- masking -----------------------------------------------------------------------------------------------------


def test_bert4rec_answers_with_the_state_of_a_mask_token_after_the_last_item(tmp_path):
    model = backbone("BERT4Rec", tmp_path)
    state = model(torch.tensor([[3, 4, 5, 0], [6, 0, 0, 0]]), torch.tensor([3, 1]))
    for row, items in enumerate(([3, 4, 5, 20], [6, 20])):
        expected = stock_states(model, torch.tensor([items]))[0, -1]
        torch.testing.assert_close(state[row], expected, atol=1e-6, rtol=0)


def test_bert4rec_drops_the_first_item_for_the_mask_only_where_there_is_no_room_as_recbole_does_always(tmp_path):
    model = backbone("BERT4Rec", tmp_path)
    full, length = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10]]), torch.tensor([8])
    cls = get_model("BERT4Rec")
    masked = cls.reconstruct_test_data(model, full.clone(), length)
    assert masked.tolist() == [[4, 5, 6, 7, 8, 9, 10, 20]]
    torch.testing.assert_close(model(full, length), stock_states(model, masked)[:, -1], atol=1e-6, rtol=0)
    one, other = model(full[:, :7], length - 1), model(full[:, 1:7], length - 2)
    assert (one - other).abs().max() > 1e-4  # here the first item counts


def test_padding_changes_nothing_in_bert4recs_answer(tmp_path):
    model = backbone("BERT4Rec", tmp_path)
    answers = [
        model(torch.tensor([[3, 4, 5] + [0] * n, [6, 7, 8][: 3 - 1] + [0] * (n + 1)]), torch.tensor([3, 2]))
        for n in range(6)
    ]
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=1e-6, rtol=0)


def test_a_masked_item_never_shows_in_its_own_state_and_the_items_on_both_sides_do(tmp_path):
    model = backbone("BERT4Rec", tmp_path)
    item_seq, length = torch.tensor([[3, 4, 5, 6]]), torch.tensor([4])
    masked = torch.tensor([[False, True, False, False]])
    states = model.training_states(item_seq, length, masked)
    for t in range(4):
        changed = item_seq.clone()
        changed[0, t] = 11
        other = model.training_states(changed, length, masked)
        assert torch.equal(states, other) if t == 1 else (states[0, 1] - other[0, 1]).abs().max() > 1e-4


def test_the_mask_token_has_a_learnt_vector_of_its_own_and_every_item_its_usual_one():
    torch.manual_seed(0)
    text = torch.cat([torch.zeros(1, 4), torch.randn(5, 4)])
    encoder = item_encoder("BERT4Rec")(6, 3, "llm+id", text)
    ids = torch.tensor([[1, 6, 0], [6, 5, 2]])
    vectors = encoder(ids)
    assert torch.equal(vectors[0, 1], encoder.mask) and torch.equal(vectors[1, 0], encoder.mask)
    assert torch.equal(vectors[ids < 6], encoder.encode(ids[ids < 6]))
    with encoder.shared(torch.tensor([1, 5, 2])):
        torch.testing.assert_close(encoder(ids)[1], vectors[1])
    vectors.sum().backward()
    assert encoder.mask.grad.tolist() == [2, 2, 2]
    assert encoder.weight.shape == (6, 3)  # the mask is no item: never scored, never a negative


# ---- training ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ready(opener):
    """A function that opens LLM-EDT with a backbone on the tiny data set: model and loaders."""
    no_dropout = dict.fromkeys(("attn_dropout_prob", "hidden_dropout_prob", "dropout_prob"), 0.0)
    open_model = opener("LLMEDT", **no_dropout, dilations=[1], block_num=2)
    return lambda name, **keys: open_model(backbone=name, **keys)


@pytest.mark.parametrize("name, norm_first", [*((name, False) for name in BACKBONES), ("SASRec", True), (MASKED, True)])
@pytest.mark.parametrize("loss_type", ["BPR", "BCE", "CE", "SSM"])
def test_every_backbone_learns_in_both_phases_with_every_loss(ready, name, norm_first, loss_type):
    model, train_data, test_data = ready(name, loss_type=loss_type, n_negatives=4, norm_first=norm_first)
    batch = next(iter(train_data))
    for phase in ("pretrain", "finetune"):
        if phase == "finetune":
            model.start(model.method.phases[1])
            model.train()
            before = {key: value.clone() for key, value in model.state_dict().items()}
            batch = FrozenStates(model, train_data).targets
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
        curve = []
        for step in range(25):
            torch.manual_seed(step % 2)
            optimizer.zero_grad()
            loss = sum(model.calculate_loss(batch))
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        assert all(torch.isfinite(torch.tensor(curve)))
        assert sum(curve[-4:]) < sum(curve[:4])
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith("user_adapters") for key in changed)
    model.eval()
    batch = next(iter(test_data))[0]
    with torch.no_grad():
        scores = model.full_sort_predict(batch)
        picked = model.predict(batch)
    torch.testing.assert_close(picked, scores[torch.arange(len(batch)), batch["item_id"]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_no_weight_of_a_backbone_is_left_without_a_gradient(ready, name):
    model, train_data, _ = ready(name)
    sum(model.calculate_loss(next(iter(train_data)))).backward()
    idle = [key for key, weight in model.named_parameters() if weight.grad is None]
    assert all(key.startswith("user_adapters") for key in idle)


def test_pretraining_by_masking_predicts_the_masked_items_against_negatives_of_their_domain(ready):
    model, train_data, _ = ready("BERT4Rec", alpha=0)
    model.sampler.draw = lambda user, domain, n=1: torch.stack([model.pools[d][:n] for d in domain.tolist()])
    batch = next(iter(train_data))
    torch.manual_seed(5)
    masked = model.backbone.predicted(batch[TARGET_SEQ], batch["item_length"])
    torch.manual_seed(5)
    loss = model.calculate_loss(batch)
    assert torch.equal(batch[TARGET_SEQ], batch["item_id_list"])
    total = []
    with torch.no_grad():
        table = model.item_embedding.weight.double()
        for b, t in masked.nonzero().tolist():
            items = batch["item_id_list"][b, : int(batch["item_length"][b])].clone()
            items[masked[b, : len(items)]] = model.backbone.mask_token
            u = stock_states(model.backbone, items[None])[0, t].double()
            target = int(batch["item_id_list"][b, t])
            negative = int(model.pools[int(model.item_domain[target]) - 1][0])
            total.append(torch.nn.functional.softplus(u @ table[negative] - u @ table[target]))
    assert loss.item() == pytest.approx(torch.stack(total).mean().item(), abs=1e-6)


def test_alignment_by_masking_takes_the_state_that_stands_for_the_user_at_inference(ready):
    model, train_data, _ = ready("BERT4Rec", alpha=0.5)
    batch = next(iter(train_data))
    with torch.no_grad():
        align = model.calculate_loss(batch)[1]
        chosen = batch[LAST_WINDOW].bool()
        u = model.backbone(batch["item_id_list"], batch["item_length"])[chosen].double().numpy()
        p = model.profile_adapter(model.profiles[batch["user_id"]])[chosen].double().numpy()
    cos = (u / (u**2).sum(1, keepdims=True) ** 0.5) @ (p / (p**2).sum(1, keepdims=True) ** 0.5).T / 0.2
    others = np.exp(cos) * (1 - np.eye(len(cos)))
    expected = -2 * np.diag(cos).mean() + np.log(others.sum(1)).mean() + np.log(others.sum(0)).mean()
    assert align.item() == pytest.approx(0.5 * expected, abs=1e-5)


def test_each_target_of_finetuning_has_its_own_masked_prefix_and_so_has_its_domain(ready):
    model, train_data, _ = ready("BERT4Rec", alpha=0)
    model.start(model.method.phases[1])
    model.eval()
    part = train_data._dataset.for_finetuning()
    rows = torch.arange(len(part))
    targets = model.frozen_states(part[rows])
    sequences = part.sequences
    assert len(rows) == int(((sequences.mark == 0) & (sequences.first < torch.arange(len(sequences.item)))).sum())
    n_without = 0
    for n in range(0, len(rows), 7):
        row = int(part.row[n])
        history = sequences.item[int(sequences.first[row]) : row][-part.max_item_list_len :]
        domain = int(model.item_domain[targets["item_id"][n]])
        whole = sequences.item[int(sequences.first[row]) : row]
        own = whole[model.item_domain[whole] == domain][-part.max_item_list_len :]
        expected = model.backbone(history[None], torch.tensor([len(history)]))[0]
        torch.testing.assert_close(targets["state"][n], expected, atol=1e-6, rtol=0)
        assert bool(targets["has_own"][n]) == (len(own) > 0)
        n_without += len(own) == 0
        if len(own):
            expected = model.backbone(own[None], torch.tensor([len(own)]))[0]
            torch.testing.assert_close(targets["own_state"][n], expected, atol=1e-6, rtol=0)
    assert n_without


def test_states_too_large_to_keep_come_batch_by_batch_from_the_same_rows(ready):
    model, train_data, _ = ready("BERT4Rec", alpha=0)
    loader = single_targets(train_data)
    targets = torch.cat([batch["item_id"] for batch in loader])
    kept = FrozenStates(model, train_data)
    assert torch.equal(targets.sort().values, kept.targets["item_id"].sort().values)
    assert abs(len(loader) - len(train_data)) <= 1
    model.start(model.method.phases[1])
    assert all(torch.isfinite(torch.stack(model.calculate_loss(batch))).all() for batch in loader)


def test_inserted_items_can_be_context_of_masking_without_ever_being_targets(ready):
    model, train_data, _ = ready("BERT4Rec", inserted_as_targets=False)
    part = train_data._dataset
    batch = part[torch.arange(len(part))]
    inserted = batch["item_id_list"] != batch[TARGET_SEQ]
    assert inserted.any() and (batch[TARGET_SEQ][inserted] == 0).all()
    for _ in range(20):
        assert not (model.backbone.predicted(batch[TARGET_SEQ], batch["item_length"]) & inserted).any()
    assert not part.sequences.generated[part.for_finetuning().row].any()


@pytest.mark.parametrize("name", [MASKED, "NextItNet"])
def test_the_whole_run_of_another_backbone_is_trained_loaded_and_recommends(workplace, name):
    from recbole_edt.recommend.recommender import load

    settings = load_settings("tiny", [], {**QUICK, "backbone": name, "block_num": 2, "dilations": [1]})
    for stage in ("embed", "augment", "profile", "train"):
        compare.STAGES[stage](settings, lambda line: None)
    run_dir = run.run_directory(comparison.open_experiment(settings), "LLMEDT")
    frame = load(run_dir).recommend(["f1", "k3"], k=4, domain="food")
    assert len(frame) == 4
