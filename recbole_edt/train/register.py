"""The methods of this library, made known to RecBole by name."""

from __future__ import annotations

import sys

from recbole_edt.compat import apply, check
from recbole_edt.errors import ConfigError


def register() -> None:
    """Make the methods, their dataset and their trainers known to RecBole by name; calling it again changes nothing.

    Afterwards ``run_recbole(model=NAME, ...)``, ``get_model``, ``create_dataset``, ``get_trainer`` and
    RecBole's hyper-parameter tuning find them. A process that was *spawned* starts without them: call
    ``register()`` at the top of the script, outside ``if __name__ == "__main__"``, and every child does it too.

    Raises: ConfigError if RecBole is not the version we know, or if another package already uses one of the names.
    """
    check()
    apply()
    import recbole.data.dataset as datasets
    import recbole.model.sequential_recommender as models
    import recbole.trainer as trainers
    from recbole.utils.argument_list import dataset_arguments

    from recbole_edt.config.recbole_keys import DATASET_KEYS
    from recbole_edt.models.registry import METHODS, model_class
    from recbole_edt.train.dataset import EDTDataset
    from recbole_edt.train.phases import PhaseTrainer

    own_modules, ours = {}, []
    for name, method in METHODS.items():
        # get_model looks for a module of the model's name among RecBole's own.
        cls = model_class(name)
        own_modules[f"{models.__name__}.{name.lower()}"] = sys.modules[cls.__module__]
        ours += [(models, name, cls), (datasets, f"{name}Dataset", EDTDataset)]
        if len(method.phases) > 1:  # one phase alone is RecBole's own way
            ours.append((trainers, f"{name}Trainer", PhaseTrainer))
    for module_name, own in own_modules.items():
        if sys.modules.get(module_name, own) is not own:
            raise ConfigError(f"{module_name} is already taken by {sys.modules[module_name]!r}")
    for module, name, cls in ours:
        if getattr(module, name, cls) is not cls:
            raise ConfigError(f"{module.__name__}.{name} is already taken by {getattr(module, name)!r}")
    for module, name, cls in ours:
        setattr(module, name, cls)
    sys.modules.update(own_modules)
    # RecBole's data set cache compares these keys only; without ours it would hand out a stale data set.
    dataset_arguments.extend(key for key in DATASET_KEYS if key not in dataset_arguments)
