#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""stele pull s3://BUCKET/PREFIX: signatures, conventions and refusals, against OpenStack Swift (test data, tools/s3)."""
import os
import subprocess
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
        r = pull(reference, env=env, prefix=prefix).exits(6, *says)
        assert r.error.count("\n") == 1 and "wrong-secret" not in r.error and "testing" not in r.error, r.error
        assert os.listdir(r.target.parent) == []


finish()
