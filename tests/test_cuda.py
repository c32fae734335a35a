"""The same results on a GPU as on a processor; skipped where there is no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import QUICK
from recbole.utils import init_seed

from recbole_edt.config import settings
from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.experiments import compare
from recbole_edt.models.parts.faster import Dropout
from recbole_edt.train import comparison
from recbole_edt.train.loop import prefetched
from recbole_edt.train.phases import FrozenStates
from recbole_edt.train.run import loaders, make_trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout_prob": 0.0}


@pytest.fixture
def run(workplace):
    """A function that makes a model's trainer on a device, and its loaders; weights as drawn on the processor."""
    for stage in ("embed", "augment", "profile"):
        compare.STAGES[stage](settings.load_settings("tiny", [], QUICK), lambda line: None)

    def make(name: str, gpu: bool, **keys):
        values = {**QUICK, **NO_DROPOUT, "gpu_id": "0" if gpu else "", **keys}
        experiment = comparison.open_experiment(settings.load_settings("tiny", [], values))
        view = recbole_config(experiment.settings, name, "tiny-edt", workplace / "run")
        assert view["device"].type == ("cuda" if gpu else "cpu")
        init_seed(view["seed"], True)
        train_data, _, test_data, cls = loaders(experiment, view, name)
        model = cls(view, train_data._dataset).to(view["device"])
        trainer = make_trainer(experiment, view, model, workplace / "run", train_data._dataset)
        trainer.run_dir = None
        return trainer, train_data, test_data

    return make


def same_weights(one, other) -> None:
    other.load_state_dict({key: value.to("cuda") for key, value in one.state_dict().items()})


@pytest.mark.parametrize("name", ["LLMEDT", "SASRec", "GRU4Rec"])
def test_losses_gradients_and_ranks_are_those_of_a_processor(run, name):
    # A softmax has no random negatives, which the two devices draw differently.
    (cpu, batches, test), (gpu, _, gpu_test) = (run(name, on, loss_type="CE", alpha=0.1) for on in (False, True))
    same_weights(cpu.model, gpu.model)
    batch = next(iter(batches))
    losses = []
    for trainer in (cpu, gpu):
        loss = trainer.model.calculate_loss(batch.to(trainer.device))
        total = sum(loss) if isinstance(loss, tuple) else loss
        total.backward()
        losses.append(total.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for (key, one), (_, other) in zip(cpu.model.named_parameters(), gpu.model.named_parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad.cpu(), one.grad, atol=1e-4, rtol=1e-3, msg=key)
    cpu.evaluate(test, load_best_model=False), gpu.evaluate(gpu_test, load_best_model=False)
    higher = [trainer.evaluator.ranks["higher"].to_numpy() for trainer in (cpu, gpu)]
    assert np.abs(higher[0] - higher[1]).max() <= 1


def test_both_phases_run_and_a_seed_gives_the_same_weights_twice(run):
    results = []
    for _ in range(2):
        trainer, train_data, test_data = run("LLMEDT", True)
        trainer._train_epoch(train_data, 0)
        trainer.begin(trainer.model.method.phases[1])
        trainer._train_epoch(FrozenStates(trainer.model, train_data), 0)
        trainer.evaluate(test_data, load_best_model=False)
        results.append({key: value.cpu() for key, value in trainer.model.state_dict().items()})
    assert torch.are_deterministic_algorithms_enabled()
    assert all(torch.allclose(results[0][key], results[1][key], atol=1e-6) for key in results[0])


@pytest.mark.parametrize("option", ["enable_amp", "compile"])
def test_options_for_speed_give_nearly_the_same_ranking(run, option):
    ranks = []
    for on in (False, True):
        trainer, train_data, test_data = run("SASRec", True, loss_type="CE", **{option: on})
        for epoch in range(4):
            trainer._train_epoch(train_data, epoch)
        trainer.evaluate(test_data, load_best_model=False)
        ranks.append(trainer.evaluator.ranks["higher"].to_numpy())
    assert np.corrcoef(*ranks)[0, 1] > 0.97


def test_prefetched_batches_are_the_loaders(run):
    trainer, train_data, _ = run("LLMEDT", True)
    state = train_data.generator.get_state()
    ahead = list(prefetched(train_data, trainer.device))
    train_data.generator.set_state(state)
    for one, other in zip(ahead, train_data, strict=True):
        assert all(one[key].is_cuda and torch.equal(one[key].cpu(), other[key]) for key in other.columns)


def test_dropout_is_torchs_own():
    x = torch.ones(1000, device="cuda")
    torch.manual_seed(0)
    one = Dropout(0.5)(x)
    torch.manual_seed(0)
    assert torch.equal(one, torch.nn.functional.dropout(x, 0.5))
