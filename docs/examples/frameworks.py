"""A tiny GPT-2, a tiny ViT and a small ResNet as Hugging Face and timm build them, with random weights."""

from collections.abc import Callable, Iterator

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

import bnsmooth_cli as bns

Norm = Callable[[int], nn.Module]


def texts(count: int) -> dict[str, Tensor]:
    """Tokens that count upwards in steps of 1 to 4, as inputs and as labels."""
    start, step = torch.randint(64, (count, 1)), torch.randint(1, 5, (count, 1))
    ids = (start + step * torch.arange(16)) % 64
    return {"input_ids": ids, "labels": ids}


def gpt2(norm: Norm) -> bns.Workload:
    """GPT-2 with its own LayerNorm and without dropout. The model computes its loss."""
    off = {"attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0}
    tokens = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(n_positions=16, n_embd=32, n_layer=2, n_head=2, **tokens, **off)
    return bns.Workload(GPT2LMHeadModel(config), lambda outputs, labels: outputs.loss, texts(1000), texts(200))


def images(count: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright column, whose position is the class."""
    x, y = torch.randn(count, 3, 16, 16), torch.randint(10, (count,))
    x[torch.arange(count), :, :, y] += 2
    return x, y


class Logits(nn.Module):
    """A Hugging Face model that gives its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        return self.model(*inputs, **named).logits


def vit(norm: Norm) -> bns.Workload:
    """A vision transformer with a loss of its logits."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=10, **size))
    return bns.Workload(Logits(model), F.cross_entropy, images(1000), images(200))


def resnet(norm: Norm) -> bns.Workload:
    """timm's ResNet with the run's norm, and the DataLoaders of a training script."""
    model = timm.create_model("resnet10t", num_classes=10, channels=(8, 16, 16, 32), norm_layer=norm)
    loaders = [DataLoader(TensorDataset(*images(count)), batch_size=64, shuffle=True) for count in (1000, 200)]
    return bns.Workload(model, F.cross_entropy, *loaders)


class Stream(IterableDataset):
    """Images without an end."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from zip(*images(64), strict=True)


def stream(norm: Norm) -> bns.Workload:
    """timm's vision transformer on a stream of images."""
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **size)
    return bns.Workload(model, F.cross_entropy, Stream(), images(200))
