#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The library as another program meets it: installed into a folder of its own, found by pkg-config, used from C, C++ and
Python. What it answers is what the command answers; what it exports is what stele.h says, and the command uses no more."""
import ctypes
import re
import shlex
import shutil

from harness import *
from workshop import *

SAN = os.environ.get("STELE_SAN", "")
CC = os.environ.get("CC", "gcc")
EXAMPLES = ROOT / "examples"
DEST, PREFIX = SCRATCH / "destination", Path("/opt/own")
HERE = DEST / PREFIX.relative_to("/")
STRICT = ["-O2", "-Wall", "-Wextra", "-pedantic", "-Werror", *([f"-fsanitize={SAN}"] if SAN else [])]
HEADER = (ROOT / "runtime" / "stele.h").read_text()
DECLARED = set(re.findall(r"STELE_API [^;]*?\b(stele_\w+)\(", HEADER + (ROOT / "image" / "error.h").read_text()))
SURFACE = re.search(r"#define STELE_SURFACE (\d+)", HEADER)[1]
COMMAND = sorted(p for p in (ROOT / "runtime").glob("*.c")
                 if re.fullmatch(r"(stele|cmd|cmd_\w+|guard|stats|windows|stele-\w+)\.c", p.name))  # fmt: skip

call(["make", "-s", "-C", ROOT, "install", f"B={os.path.relpath(BUILD, ROOT)}", f"SAN={SAN}", f"DESTDIR={DEST}",
      f"PREFIX={PREFIX}"], env={"MAKEFLAGS": ""}).exits(0)  # fmt: skip


def flags(*options):
    r = call(["pkg-config", *options, "stele"], env={"PKG_CONFIG_LIBDIR": str(HERE / "lib" / "pkgconfig"),
                                                     "PKG_CONFIG_SYSROOT_DIR": str(DEST)})  # fmt: skip
    return shlex.split(r.exits(0).text)


def compiled(source, name, *libraries, strict=STRICT):
    target = SCRATCH / name
    call([CC, *strict, source, "-o", target, *flags("--cflags"), *libraries]).exits(0)
    return target


def shared(source):
    return compiled(source, f"{source.stem}-shared", "-pthread", *flags("--libs"))


def run(*args):
    """With the installed library, which no folder of the system has."""
    return call(args, env={"LD_LIBRARY_PATH": str(HERE / "lib")})


def symbols(*args):
    return {line.split()[2] for line in call(["nm", *args]).exits(0).text.splitlines() if len(line.split()) == 3}


_chat = fresh("chat")
shutil.copytree(DEMO, _chat, dirs_exist_ok=True)
TEMPLATE = "{% for m in messages %}One day, {{ m.content }}{% endfor %}{% if add_generation_prompt %} he{% endif %}"
edit_json(_chat / "tokenizer_config.json", lambda c: c.update(chat_template=TEMPLATE))

# ---- what it shows ----


@test
def the_command_includes_the_public_headers_and_its_own_alone():
    own = {p.name for p in (ROOT / "runtime").glob("cmd*.h")} | {"guard.h", "stats.h", "windows.h", "stele.h", "error.h"}
    own.add("descriptors.h")  # of every program, and no part of the library
    assert len(COMMAND) > 15
    for path in [*COMMAND, *[ROOT / "runtime" / name for name in own if (ROOT / "runtime" / name).exists()]]:
        inner = set(re.findall(r'#include "([^"]+)"', path.read_text())) - own
        assert not inner, f"{path.name} includes {inner}"


@test
def the_command_linked_with_the_shared_library_is_the_command():
    for main in ("stele", "stele-compare"):
        parts = [p for p in COMMAND if p.stem == main or not p.stem.startswith("stele")]
        objects = [BUILD / "runtime" / f"{p.stem}.o" for p in parts] + [BUILD / "image" / "descriptors.o"]
        call([CC, *STRICT, "-Wl,-z,defs", "-o", SCRATCH / main, *objects, "-pthread", *flags("--libs"), "-lm",
              *(["-ljansson"] if main == "stele-compare" else [])]).exits(0)  # fmt: skip
    needed = call(["readelf", "-d", SCRATCH / "stele"]).exits(0).text
    assert f"libstele.so.{SURFACE}" in needed, needed
    for args in (["run", image(DEMO), "-n", "20", "One day,"], ["inspect", image(DEMO), "--json"],
                 ["logprobs", image(DEMO), "--top", "3", "One day, Ben lost"]):  # fmt: skip
        assert run(SCRATCH / "stele", *args).exits(0).out == stele(*args).exits(0).out, args


@test
def the_shared_and_the_static_library_export_what_the_headers_declare_and_nothing_else():
    assert len(DECLARED) > 25
    library = HERE / "lib" / f"libstele.so.{SURFACE}"
    assert f"soname: [libstele.so.{SURFACE}]" in call(["readelf", "-d", library]).exits(0).text
    assert (HERE / "lib" / "libstele.so").resolve() == library.resolve()
    exported = symbols("-D", "--defined-only", library)
    assert exported == DECLARED, exported ^ DECLARED
    static = {s for s in symbols("-g", "--defined-only", HERE / "lib" / "libstele.a") if not s.startswith("__odr_asan")}
    assert static == DECLARED, static ^ DECLARED


@test
def nothing_of_surface_1_is_gone_and_no_struct_of_it_has_grown():
    functions = """stele_branch stele_confine stele_default_sampling stele_detokenize stele_fail stele_generate
        stele_has_template stele_has_text stele_image_arrive stele_image_close stele_image_describe stele_image_fault stele_image_info stele_image_name
        stele_image_open stele_image_unchanged stele_image_verify stele_image_verify_watched stele_image_warm
        stele_keep stele_logits stele_logprobs stele_render stele_rendered_free stele_score stele_session_close stele_session_info
        stele_session_open stele_step stele_stop_ids stele_surface_version stele_token_text stele_tokenize
        stele_tokenize_rendered stele_top stele_version""".split()
    assert SURFACE == "1" and set(functions) <= DECLARED, set(functions) - DECLARED
    sizes = dict(stele_error=1028, stele_image_info=144, stele_damage=40, stele_options=80, stele_slice=24,
                 stele_session_info=120, stele_branch_ids=24, stele_item=32, stele_chat=120, stele_rendered=48,
                 stele_sampling=48, stele_generation=168, stele_result=80, stele_gpu=864)  # fmt: skip
    named = set(re.findall(r"^struct (stele_\w+)", HEADER, re.M)) | {"stele_error"}
    assert set(sizes) | {"stele_image", "stele_session"} == named, named ^ set(sizes)
    source = SCRATCH / "sizes.c"
    prints = "".join(f'    printf("{name}=%zu\\n", sizeof(struct {name}));\n' for name in sizes)
    source.write_text(f"#include <stdio.h>\n#include <stele.h>\nint main(void)\n{{\n{prints}    return 0;\n}}\n")
    found = dict(line.split("=") for line in run(shared(source)).exits(0).text.split())
    assert found == {name: str(n) for name, n in sizes.items()}, found


@test
def the_headers_compile_alone_as_c_and_as_cxx():
    for name in ("stele.h", "error.h"):
        for compiler, standard in ((CC, "c99"), (CC, "c11"), ("g++", "c++11"), ("g++", "c++20")):
            source = SCRATCH / "alone.c"
            source.write_text(f"#include <{name}>\n#include <{name}>\n")
            call([compiler, "-x", "c++" if "+" in standard else "c", f"-std={standard}", *STRICT, *flags("--cflags"), "-c", source, "-o",
                  SCRATCH / "alone.o"]).exits(0)  # fmt: skip
    source = SCRATCH / "cxx.cc"
    source.write_text("#include <stele.h>\n#include <cstdio>\nint main() { std::puts(stele_version()); "
                      "return stele_surface_version() != STELE_SURFACE; }\n")  # fmt: skip
    call(["g++", *STRICT, source, "-o", SCRATCH / "cxx", *flags("--cflags", "--libs")]).exits(0)
    assert f"stele {run(SCRATCH / 'cxx').exits(0).text}" == stele("--version").text


# ---- what is installed ----


@test
def install_puts_programs_library_headers_pkg_config_file_and_manual_page():
    files = {str(p.relative_to(HERE)) for p in HERE.rglob("*") if not p.is_dir()}
    programs = {f"libexec/stele/{p.name}" for p in BUILD.glob("stele-*")}
    assert len(programs) > 3
    files -= {"libexec/stele/libstele-cuda.so"}  # which is there where `make cuda` was called
    assert files == {"bin/stele", *programs, "lib/libstele.a", "lib/libstele.so", f"lib/libstele.so.{SURFACE}",
                     "lib/pkgconfig/stele.pc", "include/stele/stele.h", "include/stele/error.h",
                     "share/man/man1/stele.1"}, files  # fmt: skip
    assert flags("--modversion")[0] == stele("--version").text.split()[1]
    assert f"-I{HERE}/include/stele" in flags("--cflags")
    pc = (HERE / "lib" / "pkgconfig" / "stele.pc").read_text()
    assert str(DEST) not in pc and f"prefix={PREFIX}\n" in pc, pc


@test
def the_installed_command_finds_its_programs_and_its_manual_says_what_help_says():
    command = HERE / "bin" / "stele"
    call([command, "convert", DEMO, "-o", SCRATCH / "installed.stele"]).exits(0)
    assert (SCRATCH / "installed.stele").read_bytes() == image(DEMO, None).read_bytes()
    manual = (HERE / "share" / "man" / "man1" / "stele.1").read_text()
    manual = manual.replace("\\-", "-").replace("\\e", "\\").replace("\\&", "")
    verbs = set(re.findall(r"^  stele (\w+) ", stele("help").text, re.M)) - {"help"}
    assert len(verbs) > 8
    for verb in verbs:
        for line in call([command, "help", verb]).exits(0).text.splitlines():
            assert line in manual or line.startswith("exit codes: "), (verb, line)


# ---- the examples ----


@test
def generate_c_says_what_run_says_with_the_shared_and_with_the_static_library():
    source = EXAMPLES / "generate.c"
    static = compiled(source, "generate-static", "-Wl,--as-needed", "-l:libstele.a", *flags("--static", "--libs"))
    assert "libstele" not in call(["readelf", "-d", static]).exits(0).text
    for model, question in ((DEMO, "One day, Lily"), (DEMO, "One day, Ben lost his"), (_chat, "Ben lost his red hat and")):
        for weights in ("f32", "q8"):
            want = stele("run", image(model, weights), "-n", "64", question).exits(0)
            for r in (run(shared(source), want.args[2], question), call([static, want.args[2], question])):
                assert r.exits(0).out == want.out and want.out.strip(), (question, r.out, want.out)
    raw = stele("run", image(_chat, "q8"), "--raw", "-n", "64", "Ben lost his red hat and").exits(0)
    assert raw.out != want.out, "the template makes no difference"
    run(shared(source), SCRATCH / "missing.stele", "x").exits(1, "missing.stele")
    run(shared(source), image(llama("textless")), "x").exits(3, "no tokenizer")


if not SAN:  # Python would have to be built with the sanitisers too

    @test
    def score_py_says_what_choose_says():
        questions = {"One day, Ben lost his red": [" ball", " hat", ", big shoe"], "The sk": ["y is", "irt", "in é"]}
        for prompt, choices in questions.items():
            listed = SCRATCH / "choices"
            listed.write_text("\n".join(choices) + "\n")
            r = run("/usr/bin/python3", EXAMPLES / "score.py", image(DEMO), prompt, *choices).exits(0)
            want = stele("choose", image(DEMO), "--raw", "--json", "--choices-file", listed, prompt).exits(0)
            said = [line.split("\t") for line in r.text.splitlines()]
            assert said == [[f"{c['logprob']:.9g}", c["text"]] for c in json.loads(want.text)["choices"]], (said, want.text)
        run("/usr/bin/python3", EXAMPLES / "score.py", SCRATCH / "missing.stele", "a", "b", "c").exits(1, "missing.stele")


@test
def two_sessions_in_two_threads_over_one_image_give_the_same_bits():
    program = shared(ROOT / "tests" / "library" / "two_threads.c")
    for weights in ("f32", "q4"):
        assert run(program, image(DEMO, weights)).exits(0).text == "6 rounds alike\n"


# ---- calls that the command does not make ----


class Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("text", ctypes.c_char * 1024)]


class Damage(ctypes.Structure):
    _fields_ = [("section", ctypes.c_char_p), ("offset", ctypes.c_uint64), ("bytes", ctypes.c_uint64),
                ("reserved", ctypes.c_uint64 * 2)]  # fmt: skip


if not SAN:
    lib = ctypes.CDLL(str(HERE / "lib" / "libstele.so"))
    err = Error()

    def opened(path):
        handle = ctypes.c_void_p()
        assert lib.stele_image_open(ctypes.byref(handle), str(path).encode(), ctypes.byref(err)) == 0, err.text
        return handle

    @test
    def verification_tells_how_far_it_is_and_where_the_damage_is():
        steps, damage = [], Damage()
        callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
        progress = callback(lambda _, done, of: steps.append((done, of)))
        whole = image(DEMO, "f32").read_bytes()
        sections = {s["name"]: s for s in json.loads(stele("inspect", "--json", image(DEMO, "f32")).text)["sections"]}
        weights, text = sections["weights"], sections["tokenizer"]
        img = opened(image(DEMO, "f32"))
        assert lib.stele_image_verify_watched(img, progress, None, ctypes.byref(damage), ctypes.byref(err)) == 0
        lib.stele_image_close(img)
        assert len(steps) >= len(sections) + weights["bytes"] // (2 << 20), steps
        assert steps == sorted(steps) and {of for _, of in steps} == {len(whole)}
        chunk = 2 << 20
        second, last = weights["offset"] + chunk, weights["offset"] + 2 * chunk
        places = {("weights", second, chunk): second + 77,
                  ("weights", last, weights["bytes"] - 2 * chunk): last + 77,
                  ("tokenizer", text["offset"], text["bytes"]): text["offset"] + 500,
                  (None, 8000, 1): 8000}  # fmt: skip
        for want, at in places.items():
            target = SCRATCH / "damaged.stele"
            target.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
            img = opened(target)
            assert lib.stele_image_verify_watched(img, None, None, ctypes.byref(damage), ctypes.byref(err)) == 4
            found = (damage.section and damage.section.decode(), damage.offset, damage.bytes)
            assert found == want and b"damaged" in err.text, (found, want, err.text)
            lib.stele_image_close(img)

    @test
    def what_a_later_surface_might_mean_is_refused():
        img, session = opened(image(DEMO)), ctypes.c_void_p()
        ids, count = ctypes.c_void_p(1), ctypes.c_size_t(1)
        options = (ctypes.c_uint64 * 10)()
        open_session = lambda o: lib.stele_session_open(ctypes.byref(session), img, o, ctypes.byref(err))  # noqa: E731
        assert open_session(None) == 0 and open_session(options) == 0, err.text
        for word in range(6, 10):
            options[word] = 1
            assert open_session(options) == 2 and b"stele_options" in err.text and not session.value, (word, err.text)
            options[word] = 0
        options[2] = 7  # type of keys and values
        assert open_session(options) == 2 and b"no type 7" in err.text, err.text
        out = ctypes.byref(ids), ctypes.byref(count), ctypes.byref(err)
        assert lib.stele_tokenize(img, b"a", ctypes.c_size_t(1), 4, *out) == 2 and b"unknown flags 4" in err.text
        assert not ids.value and not count.value
        ids.value = 1
        assert lib.stele_image_describe(img, 1000, *out) == 2 and b"no form 1000" in err.text and not ids.value
        lib.stele_image_close(img)

    @test
    def every_call_can_fail_without_an_error_to_fill():
        img, out = opened(image(DEMO)), ctypes.c_void_p()
        options, missing = (ctypes.c_uint64 * 10)(), str(SCRATCH / "missing.stele").encode()
        options[0] = 1000  # threads
        chat = (ctypes.c_uint64 * 15)()
        assert lib.stele_image_open(ctypes.byref(out), missing, None) == 1 and not out.value
        assert lib.stele_session_open(ctypes.byref(out), img, options, None) == 2 and not out.value
        assert lib.stele_render((ctypes.c_uint64 * 6)(), img, chat, None) in (2, 3)
        chat[11] = 1  # reserved
        assert lib.stele_render((ctypes.c_uint64 * 6)(), img, chat, None) == 2
        lib.stele_image_close(img)

    @test
    def an_address_is_the_images_or_not_and_a_file_cut_short_is_told():
        target = SCRATCH / "short.stele"
        shutil.copyfile(image(DEMO), target)
        img = opened(target)
        maps = Path("/proc/self/maps").read_text()
        (mapping,) = re.findall(rf"^([0-9a-f]+)-([0-9a-f]+) .* {re.escape(str(target))}$", maps, re.M)
        begin, end = (int(x, 16) for x in mapping)
        fault = lambda at: lib.stele_image_fault(img, ctypes.c_void_p(at))  # noqa: E731
        assert fault(begin - 1) == 0 and fault(end) == 0 and fault(begin) == 1 and fault(begin + 5000) == 1
        os.truncate(target, 4096)
        assert fault(begin + 5000) == 4 and fault(end) == 0
        lib.stele_image_close(img)


finish()
