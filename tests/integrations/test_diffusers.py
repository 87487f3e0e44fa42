"""`load_into` with models of diffusers, as their authors save them: sharded or not, on the meta device or built already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

import modelcache
from modelcache import ModelCache
from modelcache.errors import BadCheckpoint


def transformer() -> Any:
    sizes = {"in_channels": 4, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32}
    return FluxTransformer2DModel(patch_size=1, num_layers=1, num_single_layers=1, axes_dims_rope=[4, 4, 8], **sizes)


def autoencoder() -> Any:
    return AutoencoderKL(block_out_channels=(4,), layers_per_block=1, norm_num_groups=2, latent_channels=4)


def noise(transformer: Any) -> torch.Tensor:
    """What a model predicts for fixed inputs."""
    source = torch.Generator().manual_seed(5)
    image, text = torch.randn(1, 6, 4, generator=source), torch.randn(1, 3, 32, generator=source)
    pooled, step = torch.randn(1, 32, generator=source), torch.tensor([0.5])
    with torch.no_grad():
        found: torch.Tensor = transformer(
            hidden_states=image,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=step,
            img_ids=torch.zeros(6, 3),
            txt_ids=torch.zeros(3, 3),
        ).sample
    return found


def image(autoencoder: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = autoencoder(torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))).sample
    return found


KINDS = {"transformer in shards": (transformer, noise, "40KB"), "autoencoder": (autoencoder, image, "1GB")}


@pytest.mark.parametrize("on_meta", [True, False])
@pytest.mark.parametrize(("build", "run", "shard"), KINDS.values(), ids=KINDS)
def test_a_model_computes_what_the_saved_one_does(
    tmp_path: Path, build: Callable[[], Any], run: Callable[[Any], torch.Tensor], on_meta: bool, shard: str
) -> None:
    torch.manual_seed(1)
    saved = build().eval()
    saved.save_pretrained(tmp_path / "pipeline" / "part", max_shard_size=shard)
    with torch.device("meta" if on_meta else "cpu"):
        model = build().eval()
    with ModelCache(tmp_path / "store") as cache:  # a pipeline's parts are directories of their own
        modelcache.load_into(model, (tmp_path / "pipeline" / "part").as_uri(), cache=cache)
    held = model.state_dict()
    assert all(torch.equal(tensor, held[name]) for name, tensor in saved.state_dict().items())
    torch.testing.assert_close(run(model), run(saved))  # kernels round by where in memory their inputs begin


def test_variants_side_by_side_are_not_mixed(tmp_path: Path) -> None:
    saved = autoencoder()
    saved.save_pretrained(tmp_path)
    saved.half().save_pretrained(tmp_path, variant="fp16")
    model = autoencoder()
    with pytest.raises(BadCheckpoint, match="two shards have a tensor"):
        modelcache.load_into(model, tmp_path)
    modelcache.load_into(model, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert all(torch.equal(tensor, model.state_dict()[name].to(tensor)) for name, tensor in saved.state_dict().items())
