#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The command as a shell user meets it: every wrong call is one sentence and exit code 2 before any work, stdout is for
the answer, and pipes, signals and full disks end it as they end any Unix tool."""
import pty
import re
import select
import signal
import time

from harness import *
from workshop import *

_bare = llama("bare")  # 64 ids, context 64, no tokenizer
_long = llama("long", hidden_size=256, intermediate_size=640, num_hidden_layers=6, head_dim=64, vocab_size=512,
              max_position_embeddings=4096)  # fmt: skip


def bare():
    return image(_bare)


def text():
    """An image with a tokenizer."""
    return image(TEXT_MODEL)


def ids(*more, n=2, stdin=b"", **kwargs):
    return stele("run", bare(), "--ids", "1 2 3", "-n", n, "--print", "ids", *more, stdin=stdin, **kwargs)


def refused(r, *says):
    """Exit 2, one sentence, nothing on stdout."""
    r.exits(2, *says)
    assert r.out == b"", r.out
    assert len(r.error.strip().splitlines()) == 1, f"not one sentence: {r.error!r}"
    return r


def spawn(args, env=None, **kwargs):
    def defaults():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a parent in the background ignores it
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    return subprocess.Popen([str(a) for a in [BUILD / "stele", *args]], stderr=subprocess.PIPE, preexec_fn=defaults,
                            env=dict(os.environ, LC_ALL="C", **(env or {})), **kwargs)  # fmt: skip


def shell(line, *args, timeout=20):
    """A line of sh, in which "$@" is the command and its arguments."""
    p = subprocess.run(["sh", "-c", line, "sh", *[str(a) for a in [BUILD / "stele", *args]]], capture_output=True,
                       timeout=timeout, stdin=subprocess.DEVNULL)  # fmt: skip
    return Result([line, *args], p.returncode, p.stdout, p.stderr)


# ---- the call ----


@test
def without_a_verb_or_with_an_unknown_one_it_is_2_and_help_goes_to_stderr():
    for args in ([], ["no-such-verb"], ["help", "no-such-verb"]):
        r = stele(*args).exits(2)
        assert r.out == b""


@test
def version_and_help_are_0_and_on_stdout():
    r = stele("--version").exits(0)
    assert re.fullmatch(r"stele \d+\.\d+\.\d+\n", r.text), r.text
    for args in (["help"], ["--help"]):
        assert b"stele run" in stele(*args).exits(0).out
    for verb in ("run", "convert", "tokenize", "logprobs", "inspect", "verify", "warm"):
        r = stele("help", verb).exits(0)
        assert f"stele {verb}" in r.text and not r.err, (verb, r.text, r.error)


@test
def every_option_of_the_issue_stands_in_the_help_of_its_verb():
    options = {
        "run": "-n --ids --raw --temperature --top-k --top-p --min-p --repeat-penalty --seed --stop --threads --cpus --context "
        "--kv --stats --plain --bare --print --chunk --verify --raw-bytes",
        "tokenize": "--bare --decode --plain --skip-special",
        "logprobs": "--top --ids --dump-logits --threads --cpus --context --kv --chunk --verify",
        "inspect": "--plan --tensors --residency --json",
        "warm": "--anew",
        "convert": "-o --weights -f --threads --ignore-key",
    }
    for verb, names in options.items():
        help_text = stele("help", verb).exits(0).text
        missing = [n for n in names.split() if not re.search(rf"(^|[^-\w]){n}\b", help_text)]
        assert not missing, f"help {verb} does not name {missing}"


@test
def unknown_options_are_2_and_named_by_every_verb():
    for verb in ("run", "tokenize", "logprobs", "inspect", "verify", "warm", "convert"):
        for option in ("--no-such-option", "-Z", "--no-such=1"):
            refused(stele(verb, bare(), option), option.split("=")[0])


@test
def a_verb_without_its_operand_or_with_one_too_many_is_2():
    for verb in ("run", "tokenize", "logprobs", "inspect", "verify", "warm", "convert"):
        refused(stele(verb))
    refused(stele("verify", bare(), bare()))
    refused(stele("inspect", bare(), bare()))
    refused(stele("run", bare(), "one", "two", "--ids", "1"))


@test
def values_out_of_range_are_2_and_named():
    wrong = {
        "-n": ["-1", "x", "", "1.5", "1e3", "99999999999999999999999"],
        "--temperature": ["-0.1", "nan", "inf", "x", "", "1e9"],
        "--top-k": ["-1", "x", "4294967296", "1.5"],
        "--top-p": ["-0.1", "1.1", "nan", "x"],
        "--min-p": ["-0.1", "1.1", "nan", "x"],
        "--repeat-penalty": ["0", "-1", "inf", "nan", "x"],
        "--seed": ["-1", "x", "18446744073709551616", "1.0"],
        "--threads": ["0", "-1", "257", "x", "100000000"],
        "--cpus": ["", "x", "-1", "1-", "3-1", "0,,0", "8191", "9999999999"],
        "--context": ["0", "-1", "x", "65", "4294967295", "4294967296"],
        "--chunk": ["0", "-1", "x", "10000000"],
        "--kv": ["f64", "", "F32", "q8"],
        "--print": ["xml", ""],
        "--stop": [""],
    }
    for option, values in wrong.items():
        for value in values:
            r = stele("run", bare(), "--ids", "1", "--print", "ids", *([] if option == "-n" else ["-n", "1"]), option, value)
            refused(r)
            assert option in r.error or value in r.error or option.strip("-") in r.error, (option, value, r.error)
        refused(stele("run", bare(), "--ids", "1", option), option)


@test
def values_at_the_ends_of_their_ranges_are_taken():
    right = {"--temperature": ["0", "100"], "--top-k": ["0", "1", "2147483647"], "--top-p": ["0", "1"], "--min-p": ["0", "1"],
             "--repeat-penalty": ["0.5", "2"], "--seed": ["0", "18446744073709551615"], "--threads": ["1", "256"],
             "--context": ["5", "64"], "--chunk": ["1", "65536"], "--kv": ["f32", "f16"]}  # fmt: skip
    for option, values in right.items():
        for value in values:
            ids(option, value).exits(0)
            ids(f"{option}={value}").exits(0) if option.startswith("--") else None


@test
def cpus_and_the_affinity_mask_decide_how_many_threads_there_are():
    mask = sorted(os.sched_getaffinity(0))
    cpu = str(mask[-1])
    for verb in ("run", "logprobs"):
        stele(verb, bare(), "--cpus", cpu, "--ids", "1 2", *(["--print", "ids", "-n", 1] if verb == "run" else [])).exits(0)
    assert ids("--stats", "--cpus", cpu, n=2).exits(0).stats["threads"] == 1
    assert ids("--stats", "--cpus", f"{cpu},{cpu}-{cpu}", "--threads", 3, n=2).exits(0).stats["threads"] == 3
    confined = lambda: os.sched_setaffinity(0, {mask[0]})
    args = ["run", bare(), "--ids", "1", "--print", "ids", "-n", 1, "--stats"]
    assert stele(*args, preexec_fn=confined).exits(0).stats["threads"] == 1
    if len(mask) > 1:
        refused(stele(*args, "--cpus", cpu, preexec_fn=confined), "may not use CPU")


@test
def ids_that_are_none_are_2_and_named():
    for value in ("x", "1 x", "-1", "1 -2", "1.5", "4294967295", "4294967296", "99999999999999999999", "0x10", "1;2"):
        refused(stele("run", bare(), "--print", "ids", "--ids", value))
    for value in ("", "  "):
        refused(stele("run", bare(), "--print", "ids", "--ids", value))


@test
def an_id_beyond_the_vocabulary_is_2_before_any_work():
    for value, chunk in (("64", 512), ("1 2 64", 512), ("1 2 3 4294967294", 1)):
        r = stele("run", bare(), "--print", "ids", "--ids", value, "--chunk", chunk, "--stats")
        r.exits(2, value.split()[-1], "64")
        assert r.out == b""
        if r.error.strip().endswith("}"):
            assert r.stats["first_op_ms"] is None, "ops ran before the id was refused"
    stele("logprobs", bare(), "--ids", "1 64").exits(2, "64")


@test
def two_prompts_are_2():
    refused(stele("run", bare(), "--ids", "1", "text"))
    refused(stele("run", bare(), "--ids", "1", "-"))


@test
def a_kernel_table_that_is_none_is_2_and_named():
    for name in ("nonsense", "AVX2", "neon" if os.uname().machine == "x86_64" else "avx2"):
        refused(ids(env={"STELE_KERNELS": name}), name)
        stele("logprobs", bare(), "--ids", "1", env={"STELE_KERNELS": name}).exits(2, name)
    ids(env={"STELE_KERNELS": "generic"}).exits(0)


# ---- the context ----


@test
def a_prompt_longer_than_the_context_is_2_before_any_work_and_both_numbers_are_named():
    for prompt, options in (("1 2 3 4 5", ["--context", "4"]), (" ".join(["1"] * 65), [])):
        r = stele("run", bare(), "--ids", prompt, "--print", "ids", "--stats", *options)
        r.exits(2, "4" if options else "64", "5" if options else "65")
        assert r.out == b""
        assert not r.error.strip().endswith("}") or r.stats["first_op_ms"] is None


@test
def a_context_that_fills_ends_with_5_a_sentence_and_the_answer_so_far():
    full = ids("--context", 10, n=1000).exits(5, "context", "10")
    assert len(full.ids) == 7
    assert ids("--context", 10, n=7).exits(0).ids == full.ids
    exact = stele("run", bare(), "--ids", "1 2 3", "--context", 3, "--print", "ids", "-n", 0).exits(0)
    assert exact.out == b""
    none = stele("run", bare(), "--ids", "1 2 3", "--context", 3, "--print", "ids", "-n", 1).exits(5)
    assert none.ids == []
    assert len(stele("run", bare(), "--ids", "1 2 3", "--print", "ids").exits(5).ids) == 61


@test
def a_larger_n_continues_the_same_answer():
    answer = ids(n=60).exits(0).ids
    for n in (1, 2, 17):
        assert ids(n=n).exits(0).ids == answer[:n]


# ---- the prompt ----


@test(needs=TEXT_MODEL)
def the_prompt_is_the_argument_or_standard_input_and_its_bytes_are_taken_as_they_are():
    said = stele("run", text(), "--raw", "-n", 8, "Once upon").exits(0)
    assert stele("run", text(), "--raw", "-n", 8, stdin=b"Once upon").exits(0).out == said.out
    assert stele("run", text(), "--raw", "-n", 8, "-", stdin=b"Once upon").exits(0).out == said.out
    assert stele("tokenize", text(), "-", stdin=b"Once upon\n").ids != stele("tokenize", text(), "Once upon").ids


@test(needs=TEXT_MODEL)
def with_ids_or_an_argument_standard_input_is_not_touched():
    pipe, hold = os.pipe()  # nobody writes, nobody closes
    source = fresh("in") / "in.txt"
    source.write_text("not for you")
    for args in (["--ids", "1"], ["Once"]):
        p = spawn(["run", text(), "--raw", "-n", 1, *args], stdin=pipe, stdout=subprocess.PIPE)
        assert p.wait(timeout=20) == 0, p.stderr.read()
        with open(source) as f:
            p = spawn(["run", text(), "--raw", "-n", 1, *args], stdin=f, stdout=subprocess.PIPE)
            assert p.wait(timeout=20) == 0 and os.lseek(f.fileno(), 0, os.SEEK_CUR) == 0
    os.close(hold)
    os.close(pipe)


@test(needs=TEXT_MODEL)
def on_a_terminal_without_a_prompt_it_is_2_at_once():
    for verb in ("run", "tokenize", "logprobs"):
        ours, theirs = pty.openpty()
        p = spawn([verb, text(), *(["--raw"] if verb == "run" else [])], stdin=theirs, stdout=subprocess.PIPE)
        assert p.wait(timeout=5) == 2, (verb, p.returncode, p.stderr.read())
        assert p.stderr.read().strip() and not p.stdout.read()
        os.close(ours)
        os.close(theirs)


@test(needs=TEXT_MODEL)
def with_standard_input_closed_and_no_prompt_it_is_2_at_once():
    for verb in ("run", "tokenize", "logprobs"):
        r = shell('exec "$@" <&-', verb, text(), *(["--raw", "-n", 1] if verb == "run" else []))
        assert r.code == 2 and r.out == b"" and r.error.strip(), (verb, r.code, r.out, r.error)


@test(needs=TEXT_MODEL)
def a_closed_standard_input_does_not_matter_to_who_does_not_read_it():
    shell('exec "$@" <&-', "run", text(), "--raw", "-n", 1, "Once").exits(0)
    shell('exec "$@" <&-', "run", text(), "--ids", "1", "-n", 1).exits(0)


@test(needs=TEXT_MODEL)
def an_empty_prompt_is_2():
    for args, stdin in ((["", "--bare"], b""), (["--bare"], b""), (["--bare", "-"], b"")):
        refused(stele("run", text(), "--raw", "-n", 1, *args, stdin=stdin))
    shell('exec "$@" </dev/null', "run", text(), "--raw", "-n", 1, "--bare").exits(2)


@test
def text_for_an_image_without_a_tokenizer_is_refused_without_waiting_for_it():
    for verb in ("run", "tokenize", "logprobs"):
        pipe, hold = os.pipe()
        p = spawn([verb, bare()], stdin=pipe, stdout=subprocess.PIPE)
        assert p.wait(timeout=5) in (2, 3), p.returncode
        assert b"--ids" in p.stderr.read() or verb == "tokenize"
        os.close(hold)
        os.close(pipe)
        assert stele(verb, bare(), "hello").code in (2, 3)


@test(needs=TEXT_MODEL)
def text_that_is_no_utf_8_is_3():
    for raw in (b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"):
        for verb in ("run", "tokenize", "logprobs"):
            r = stele(verb, text(), *(["--raw", "-n", "1"] if verb == "run" else []), stdin=raw)
            r.exits(3, "UTF-8")
            assert r.out == b""


@test
def standard_input_that_is_a_folder_is_1():
    shell('exec "$@" </', "run", text(), "--raw", "-n", 1).exits(1, "standard input") if TEXT_MODEL.exists() else None


@test
def a_pipe_or_device_in_the_place_of_an_image_is_refused_without_waiting():
    fifo = fresh("fifo") / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, "/dev/null", "/dev/zero", "/dev/tty"):
        for verb in ("run", "verify"):
            p = spawn([verb, path, *(["--ids", "1"] if verb == "run" else [])], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            try:
                code = p.wait(timeout=5)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
                raise AssertionError(f"{verb} {path}: waits")
            assert code in (1, 3) and p.stderr.read().strip(), (verb, path, code)


# ---- the answer ----


@test(needs=TEXT_MODEL)
def the_answer_alone_is_on_stdout_with_one_newline_at_its_end():
    r = stele("run", text(), "--raw", "-n", 10, "--temperature", 0, "Once upon a time").exits(0)
    assert r.out.endswith(b"\n") and not r.out.endswith(b"\n\n") and not r.out.startswith(b"Once upon a time")
    assert r.err == b"", r.error


@test(needs=TEXT_MODEL)
def n_0_only_computes_the_prompt_and_writes_nothing():
    assert stele("run", text(), "--raw", "-n", 0, "Once upon a time").exits(0).out == b""
    assert ids(n=0).exits(0).out == b""


@test
def ids_alone_need_no_tokenizer_where_no_text_is_written():
    stele("run", bare(), "--ids", "1", "-n", "0").exits(0)


@test(needs=TEXT_MODEL)
def printed_as_json_it_is_one_object_with_the_same_ids_and_text():
    args = ["run", text(), "--raw", "-n", 12, "--temperature", 0, "Once upon a time"]
    found = json.loads(stele(*args, "--print", "json").exits(0).out)
    assert found["ids"] == stele(*args, "--print", "ids").exits(0).ids
    answer = stele(*args).exits(0).text
    assert found["text"] + "\n" == answer or found["text"] == answer


STATS = """first_op_ms first_token_ms exit_ms prefill_tokens prefill_tokens_per_s decode_tokens decode_tokens_per_s
mapped_bytes private_dirty_bytes kv_bytes scratch_bytes minor_faults major_faults threads kernels seed"""


@test
def stats_are_one_flat_object_the_last_line_of_stderr():
    s = ids("--stats", "--threads", 2, "--seed", 7, n=5).exits(0).stats
    assert not set(STATS.split()) - set(s), set(STATS.split()) - set(s)
    assert not any(isinstance(v, (dict, list)) for v in s.values())
    assert (s["threads"], s["seed"], s["prefill_tokens"]) == (2, 7, 3)
    assert s["mapped_bytes"] == bare().stat().st_size
    assert 0 < s["first_op_ms"] <= s["first_token_ms"] <= s["exit_ms"] < 10000
    assert s["decode_tokens"] in (4, 5) and s["private_dirty_bytes"] > 0


@test
def stats_of_an_answer_that_fails_are_written_too():
    s = ids("--stats", "--context", 5, n=50).exits(5).stats
    assert s["first_token_ms"] > 0


@test(needs=TEXT_MODEL)
def a_stop_text_ends_the_answer_and_is_not_written_even_across_tokens():
    args = ["run", text(), "--raw", "-n", 60, "--temperature", 0, "Once upon a time"]
    whole = stele(*args).exits(0).text.rstrip("\n")
    assert len(whole) > 60
    for at, length in ((30, 1), (25, 3), (20, 9), (40, 15), (0, 4)):
        stop = whole[at : at + length]
        cut = whole[: whole.index(stop)]
        got = stele(*args, "--stop", "\x01never\x01", "--stop", stop).exits(0).text
        assert got == cut or got == cut + "\n", (stop, got, cut)
    # The beginning of a stop text that never comes is held back, then written.
    assert stele(*args, "--stop", whole[-3:] + "\x01").exits(0).text.rstrip("\n") == whole
    first = min((whole.index(s), s) for s in (whole[30:33], whole[12:17]))[1]
    assert stele(*args, "--stop", whole[30:33], "--stop", whole[12:17]).exits(0).text.rstrip("\n") == whole[: whole.index(first)].rstrip("\n")


@test(needs=TEXT_MODEL)
def characters_are_never_cut_whatever_is_drawn():
    for seed in range(25):
        args = ["run", text(), "--raw", "-n", 60, "--temperature", 80, "--seed", seed, "Once"]
        p = spawn(args, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        while part := os.read(p.stdout.fileno(), 4096):
            part.decode("utf-8")  # every write is whole
        assert p.wait(timeout=60) == 0, p.stderr.read()


@test
def the_same_seed_repeats_and_another_differs():
    draw = lambda seed: ids("--temperature", 1.5, "--seed", seed, n=30).exits(0).ids
    assert draw(1) == draw(1)
    assert len({tuple(draw(s)) for s in range(8)}) == 8
    assert ids("--temperature", 1.5, n=30).exits(0).ids == draw(0)


# ---- pipes, signals, disks ----


@test
def a_closed_pipe_ends_it_as_it_ends_any_unix_tool():
    ours, theirs = os.pipe()
    os.close(ours)
    p = spawn(["run", bare(), "--ids", "1", "--print", "ids"], stdout=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    assert p.wait(timeout=20) == -signal.SIGPIPE, p.returncode
    assert p.stderr.read() == b""


@test
def head_ends_a_long_answer_at_once():
    r = shell('"$@" | head -c 3', "run", image(_long), "--ids", "1", "--print", "ids").exits(0)
    assert len(r.out) == 3 and r.err == b"", r.error


@test
def interrupted_it_dies_of_the_signal_and_what_was_generated_is_on_stdout():
    args = ["run", image(_long), "--ids", "1 2 3", "--print", "ids", "--threads", 1]
    want = stele(*args, "-n", 200).exits(0).ids
    for how in (signal.SIGINT, signal.SIGTERM):
        p = spawn(args, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env={"STELE_KERNELS": "generic"})
        first = os.read(p.stdout.fileno(), 1)
        time.sleep(0.1)
        assert p.poll() is None
        p.send_signal(how)
        rest, err = p.communicate(timeout=5)
        assert p.returncode in (-how, 128 + how), p.returncode
        got = [int(i) for i in (first + rest).split()]
        assert len(got) > 1 and got[:-1] == want[: len(got) - 1], "what was generated is not there"


@test(needs=Path("/dev/full"))
def a_full_disk_is_1_and_a_sentence():
    calls = [["run", bare(), "--ids", "1", "-n", 3, "--print", "ids"], ["run", bare(), "--ids", "1", "-n", 3, "--print", "json"],
             ["--version"], ["help"], ["help", "run"], ["logprobs", bare(), "--ids", "1 2"], ["inspect", bare()],
             ["inspect", bare(), "--plan"], ["inspect", bare(), "--json"]]  # fmt: skip
    calls += [["tokenize", text(), "Once"], ["run", text(), "--raw", "-n", 3, "Once"]] if TEXT_MODEL.exists() else []
    for args in calls:
        r = shell('exec "$@" >/dev/full', *args)
        assert r.code == 1 and r.error.strip(), (args, r.code, r.error)
    stele("logprobs", bare(), "--ids", "1 2", "--dump-logits", "/dev/full").exits(1)
    stele("logprobs", bare(), "--ids", "1 2", "--dump-logits", "/no/such/folder/file").exits(1, "/no/such/folder")


@test
def a_closed_stdout_is_1_and_the_image_is_not_written_to():
    path, before = bare(), bare().read_bytes()
    r = shell('exec "$@" >&-', "run", path, "--ids", "1", "-n", 3, "--print", "ids")
    assert r.code == 1 and r.error.strip(), (r.code, r.error)
    assert path.read_bytes() == before
    shell('exec "$@" 2>&-', "run", path, "--ids", "1", "-n", 3, "--print", "ids").exits(0)


@test(needs=TEXT_MODEL)
def control_bytes_of_an_answer_are_escaped_on_a_terminal_and_nowhere_else():
    # Bytes of the vocabulary that draw themselves: the loudest way to make a model say ESC is to draw at random.
    def on_terminal(*more):
        ours, theirs = pty.openpty()
        p = spawn(["run", text(), "--raw", "-n", 200, "--temperature", 80, "--seed", 3, *more, "Once"], stdin=subprocess.DEVNULL,
                  stdout=theirs)  # fmt: skip
        os.close(theirs)
        out = b""
        while select.select([ours], [], [], 20)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:
                break
            out += part
        os.close(ours)
        assert p.wait(timeout=20) == 0
        return out.replace(b"\r\n", b"\n")

    plain = on_terminal()
    assert not any(c < 32 and c not in b"\n\t" or c == 127 for c in plain), plain


@test
def names_with_control_bytes_are_escaped_in_sentences():
    folder = fresh("names")
    r = stele("run", folder / "a\x1b[31m\nb", "--ids", "1").exits(1)
    assert b"\x1b" not in r.err and len(r.err.strip().splitlines()) == 1, r.err
    r = stele("verify", folder / "a\x1b[31m\nb")
    assert b"\x1b" not in r.err
    for args in (["run", bare(), "--ids", "\x1b[31m"], ["run", bare(), "--\x1b[31m"], ["\x1b[31m"], ["help", "\x1b[31m"]):
        r = stele(*args).exits(2)
        assert b"\x1b" not in r.err, (args, r.err)


@test
def a_memory_limit_is_1_with_the_bytes_and_a_context_that_fits():
    deep = llama("deep", num_key_value_heads=4, head_dim=64, max_position_embeddings=1 << 20)
    r = shell('ulimit -v 1500000; exec "$@"', "run", image(deep), "--ids", "1", "-n", 1, "--print", "ids", "--threads", 1)
    r.exits(1, "--context")
    fits = re.search(r"--context (\d+)", r.error).group(1)
    shell('ulimit -v 1500000; exec "$@"', "run", image(deep), "--ids", "1", "-n", 1, "--print", "ids", "--threads", 1,
          "--context", fits).exits(0)  # fmt: skip


@test
def options_may_stand_anywhere_and_two_dashes_end_them():
    want = ids(n=4).out
    assert stele("run", "-n", 4, "--print=ids", "--ids=1 2 3", bare()).exits(0).out == want
    assert stele("run", "-n", 4, "--print=ids", "--ids=1 2 3", "--", bare()).exits(0).out == want
    refused(stele("run", bare(), "--stats=1", "--ids", "1"), "--stats")


@test
def top_p_0_keeps_one_and_is_greedy():
    img = image(DEMO)
    texts = {stele("run", img, "The fox", "-n", 20, "--temperature", 2, "--top-p", p, "--seed", s).exits(0).out
             for p in ("0", "1e-50", "1e-9") for s in (1, 2)}  # fmt: skip
    assert texts == {stele("run", img, "The fox", "-n", 20, "--temperature", 0).exits(0).out}


@test
def the_order_of_stop_texts_changes_nothing():
    img = image(DEMO)
    want = stele("run", img, "The fox", "-n", 30, "--stop", "mouse were good friends and zz", "--stop", "mouse").exits(0)
    got = stele("run", img, "The fox", "-n", 30, "--stop", "mouse", "--stop", "mouse were good friends and zz").exits(0)
    assert want.out == got.out and b"mouse" not in want.out, (want.out, got.out)


@test
def what_is_wrong_with_the_call_is_said_before_standard_input_is_read():
    read, write = os.pipe()  # a pipe that nobody writes to
    try:
        p = subprocess.run([BUILD / "stele", "run", image(DEMO), "--context", "999999", "-"], stdin=read,
                           capture_output=True, timeout=20)  # fmt: skip
        assert p.returncode == 2, p
    finally:
        os.close(read)
        os.close(write)


@test
def a_sentence_names_the_range_that_is_taken():
    refused(stele("run", bare(), "--seed", "18446744073709551616"), "from 0 to 18446744073709551615,")
    refused(stele("run", bare(), "-n", "9000000000000001"), "from 0 to 9000000000000000,")


@test
def a_dump_through_a_link_goes_to_what_it_names_and_a_link_to_nothing_is_refused():
    folder = fresh("links")
    (folder / "there").write_bytes(b"old")
    for name in ("there", "nothing"):
        (folder / f"to-{name}").symlink_to(name)
    stele("logprobs", bare(), "--ids", "1 2", "--dump-logits", folder / "to-there").exits(0)
    assert (folder / "to-there").is_symlink() and (folder / "there").stat().st_size == 2 * 4 * 64
    refused(stele("logprobs", bare(), "--ids", "1 2", "--dump-logits", folder / "to-nothing"), "a symbolic link to nothing")
    assert (folder / "to-nothing").is_symlink() and not (folder / "nothing").exists()


@test
def every_verb_has_help():
    for verb in ("run", "tokenize", "logprobs", "inspect", "verify", "perplexity", "kld", "convert", "compare", "sizes"):
        a, b = stele("help", verb).exits(0), stele(verb, "--help").exits(0)
        assert a.out == b.out and a.out.startswith(b"usage: stele " + verb.encode()), verb


@test
def an_image_cut_within_its_header_is_damaged():
    whole = image(DEMO).read_bytes()
    for n in (8, 100, 5000, 8191):
        cut = SCRATCH / "cut.stele"
        cut.write_bytes(whole[:n])
        stele("verify", cut).exits(4, "cut short")


finish()
