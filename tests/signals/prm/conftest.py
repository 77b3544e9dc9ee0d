"""Two checkpoints of one family: a standard token classifier, and one like the published ones with code of its own."""

import json

import pytest

CONFIGURATION = """
from transformers import Qwen2Config


class PRMConfig(Qwen2Config):
    model_type = "qwen2"
"""
MODELING = '''
import torch
from torch import nn
from transformers import Qwen2Model, Qwen2PreTrainedModel

from .configuration_prm import PRMConfig


class Positions(nn.Module):
    """A table outside the checkpoint, made in the constructor as older modeling files make it."""

    def __init__(self, width, base):
        super().__init__()
        self.register_buffer("rates", 1.0 / base ** (torch.arange(0, width, 2).float() / width), persistent=False)

    def forward(self, x, position_ids):
        angles = torch.cat([position_ids[..., None] * self.rates] * 2, -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class Qwen2ForProcessRewardModel(Qwen2PreTrainedModel):
    config_class = PRMConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.model.rotary_emb = Positions(config.hidden_size // config.num_attention_heads, 10000.0)
        self.score = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size), nn.ReLU(), nn.Linear(config.hidden_size, 2)
        )
        self.post_init()

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        assert use_cache is False
        hidden = self.model(input_ids, attention_mask=attention_mask, use_cache=use_cache)[0]
        return (self.score(hidden),)
'''


@pytest.fixture(scope="session")
def standard(tmp_path_factory):
    """A standard token classifier."""
    import tiny_prms as tiny

    return tiny.save_labels(tmp_path_factory.mktemp("prm") / "standard")


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A checkpoint like the published one: code of its own, and a configuration as Transformers 4 wrote it."""
    import torch

    import tiny_prms as tiny

    folder = tmp_path_factory.mktemp("prm") / "published"
    folder.mkdir()
    (folder / "configuration_prm.py").write_text(CONFIGURATION)
    (folder / "modeling_prm.py").write_text(MODELING)
    words = tiny.qwen()
    torch.manual_seed(2)
    tiny.own_class(folder)(tiny.config("Qwen2", len(words), num_labels=2)).save_pretrained(folder)
    words.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    for name in ("rope_parameters", "layer_types", "dtype"):
        del content[name]
    content |= {"model_type": "qwen2", "rope_theta": 10000.0, "torch_dtype": "float32"}
    content["auto_map"] = {
        "AutoConfig": "configuration_prm.PRMConfig",
        "AutoModel": "modeling_prm.Qwen2ForProcessRewardModel",
    }
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)
