#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""stele pull s3://BUCKET/PREFIX: signatures, conventions and refusals, against OpenStack Swift (test data, tools/s3)."""
import os
import subprocess
import time
import urllib.parse

from harness import *
from imagefile import ImageFile
from servers import S3_TOOL, Store
from workshop import *

MIDDLE = llama("middle", hidden_size=256, intermediate_size=1024, num_hidden_layers=3, num_attention_heads=8, head_dim=32,
               vocab_size=2000, dtype="BF16", tie_word_embeddings=False)
store = Store() if S3_TOOL.exists() else None


def s3_test(function):
    return test(needs=S3_TOOL)(function)


def put(path, file=None):
    """Makes a bucket, or puts a file, by curl."""
    url = store.env["AWS_ENDPOINT_URL"] + "/" + urllib.parse.quote(path)
    r = subprocess.run(["curl", "-sS", "-f", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "tester:testing", "-H",
                        "x-amz-content-sha256: UNSIGNED-PAYLOAD", *(["-T", file] if file else ["-X", "PUT"]), url],
                       capture_output=True, text=True)  # fmt: skip
    assert r.returncode == 0, r.stderr


def upload(folder, prefix):
    for file in sorted(folder.iterdir()):
        put(f"models/{prefix}/{file.name}", file)


def pull(reference, *options, env=None, prefix=(), target=None):
    target = target or fresh("pulled") / "model.stele"
    full = {k: v for k, v in (store.env | (env or {})).items() if v is not None}
    cleared = {k: "" for k in store.env if k not in full}
    r = call([*prefix, BUILD / "stele", "pull", reference, "-o", target, *options], env=full | cleared)
    r.target = target
    return r


def same_identity(pulled, made):
    stele("verify", pulled).exits(0)
    assert ImageFile.read(pulled).identity == ImageFile.read(made).identity


if store:
    put("models")
    upload(DEMO, "some folder/demo")
    upload(MIDDLE, "middle")


@s3_test
def a_checkpoint_in_a_bucket_gives_the_image_of_convert():
    same_identity(pull("s3://models/some folder/demo", "--weights", "q8").exits(0).target, image(DEMO, "q8"))
    same_identity(pull("s3://models/middle/", "--chunk", "256K").exits(0).target, converted(MIDDLE))


@s3_test
def keys_come_from_a_profile_where_the_environment_has_none():
    home = fresh("home")
    (home / ".aws").mkdir()
    (home / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = wrong\naws_secret_access_key=wrong\n\n# a comment\n[ours]\n"
        "aws_access_key_id=tester\naws_secret_access_key = testing\n"
    )
    (home / ".aws" / "config").write_text(f"[profile ours]\nregion = us-east-1\nendpoint_url = {store.env['AWS_ENDPOINT_URL']}\n")
    env = dict.fromkeys(["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"])
    same_identity(pull("s3://models/middle", env=env | {"HOME": str(home), "AWS_PROFILE": "ours"}).exits(0).target, converted(MIDDLE))
    keys = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_ENDPOINT_URL": store.env["AWS_ENDPOINT_URL"]}
    pull("s3://models/middle", env=env | {"HOME": str(home)} | keys).exits(0)
    pull("s3://models/middle", env={"AWS_SESSION_TOKEN": "a-session-of-ours"}).exits(0)


@s3_test
def the_bucket_may_be_a_hosts_name():
    home = fresh("home")
    (home / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    port = store.env["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]
    env = {"AWS_ENDPOINT_URL": f"http://localhost:{port}", "AWS_CONFIG_FILE": str(home / "config")}
    same_identity(pull("s3://models/middle", env=env).exits(0).target, converted(MIDDLE))


@s3_test
def refusals_are_one_sentence_each_without_secrets():
    for reference, env, says, prefix in [
        ("s3://models/middle", {"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, ["SignatureDoesNotMatch", "keys"], []),
        ("s3://models/middle", {"AWS_REGION": "eu-west-1"}, ["AuthorizationHeaderMalformed"], []),
        ("s3://absent/middle", {}, ["NoSuchBucket"], []),
        ("s3://models/absent", {}, ["nothing below this prefix"], []),
        ("s3://models/middle", {"DONT_FAKE_MONOTONIC": "1"}, ["RequestTimeTooSkewed", "clock"], ["faketime", "-f", "-2h"]),
        ("s3://models/middle", {"AWS_ACCESS_KEY_ID": "stranger", "AWS_SECRET_ACCESS_KEY": "strange"}, ["AccessDenied"], []),
    ]:
        if prefix and os.environ.get("STELE_SAN"):
            continue  # two libraries want to be loaded first
        r = pull(reference, env=env, prefix=prefix).exits(6, *says)
        assert r.error.count("\n") == 1 and "wrong-secret" not in r.error and "testing" not in r.error, r.error
        assert os.listdir(r.target.parent) == []


def push(image_path, reference, *options, env=None):
    return call([BUILD / "stele", "push", image_path, reference, *options], env=store.env | (env or {}))


@s3_test
def an_image_is_pushed_and_pulled_again():
    folder = llama("wide", hidden_size=1024, intermediate_size=2048, num_hidden_layers=1, num_attention_heads=8, head_dim=128,
                   num_key_value_heads=8, vocab_size=256)  # 43 MB in f32
    made = converted(folder)
    push(made, "s3://models/images/a b.stele", "--part", "5M").exits(0)
    r = pull("s3://models/images/a b.stele").exits(0)
    assert r.target.read_bytes() == made.read_bytes()
    push(image(DEMO, "q8"), "s3://models/folder/").exits(0)
    assert pull(f"s3://models/folder/{image(DEMO, 'q8').name}").exits(0).target.read_bytes() == image(DEMO, "q8").read_bytes()
    log = store.dir / "log" / "proxy.log"
    slow = ["--part", "5M", "--connections", "1"]
    args = ["push", str(made), "s3://models/again.stele", *slow]
    p = subprocess.Popen(args, executable=BUILD / "stele-pull", env=os.environ | store.env, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    sent_parts = lambda: log.read_text().count("/models/again.stele%3FpartNumber")
    while sent_parts() < 2:
        assert p.poll() is None and time.time() < deadline, "the second part was never sent"
        time.sleep(0.01)
    p.kill()
    p.wait()
    before = sent_parts()
    push(made, "s3://models/again.stele", *slow).exits(0, "going on")
    sent = sent_parts() - before
    assert sent < -(-made.stat().st_size // (5 << 20)), sent
    assert pull("s3://models/again.stele").exits(0).target.read_bytes() == made.read_bytes()


@s3_test
def refusals_of_a_push_are_sentences():
    source = image(DEMO, "q8")
    for args, env, code, says in [
        ([source], {}, 2, "s3://"),
        ([source, "s3://models/x"], {}, 2, ".stele"),
        ([source, "s3://models/x.stele", "--part", "1M"], {}, 2, "--part"),
        ([source, "s3://models/x.stele", "--odd"], {}, 2, "--odd"),
        ([DEMO / "config.json", "s3://models/x.stele"], {}, 3, "not a stele image"),
        (["/nowhere", "s3://models/x.stele"], {}, 1, "/nowhere"),
        ([source, "s3://absent/x.stele"], {}, 6, "NoSuchBucket"),
        ([source, "s3://models/x.stele"], {"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, 6, "SignatureDoesNotMatch"),
    ]:
        r = push(*args, env=env) if len(args) > 1 else call([BUILD / "stele", "push", *args], env=store.env)
        r.exits(code, says)
        assert "wrong-secret" not in r.error and r.error.count("\n") == 1, r.error


finish()
