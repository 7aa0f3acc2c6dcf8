"""Training can start from the weights of an earlier run."""

import pytest
import torch
from safetensors.torch import save_file

from fedmed.configuration.groups import ModelConfig
from fedmed.errors import ConfigurationError
from fedmed.models.initial_weights import load_initial_weights
from fedmed.models.registry import build_model

SMALL = ModelConfig(width=4, stages=2)


def network(outputs=1, seed=0, config=SMALL):
    return build_model(config, channels=1, outputs=outputs, seed=seed)


def saved(model, path):
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


def test_every_entry_of_the_same_network_is_loaded(tmp_path):
    source, target = network(seed=1), network(seed=2)
    matched = load_initial_weights(target, saved(source, tmp_path / "w.safetensors"))
    assert matched.missing == matched.unused == ()
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


def test_the_head_for_other_labels_stays_random_and_is_reported(tmp_path):
    source, target = network(outputs=5, seed=1), network(outputs=1, seed=2)
    head = target.head.weight.clone()
    matched = load_initial_weights(target, saved(source, tmp_path / "w.safetensors"))
    assert set(matched.missing) == {"head.weight", "head.bias"} == set(matched.unused)
    assert torch.equal(target.head.weight, head)
    assert "encoder.layers.0.weight" in matched.loaded


def test_files_that_cannot_serve_say_why(tmp_path):
    target = network()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_initial_weights(target, tmp_path / "absent.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_initial_weights(target, tmp_path / "pickle.safetensors")
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigurationError, match=r"model\.width"):
        load_initial_weights(target, tmp_path / "other.safetensors")
    broken = network()
    with torch.no_grad():
        broken.head.weight[0, 0] = float("nan")
    with pytest.raises(ConfigurationError, match="not finite"):
        load_initial_weights(target, saved(broken, tmp_path / "nan.safetensors"))
