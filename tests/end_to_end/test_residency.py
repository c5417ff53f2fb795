#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What of an image is in memory: `stele warm` brings it there, `stele inspect --residency` shows it and reads nothing."""
import re
import tempfile

import imagefile as im
from harness import *
from workshop import *


def on_disk():
    """An image of 60 MB on a disk file system, where the page cache can be dropped."""
    folder = BUILD / "test-scratch" / "residency"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "x.stele"
    model = llama("resident", hidden_size=512, intermediate_size=4096, num_hidden_layers=2, vocab_size=4096)
    stele("convert", model, "-o", path, "--weights", "f32", "-f").exits(0)
    return path


def dropped(path):
    """Drops the file from the page cache; False where the file system keeps it."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident(path) < path.stat().st_size / 2


def resident(path):
    """Bytes that inspect says are in memory."""
    found, of = re.search(r"in memory +(\d+) of (\d+) bytes", stele("inspect", "--residency", path).exits(0).text).groups()
    assert int(of) == path.stat().st_size
    return int(found)


@test
def warm_brings_all_of_an_image_into_memory_and_residency_shows_it_without_reading():
    path = on_disk()
    if not dropped(path):
        return print("      this file system does not drop pages")
    # A disk may read 8 MiB ahead of each of the few pages that an image is opened by; the rest is nobody's to touch.
    assert max(resident(path) for _ in range(3)) < path.stat().st_size / 2, "looking at it read it"
    r = stele("warm", path).exits(0)
    assert not r.out and not r.err
    assert resident(path) == path.stat().st_size
    assert dropped(path) and stele("warm", "--anew", path).exits(0) and resident(path) == path.stat().st_size


@test
def residency_draws_each_section_and_tensor():
    path = on_disk()
    stele("warm", path).exits(0)
    text = stele("inspect", "--residency", path).exits(0).text
    for name in ("plan", "weights", "layers.1.down"):
        assert re.search(rf"^ +\d+ 100\.0 %  #{{40}}  {re.escape(name)}$", text, re.M), (name, text)
    size, at = path.stat().st_size, im.ImageFile.read(path).section(im.WEIGHTS).offset
    if not dropped(path):
        return
    with open(path, "rb") as f:
        os.pread(f.fileno(), 1 << 20, at)
    text = stele("inspect", "--residency", path).exits(0).text
    drawn = re.search(r"^ +\d+ +([\d.]+) %  ([#+.]{40})  weights$", text, re.M)
    assert drawn and float(drawn.group(1)) < 100 and drawn.group(2)[0] in "#+" and "." in drawn.group(2), text
    large = int(re.search(r"large pages +(\d+) bytes", text).group(1))
    assert large <= size and large % (2 << 20) == 0


@test
def what_others_own_is_not_told_and_said_so():
    if os.getuid():
        return print("      not root, so nobody else to be")
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        shutil.copy(BUILD / "stele", folder / "stele")
        shutil.copy(on_disk(), folder / "x.stele")
        (folder / "x.stele").chmod(0o644)
        nobody = lambda: os.setuid(65534)
        args = [folder / "stele", "inspect", "--residency", folder / "x.stele"]
        call(args, preexec_fn=nobody).exits(1, "only to who owns or may write the file")
        call([folder / "stele", "warm", folder / "x.stele"], preexec_fn=nobody).exits(0)
    finally:
        shutil.rmtree(folder)


@test
def what_is_no_image_and_contradicting_options_are_refused():
    stele("warm").exits(2, "no IMAGE")
    stele("warm", "--no-such").exits(2, "--no-such")
    stele("warm", SCRATCH / "nothing").exits(1)
    stele("warm", __file__).exits(3)
    stele("inspect", "--residency", "--json", on_disk()).exits(2, "exclude each other")


finish()
