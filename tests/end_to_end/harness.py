# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end scripts share: a test is a function whose name is the sentence that it proves.

    from harness import *

    @test
    def a_prompt_of_ids_needs_no_tokenizer():
        r = stele("run", image("stories260K"), "--ids", "1", "-n", "1")
        r.exits(0)

    finish()

`stele()` calls the command as a user does. `image()` converts a model once and keeps it in the build folder's scratch.
Tests on ../shared (STELE_TEST_DATA) are marked by @test(needs=data("models/stories260K")) and counted as skipped
without it. The last line is `N passed, N failed, N skipped`."""
import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("STELE_BUILD", ROOT / "build"))
DATA = Path(os.environ.get("STELE_TEST_DATA", ROOT.parent / "shared"))
DEMO = ROOT / "scripts" / "demo-model" / "checkpoint"
SCRATCH = Path(tempfile.mkdtemp(prefix="stele-test-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)

passed, failed, skipped = 0, 0, 0
only = sys.argv[1:]  # names of tests; none: all


class Result:
    """What a call of the command gave."""

    def __init__(self, args, code, out, err):
        self.args, self.code, self.out, self.err = args, code, out, err
        self.text = out.decode("utf-8", "surrogateescape")
        self.error = err.decode("utf-8", "surrogateescape")

    def exits(self, code, *says):
        """Asserts the exit code, and that stderr is one sentence with these parts where the code is not 0."""
        assert self.code == code, f"exit {self.code} instead of {code}: {self.args}\n{self.error[-2000:]}"
        for part in says:
            assert part in self.error, f"stderr does not say {part!r}: {self.error!r}"
        if code:
            assert self.error.strip(), "an error without a sentence"
        return self

    @property
    def ids(self):
        return [int(i) for i in self.text.split()]

    @property
    def stats(self):
        return json.loads(self.error.strip().splitlines()[-1])


def call(args, stdin=b"", env=None, timeout=600, **kwargs):
    """Runs a program with standard input from bytes (None: a closed one), for `timeout` seconds at most."""
    full = dict(os.environ, LC_ALL="C", **(env or {}))
    p = subprocess.run([str(a) for a in args], input=stdin, capture_output=True, env=full, timeout=timeout, **kwargs)
    return Result(args, p.returncode, p.stdout, p.stderr)


def stele(*args, stdin=b"", env=None, **kwargs):
    return call([BUILD / "stele", *args], stdin, env, **kwargs)


def data(path):
    """A file or folder of the test data that is not part of this repository."""
    return DATA / path


_images = {}
_converting = threading.Lock()


def image(source, weights="f32"):
    """The image of a model: a folder of ../shared/models by name, or a path; weights None: in the source's types. Converted
    once a script."""
    folder = source if isinstance(source, Path) else DATA / "models" / source
    key = (str(folder), weights)
    with _converting:
        if key not in _images:
            target = SCRATCH / f"{folder.name}-{len(_images)}.{weights}.stele"
            stele("convert", folder, "-o", target, *(["--weights", weights] if weights else [])).exits(0)
            _images[key] = target
    return _images[key]


def forget_images():
    """Removes what image() made, where the next ones need the room."""
    while _images:
        _images.popitem()[1].unlink()


_counting = threading.Lock()
_beside = []  # threads of tests that wait


def _judge(f):
    """Runs the test and counts it."""
    global passed, failed
    name, begin = f.__name__.replace("_", " "), time.monotonic()
    try:
        f()
        wrong = None
    except Exception:  # noqa: BLE001 - a failing test of any kind
        wrong = traceback.format_exc(limit=-2)[-1500:]
    took = time.monotonic() - begin
    note = f"  ({took:.1f} s)" if took > 0.5 else ""
    with _counting:
        if wrong:
            failed += 1
            print(f"FAIL  {name}{note}\n{wrong}", flush=True)
        else:
            passed += 1
            print(f"ok    {name}{note}", flush=True)


def test(function=None, *, needs=None, waits=False):
    """Runs the function at once and counts it; one that waits for servers more than it computes runs beside those that
    follow it, which must not mind."""

    def run(f):
        global skipped
        if only and f.__name__ not in only:
            return f
        missing = [n for n in (needs if isinstance(needs, (list, tuple)) else [needs]) if n and not n.exists()]
        if missing:
            skipped += 1
            print(f"skip  {f.__name__.replace('_', ' ')}  (no {missing[0].name})")
        elif waits:
            _beside.append(threading.Thread(target=_judge, args=(f,), daemon=True))
            _beside[-1].start()
        else:
            _judge(f)
        return f

    return run(function) if function else run


def finish():
    for thread in _beside:
        thread.join()
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0)
