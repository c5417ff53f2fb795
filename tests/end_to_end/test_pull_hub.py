#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""stele pull hf:ORG/NAME: the hub's conventions, its digests and its faults, against nginx with the answers that the real
hub and its content network give (test data, tools/hub)."""
import functools
import json
import os
import shutil

from harness import *
from imagefile import PROVENANCE, ImageFile
from servers import HUB_TOOL, Hub, scratch
from workshop import *

ROOT_FOLDER = scratch("hub-root")
MIDDLE = llama("middle", hidden_size=256, intermediate_size=1024, num_hidden_layers=3, num_attention_heads=8, head_dim=32,
               vocab_size=2000, dtype="BF16", tie_word_embeddings=False)
for _name, _source in {"org/demo": DEMO, "org/demo@v1": DEMO, "org/middle": MIDDLE, "org/templates": DEMO}.items():
    shutil.copytree(_source, ROOT_FOLDER / _name)
(ROOT_FOLDER / "org/demo@v1/generation_config.json").write_text('{"eos_token_id": 3}')

(ROOT_FOLDER / "org/templates/additional_chat_templates").mkdir()
(ROOT_FOLDER / "org/templates/additional_chat_templates/brief.jinja").write_text("{{ messages[0].content }}!")
(ROOT_FOLDER / "org/templates/additional_chat_templates/.hidden").write_text("x")


def hub_test(function=None, waits=False):
    mark = test(needs=HUB_TOOL, waits=waits)
    return mark(function) if function else mark


@functools.cache
def plain_hub():
    """The hub of tests that want nothing of it."""
    return Hub(ROOT_FOLDER)


def pull(hub, reference, *options, env=None, target=None):
    target = target or fresh("pulled") / "model.stele"
    r = stele("pull", reference, "-o", target, *options, env=hub.env | (env or {}))
    r.target = target
    return r


def same_identity(pulled, made):
    stele("verify", pulled).exits(0)
    assert ImageFile.read(pulled).identity == ImageFile.read(made).identity


def provenance(path):
    return json.loads(ImageFile.read(path).section(PROVENANCE).raw)


def nothing_left(target):
    assert os.listdir(target.parent) == [], os.listdir(target.parent)


@hub_test
def a_model_of_the_hub_is_pinned_to_its_commit_and_digests_are_recorded():
    hub = plain_hub()
    hub.requests()
    r = pull(hub, "hf:org/demo", "--weights", "q8").exits(0)
    same_identity(r.target, image(DEMO, "q8"))
    p = provenance(r.target)
    assert p["source"]["reference"] == "hf:org/demo" and len(p["source"]["revision"]) == 40
    assert len(next(f for f in p["files"] if f["name"] == "model.safetensors")["sha256"]) == 64
    asked = [q["uri"] for q in hub.requests() if q["role"] == "resolve"]
    assert asked and all(f"/resolve/{p['source']['revision']}/" in uri for uri in asked), asked
    other = pull(hub, "hf:org/demo@v1").exits(0)
    assert provenance(other.target)["source"]["revision"] != p["source"]["revision"]
    same_identity(other.target, converted(ROOT_FOLDER / "org/demo@v1"))


@hub_test
def templates_beside_the_chat_template_come_with_it():
    hub = plain_hub()
    r = pull(hub, "hf:org/templates", "--weights", "q8").exits(0)
    same_identity(r.target, converted(ROOT_FOLDER / "org/templates", "--weights", "q8"))
    assert ImageFile.read(r.target).identity != ImageFile.read(image(DEMO, "q8")).identity
    assert os.listdir(r.target.parent) == ["model.stele"]


@hub_test
def the_file_is_asked_for_once_and_its_network_address_is_kept():
    hub = plain_hub()
    hub.requests()
    pull(hub, "hf:org/middle", "--chunk", "256K").exits(0)
    resolved = [q for q in hub.requests() if q["role"] == "resolve" and "model.safetensors" in q["uri"]]
    assert len(resolved) == 1, resolved


@hub_test(waits=True)
def an_address_that_expires_is_asked_for_again():
    hub = Hub(ROOT_FOLDER, "--cdn-ttl", "1", "--rate", "1M")
    r = pull(hub, "hf:org/middle", "--chunk", "256K", "--connections", "1").exits(0)
    same_identity(r.target, image(MIDDLE, None))
    hub.stop()


@hub_test
def tokens_come_from_the_environment_or_the_file_and_go_to_the_hub_only():
    hub = Hub(ROOT_FOLDER, "--token", "hf_sesame", "--stranger-token", "hf_other", "--gated", "org/middle")
    home = scratch("tokens")
    (home / "token").write_text("hf_sesame\n")
    for env in [{"HF_TOKEN": "hf_sesame"}, {"HF_HOME": str(home), "HF_TOKEN": ""}, {"HF_TOKEN_PATH": str(home / "token")}]:
        r = pull(hub, "hf:org/demo", env=env).exits(0)
        assert b"hf_sesame" not in r.target.read_bytes() + r.err
    log = hub.requests()
    assert any(q["auth"] for q in log if q["role"] == "api")
    assert any(q["role"] == "cdn" for q in log) and not any(q["auth"] for q in log if q["role"] == "cdn")
    for reference, env, says in [
        ("hf:org/demo", {}, ["401", "HF_TOKEN, or"]),
        ("hf:org/demo", {"HF_TOKEN": "hf_wrong"}, ["401", "may not read"]),
        ("hf:org/absent", {"HF_TOKEN": "hf_sesame"}, ["404", "Repository not found"]),
        ("hf:org/demo@absent", {"HF_TOKEN": "hf_sesame"}, ["404", "Invalid rev id"]),
        ("hf:org/middle", {"HF_TOKEN": "hf_other"}, ["403", "restricted", "may not read"]),
    ]:
        r = pull(hub, reference, env=env).exits(6, *says)
        assert "hf_wrong" not in r.error and "hf_other" not in r.error and r.error.count("\n") == 1, r.error
        nothing_left(r.target)
    pull(hub, "hf:org/demo", env={"HF_TOKEN": "a\tb\x01"}).exits(6, "401")
    pull(hub, "hf:org/demo", env={"HF_TOKEN": "a\x01"}).exits(2, "token")
    hub.stop()


@hub_test(waits=True)
def a_byte_flipped_on_the_way_is_caught_and_leaves_nothing():
    hub = Hub(ROOT_FOLDER, "--fault", "corrupt,on=cdn,every=5")
    r = pull(hub, "hf:org/middle", "--chunk", "256K").exits(4, "model.safetensors", "SHA-256", "states")
    nothing_left(r.target)
    hub.stop()


for fault in ["corrupt,on=small,path=*tokenizer.json", "truncate,on=small,path=*config.json"]:

    @hub_test(waits=True)
    def small_files_are_checked_too(fault=fault):
        hub = Hub(ROOT_FOLDER, "--fault", fault)
        r = pull(hub, "hf:org/demo", "--timeout", "2")
        assert r.code in (4, 6), (r.code, r.error)
        r.exits(r.code, "json")
        nothing_left(r.target)
        hub.stop()


for faults in [
    ["cut,every=3"],
    ["truncate,every=4"],
    ["503,every=3", "429,every=7,retry-after=1"],
    ["no-range,on=cdn,after=2,every=4"],
    ["stall,on=cdn,after=1,first=2"],
]:

    @hub_test(waits=True)
    def faults_that_pass_cost_retries_and_not_a_byte(faults=faults):
        hub = Hub(ROOT_FOLDER, *[x for f in faults for x in ("--fault", f)])
        r = pull(hub, "hf:org/middle", "--chunk", "256K", "--timeout", "2", "--stats").exits(0)
        same_identity(r.target, image(MIDDLE, None))
        assert r.stats["retries"] > 0, (faults, r.stats)
        hub.stop()


@hub_test(waits=True)
def faults_that_stay_are_a_sentence_and_what_came_is_kept():
    hub = Hub(ROOT_FOLDER, "--fault", "503,on=cdn,after=12")
    r = pull(hub, "hf:org/middle", "--chunk", "256K", "--connections", "2").exits(6, "503", "is kept")
    hub.stop()
    hub = Hub(ROOT_FOLDER)
    r = pull(hub, "hf:org/middle", "--stats", target=r.target).exits(0, "going on")
    assert r.stats["resumed_bytes"] > 0
    same_identity(r.target, image(MIDDLE, None))
    hub.stop()


@hub_test
def a_snapshot_in_the_hubs_cache_is_used_and_not_touched():
    hub = plain_hub()
    revision = provenance(pull(hub, "hf:org/demo").exits(0).target)["source"]["revision"]
    cache = scratch("cache")
    snapshot = cache / "models--org--demo" / "snapshots" / revision
    shutil.copytree(DEMO, snapshot)
    (cache / "models--org--demo" / "refs").mkdir()
    (cache / "models--org--demo" / "refs" / "main").write_text(revision)
    before = sorted(os.listdir(snapshot))
    env = {"HF_HUB_CACHE": str(cache)}
    for offline in ["", "1"]:
        r = pull(hub, "hf:org/demo", "--weights", "q8", env=env | {"HF_HUB_OFFLINE": offline}).exits(0)
        same_identity(r.target, image(DEMO, "q8"))
        assert provenance(r.target)["source"] == {"reference": "hf:org/demo", "revision": revision}
    assert sorted(os.listdir(snapshot)) == before
    pull(hub, "hf:org/middle", env=env | {"HF_HUB_OFFLINE": "1"}).exits(6, "HF_HUB_OFFLINE", "cache")
    (snapshot / "tokenizer.json").unlink()  # not whole: fetched, since the hub says what there is
    r = pull(hub, "hf:org/demo", "--weights", "q8", env=env).exits(0)
    same_identity(r.target, image(DEMO, "q8"))


@hub_test(waits=True)
def tls_and_http_2():
    hub = Hub(ROOT_FOLDER, "--tls", "--http2")
    same_identity(pull(hub, "hf:org/demo", env={"CURL_CA_BUNDLE": hub.exported["HUB_CA"]}).exits(0).target, image(DEMO, None))
    pull(hub, "hf:org/demo", env={"CURL_CA_BUNDLE": "/dev/null"}).exits(6, "ertificate")
    hub.stop()


finish()
