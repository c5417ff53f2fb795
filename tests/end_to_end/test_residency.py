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


def large_pages(path):
    """Bytes that inspect says are mapped 2 MiB at a time."""
    return int(re.search(r"large pages +(\d+) bytes", stele("inspect", "--residency", path).exits(0).text).group(1))


@test
def warm_anew_leaves_large_pages_from_the_first_byte_on_where_the_file_system_has_them():
    path = on_disk()
    stele("warm", "--anew", path).exits(0)
    large = large_pages(path)
    print(f"      {large >> 20} of {path.stat().st_size >> 20} MiB")
    assert not large or large > path.stat().st_size * 3 / 4, large


@test
def what_a_run_reads_whole_is_told_to_come_in_large_pages_and_the_rows_of_an_embedding_are_not():
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        return print("      this kernel has no large pages")
    for tied in True, False:
        model = llama(f"told-{tied}", hidden_size=512, intermediate_size=4096, num_hidden_layers=2, vocab_size=4096,
                      tie_word_embeddings=tied)  # fmt: skip
        path = converted(model)
        made = im.ImageFile.read(path)
        begin = made.section(im.WEIGHTS).offset + (0 if tied else 4096 * 512 * 4)
        args = [str(BUILD / "stele"), "run", str(path), "--ids", "1", "--print", "ids"]
        run = subprocess.Popen(args, stdout=subprocess.PIPE)
        try:
            assert os.read(run.stdout.fileno(), 1)
            told, here = [], None
            for line in Path(f"/proc/{run.pid}/smaps").read_text().splitlines():
                head = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ \S+\s*(.*)", line)
                if head:
                    a, b, mode, at = int(head[1], 16), int(head[2], 16), head[3], int(head[4], 16)
                    here = (at, at + b - a, mode) if head[5] == str(path) else None
                elif here and line.startswith("VmFlags:") and "hg" in line.split():
                    told.append(here)
        finally:
            run.kill()
            run.wait()
        assert len(told) == 1 and told[0][2] == "r--s", told
        assert told[0][0] == begin // 4096 * 4096 and told[0][1] >= made.section(im.DIGESTS).offset, (told, begin)


@test
def a_thread_reads_ahead_of_the_first_token_where_an_image_is_not_in_memory_and_only_there():
    path, report = on_disk(), SCRATCH / "report"
    watch = SCRATCH / "watch_start"
    call([os.environ.get("CC", "gcc"), "-O2", "-o", watch, ROOT / "tests" / "laws" / "watch_start.c"]).exits(0)

    def calls(n):
        run = ["run", path, "--ids", "1", "-n", n, "--print", "ids", "--threads", "1"]
        call([watch, report, BUILD / "stele", *run]).exits(0)
        lines = [line.split() for line in report.read_text().splitlines() if line[0].isdigit()]
        return {int(number): int(count) for number, count in lines}

    clone, clone3 = 220 if os.uname().machine == "aarch64" else 56, 435
    threads = lambda counts: counts.get(clone, 0) + counts.get(clone3, 0)
    stele("warm", path).exits(0)
    warm = [calls(n) for n in (0, 1, 9)]
    assert [threads(c) for c in warm] == [0, 0, 0], warm
    if dropped(path):
        assert threads(calls(1)) in (1, 2)  # the head may have come in already
        assert resident(path) >= path.stat().st_size * 0.9


@test
def eight_runs_that_begin_at_once_on_a_cold_image_read_it_from_the_disk_once():
    path = on_disk()
    if not dropped(path):
        return print("      this file system does not drop pages")
    args = [str(BUILD / "stele"), "run", str(path), "--ids", "1", "-n", "1", "--print", "ids", "--threads", "1"]
    runs = [subprocess.Popen(args, stdout=subprocess.DEVNULL) for _ in range(8)]
    read = 0
    for r in runs:
        _, status, usage = os.wait4(r.pid, 0)
        r.returncode = os.waitstatus_to_exitcode(status)
        assert r.returncode == 0
        read += usage.ru_inblock * 512
    size = path.stat().st_size
    print(f"      {read >> 20} MiB read of {size >> 20}")
    assert read <= size * 1.05 + (1 << 20), (read, size)


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
