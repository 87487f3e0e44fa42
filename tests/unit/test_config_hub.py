"""Where the hub's settings come from: ours, then huggingface_hub's own variables, then its token file's usual place."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcache.config import Config
from modelcache.errors import BadConfig
from modelcache.sources.huggingface import HubOptions

HOME = {"HOME": "/home/you"}
TOKEN = "hf_abc"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, HubOptions(token_file=None)),
        (HOME, HubOptions(token_file=Path("/home/you/.cache/huggingface/token"))),
        (HOME | {"XDG_CACHE_HOME": "/x"}, HubOptions(token_file=Path("/x/huggingface/token"))),
        (HOME | {"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, HubOptions(token_file=Path("/h/token"))),
        (HOME | {"HF_HOME": "/h", "HF_TOKEN_PATH": "/t"}, HubOptions(token_file=Path("/t"))),
        ({"HF_TOKEN_PATH": "/t", "MODELCACHE_HF_TOKEN_FILE": "/o"}, HubOptions(token_file=Path("/o"))),
        ({"HUGGING_FACE_HUB_TOKEN": TOKEN}, HubOptions(token=TOKEN)),
        ({"HF_TOKEN": f"{TOKEN}\n", "HUGGING_FACE_HUB_TOKEN": "old"}, HubOptions(token=TOKEN)),
        ({"MODELCACHE_HF_TOKEN": TOKEN, "HF_TOKEN": "another"}, HubOptions(token=TOKEN)),
        ({"HF_ENDPOINT": "https://mirror/hub/"}, HubOptions(endpoint="https://mirror/hub/")),
        ({"HF_ENDPOINT": "https://mirror", "MODELCACHE_HF_ENDPOINT": "http://ours:1"}, HubOptions(endpoint="http://ours:1")),
        ({"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, HubOptions(anonymous=True)),
        ({"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "MODELCACHE_HF_ANONYMOUS": "false"}, HubOptions()),
        ({"MODELCACHE_HF_CA_FILE": "/ca.pem"}, HubOptions(ca_file=Path("/ca.pem"))),
    ],
)
def test_settings_of_the_hub(environ: dict[str, str], expected: HubOptions) -> None:
    assert Config.load(environ).hf == expected


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELCACHE_HF_TOKEN"])
def test_a_token_that_can_t_be_one_is_not_shown(name: str) -> None:
    with pytest.raises(BadConfig) as caught:
        Config.load({name: "two secrets"})
    assert name in str(caught.value)
    assert "secrets" not in f"{caught.value} {caught.value.as_dict()} {caught.value.__context__!r}"


@pytest.mark.parametrize("endpoint", ["mirror", "https://user:pass@mirror", "ftp://mirror"])
def test_an_endpoint_that_can_t_be_one_is_named_without_its_userinfo(endpoint: str) -> None:
    with pytest.raises(BadConfig) as caught:
        Config.load({"HF_ENDPOINT": endpoint})
    assert "HF_ENDPOINT" in str(caught.value)
    assert "pass" not in f"{caught.value} {caught.value.as_dict()}"
