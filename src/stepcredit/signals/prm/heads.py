"""Published heads that Transformers has not, on its own Qwen2: so that no code of a checkpoint need run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


def two_layer_head(width: int) -> nn.Module:
    """Linear, ReLU, Linear: hidden states [..., width] to logits [..., 2]."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))


class ValueHead(nn.Module):
    """TRL's head for values: hidden states [..., width] to one number [..., 1]."""

    def __init__(self, width: int) -> None:
        """Has one layer, with a bias."""
        super().__init__()
        self.summary = nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """One number for each hidden state."""
        numbers: Tensor = self.summary(hidden)
        return numbers


@dataclass(frozen=True)
class PublishedHead:
    """A head on Transformers' own Qwen2, under the published names of its weights.

    Attributes:
        architecture: The published modeling class.
        attribute: What that class calls its head.
        make: Makes the head for hidden states of a width.
    """

    architecture: str
    attribute: str
    make: Callable[[int], nn.Module]

    def model_class(self, transformers: Any) -> Any:
        """A class that loads a published checkpoint, and gives the head's logits for each token."""
        attribute, make = self.attribute, self.make

        class Published(transformers.Qwen2PreTrainedModel):  # type: ignore[misc]
            _keys_to_ignore_on_load_unexpected = ("lm_head",)

            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.model = transformers.Qwen2Model(config)
                setattr(self, attribute, make(config.hidden_size))
                self.post_init()

            def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> tuple[Tensor]:
                hidden = self.model(input_ids, attention_mask=attention_mask, use_cache=use_cache).last_hidden_state
                return (getattr(self, attribute)(hidden),)

        return Published
