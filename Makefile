# SPDX-License-Identifier: Apache-2.0
# make             the programs, in build/
# make test        every test
# make check-fast  the short part of every test
# make test-real   four models that people use against transformers (1.9 GB to fetch, 12 GB of disk, half an hour)
# make demo        convert and run the demo model, eight copies at once
# make demo-real   fetch (93 MB), convert and run SmolLM2-135M-Instruct
# make bench       start, first byte, decode; BENCH=quick leaves out what takes gigabytes and minutes
# make install     programs, library, headers, manual page; PREFIX=/usr/local, DESTDIR=
# make portable    build/portable/: the programs with the libraries they need
# make cuda        libstele-cuda.so, by nvcc (NVCC=nvcc): stele --device cuda
# make cuda-emulate  what can be shown of it without a GPU, with more rounds than in `make test`
# make gpu-check   checks and measures it on a machine with a GPU
# make clean       empties build/, but for the model that demo-real fetched
#
# OPT='-O2 -g' CFLAGS= LDFLAGS= CC=gcc; SAN=address,undefined (or thread) builds and tests in a folder of its own, and
# CROSS=aarch64-linux-gnu- builds for that machine in another. `test`, `check-fast`, `test-real`, the demos and `bench`
# first install the packages that are missing (scripts/setup).
#
# One rule builds any object: its room is its folder. Flags that an instruction set needs belong to its object.

VERSION := 0.1.0
PREFIX  ?= /usr/local
comma   := ,
B       := build$(CROSS:%-=/%)$(if $(SAN),/$(subst $(comma),-,$(SAN)))
ifeq ($(origin CC),default)
CC      := $(CROSS)gcc
AR      := $(CROSS)ar
endif
MACHINE := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))
OPT     ?= -O2 -g
SAN     ?=
CROSS   ?=
WERROR  := $(if $(CI),-Werror)

WARN := -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wdouble-promotion -Wundef -Wvla -Wformat=2 \
        -Wstrict-prototypes -Wmissing-prototypes -Wcast-qual $(WERROR)
CFLAGS_ALL = -std=gnu11 $(OPT) $(WARN) -ffp-contract=off -fno-math-errno -fPIC -fvisibility=hidden -pthread -MMD -MP \
             -Iimage -Iblas -Iruntime -D_GNU_SOURCE -DSTELE_VERSION='"$(VERSION)"' \
             $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer) $(CFLAGS)
LDFLAGS_ALL = -pthread $(if $(SAN),-fsanitize=$(SAN)) -Wl,-z,now -Wl,--as-needed $(LDFLAGS)

# Tables of kernels that only such a machine can run.
TABLES_x86_64  := avx2 avx512 generic_fma
TABLES_aarch64 := neon neon_i8mm

IMAGE   := $(patsubst %.c,$(B)/%.o,$(wildcard image/*.c))
TABLES  := blas/avx2.c blas/avx512.c blas/neon.c
BLAS    := $(patsubst %.c,$(B)/%.o,$(filter-out $(TABLES),$(wildcard blas/*.c))) $(TABLES_$(MACHINE):%=$(B)/blas/%.o)
RUNTIME := $(patsubst %.c,$(B)/%.o,$(filter-out runtime/stele.c runtime/cmd.c runtime/cmd_%.c runtime/guard.c runtime/stats.c runtime/windows.c runtime/stele-%.c,$(wildcard runtime/*.c)))
COMMAND := $(patsubst %.c,$(B)/%.o,$(wildcard runtime/stele.c runtime/cmd.c runtime/cmd_*.c runtime/guard.c runtime/stats.c runtime/windows.c))
CONVERT := $(patsubst %.c,$(B)/%.o,$(filter-out convert/stele-%.c,$(wildcard convert/*.c convert/families/*.c))) \
           $(if $(filter x86_64,$(MACHINE)),$(B)/convert/q4_trials_avx2.o)
PULL    := $(patsubst %.c,$(B)/%.o,$(wildcard convert/pull/*.c))
# The emulation of GPUs goes from stack to stack, which no sanitizer follows.
CHECKS  := $(patsubst tests/%.c,$(B)/tests/%,$(filter-out $(if $(SAN),tests/cuda/%),$(wildcard tests/*/check_*.c)))
BENCHES := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/*/bench_*.c))
# test_neon.py builds for aarch64 by itself: on such a machine all the other tests are about it.
SCRIPTS := $(filter-out $(if $(SAN)$(filter-out x86_64,$(MACHINE)),tests/end_to_end/test_neon.py) \
             $(if $(SAN),tests/cuda/%),$(wildcard tests/*/test_*.py))

# Debian's libonig-dev can be there for one machine only: the other one's library is named by its file.
RUNTIME_LIBS := -lxxhash -lutf8proc $(if $(CROSS),-l:libonig.so.5,-lonig) -lm
CONVERT_LIBS := -ljansson
PULL_LIBS    := -lcurl -lcrypto -lzstd
CHECK_LIBS   := -lcheck_pic -lsubunit -lrt
LIBS_check_oracle := -lopenblas

# The library: what STELE_API marks in stele.h and error.h, and nothing else that a program could take or clash with. Its
# version is that of the surface, which stele.h says.
LIBRARY := $(RUNTIME) $(BLAS) $(filter-out %/descriptors.o %/write.o,$(IMAGE))
SURFACE := $(shell sed -n 's/^.define STELE_SURFACE //p' runtime/stele.h)
SHARED  := libstele.so.$(SURFACE)
OBJCOPY := $(shell $(CC) -print-prog-name=objcopy)

PROGRAMS := $(B)/stele $(B)/stele-convert $(B)/stele-compare $(B)/stele-sizes $(B)/stele-pull

all: $(PROGRAMS) $(B)/libstele.a $(B)/$(SHARED)

$(B)/libstele.a: $(LIBRARY)
	$(CC) -r -nostdlib -o $(B)/libstele.o $^
	$(OBJCOPY) --localize-hidden $(B)/libstele.o
	rm -f $@
	$(AR) rcs $@ $(B)/libstele.o

$(B)/$(SHARED): $(LIBRARY)
	$(CC) $(LDFLAGS_ALL) -shared -Wl,-soname,$(SHARED) -Wl,-z,defs -Wl,-Bsymbolic -o $@ $^ $(RUNTIME_LIBS)

# Every object of the rooms, for who looks inside: the tests, and stele-convert, which takes of the runtime only the
# normaliser, since added tokens are normalised there as the runtime does it.
$(B)/rooms.a: $(RUNTIME) $(BLAS) $(IMAGE)
	rm -f $@
	$(AR) rcs $@ $^

STELE_PARTS   := $(COMMAND) $(B)/image/descriptors.o $(B)/libstele.a
COMPARE_PARTS := $(patsubst %,$(B)/runtime/%.o,stele-compare cmd guard) $(B)/image/descriptors.o $(B)/libstele.a
CONVERT_PARTS := $(B)/convert/stele-convert.o $(CONVERT) $(B)/rooms.a
SIZES_PARTS   := $(B)/convert/stele-sizes.o $(CONVERT) $(B)/rooms.a
PULL_PARTS    := $(PULL) $(CONVERT) $(B)/rooms.a

$(B)/stele: $(STELE_PARTS)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(RUNTIME_LIBS)

$(B)/stele-convert: $(CONVERT_PARTS)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(CONVERT_LIBS) $(RUNTIME_LIBS)

$(B)/stele-compare: $(COMPARE_PARTS)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(CONVERT_LIBS) $(RUNTIME_LIBS)

$(B)/stele-sizes: $(SIZES_PARTS)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(CONVERT_LIBS) $(RUNTIME_LIBS)

$(B)/stele-pull: $(PULL_PARTS)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(PULL_LIBS) $(CONVERT_LIBS) $(RUNTIME_LIBS)

# A Check suite, or a benchmark of C, may look into every room.
$(B)/tests/%: $(B)/tests/%.o $(CONVERT) $(B)/rooms.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(CHECK_LIBS) $(CONVERT_LIBS) $(RUNTIME_LIBS) $(LIBS_$(notdir $*))

$(B)/convert/% $(B)/tests/%: CFLAGS_ALL += -Iconvert
$(B)/convert/quantise.o $(B)/convert/q4_trials.o $(B)/convert/q4_trials_avx2.o $(B)/convert/pull/packed.o: OPT += -O3
$(B)/blas/avx2.o:   CFLAGS_ALL += -mavx2 -mfma -mf16c
$(B)/blas/avx512.o: CFLAGS_ALL += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c

# gcc 12 schedules before it allocates registers, which doubles a tile's instructions by spills. (569 -> 313 for a group
# of q8 times 4 rows.)
$(B)/blas/neon.o $(B)/blas/neon_i8mm.o: CFLAGS_ALL += -fno-schedule-insns
$(B)/blas/neon.o: CFLAGS_ALL += -march=armv8.2-a+dotprod

$(B)/blas/neon_i8mm.o: blas/neon.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -march=armv8.2-a+dotprod+i8mm -c -o $@ $<

$(B)/convert/q4_trials_avx2.o: convert/q4_trials.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -mavx2 -c -o $@ $<

$(B)/blas/generic_fma.o: blas/generic.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -mfma -c -o $@ $<

$(B)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -c -o $@ $<

# ---- GPUs ----

# libstele-cuda.so, which stele opens where --device names a GPU. It links nothing of CUDA: kernels are inside, the driver is
# opened by it. Kernels for Ampere, Hopper and Blackwell, and PTX, of which a driver makes those of others.
NVCC      ?= nvcc
CUDA_FOR   = $(foreach n,80 90 100,-gencode arch=compute_$n,code=sm_$n) -gencode arch=compute_80,code=compute_80
NVCCFLAGS := -std=c++17 -O3 -fmad=false -Werror all-warnings -Iimage -Iblas -Iblas/cuda
CUDA_HOST := $(patsubst %.c,%.o,$(filter-out %/emulate.c %/races.c %/module.c,$(wildcard blas/cuda/*.c)) \
               blas/cuda_memory.c blas/pool.c image/error.c)
CUDA_LEAST = $(shell $(NVCC) --version | sed -n 's/.*release \([0-9]*\).*/\1000/p')

cuda: $(B)/libstele-cuda.so

$(B)/blas/cuda/kernels.fatbin: blas/cuda/kernels.cu $(wildcard blas/cuda/*.cuh blas/cuda/*.h blas/*.h image/*.h) Makefile
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(CUDA_FOR) -fatbin -Xptxas -v -o $@ $< 2> $@.log || { cat $@.log >&2; false; }

$(B)/blas/cuda/module.o: $(B)/blas/cuda/kernels.fatbin
$(B)/blas/cuda/module.o: CFLAGS_ALL += -DCUDA_FATBIN='"$(B)/blas/cuda/kernels.fatbin"'
$(B)/blas/cuda/driver.o: CFLAGS_ALL += -DCUDA_DRIVER_LEAST=$(CUDA_LEAST)
$(B)/blas/cuda/%.o: private CFLAGS_ALL += -Iblas/cuda

$(B)/libstele-cuda.so: $(CUDA_HOST:%=$(B)/%) $(B)/blas/cuda/module.o
	$(CC) $(LDFLAGS_ALL) -shared -Wl,-z,defs -o $@ $^ -lm

# The same with kernels as host code, and a driver made for the tests: in a folder of its own, with a stele beside it.
E := $(B)/emulate
EMULATED := $(E)/stele $(E)/stele-convert $(E)/libstele-cuda.so $(E)/libcuda.so.1 $(E)/bench_gpu

$(E)/%.o: private CFLAGS_ALL += -Iblas/cuda -DCUDA_SLICE_BYTES=65536 -DCUDA_RING_BYTES=16384 -DCUDA_SMALL_BYTES=2048 \
                         -DCUDA_PEAK_BYTES=65536 -DCUDA_PEAK_PRODUCTS=2 -DCUDA_SPARE_BYTES=0ull

$(E)/blas/cuda/emulate.o: OPT += -O3

$(E)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -c -o $@ $<

# races.c is what the compiler calls at each touch of memory; of its own library nothing is linked.
$(E)/blas/cuda/kernels.o: blas/cuda/kernels.cu Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -fsanitize=thread -x c -c -o $@ $<

$(E)/libstele-cuda.so: $(CUDA_HOST:%=$(E)/%) $(E)/tests/cuda/fake_module.o
	$(CC) $(LDFLAGS_ALL) -Wl,-rpath,'$$ORIGIN' -shared -Wl,-z,defs -o $@ $^ -lm

$(E)/libcuda.so.1: $(addprefix $(E)/,tests/cuda/fake_driver.o $(patsubst %,blas/cuda/%.o,emulate races kernels))
	$(CC) $(LDFLAGS_ALL) -shared -Wl,-z,defs -o $@ $^ -lm

$(E)/stele $(E)/stele-convert: $(E)/%: $(B)/%
	@mkdir -p $(@D)
	cp -f $< $@

$(E)/bench_gpu: $(B)/tests/cuda/bench_gpu.o $(B)/libstele.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(RUNTIME_LIBS)

emulated: $(EMULATED)

# All that is shown without a GPU, with more rounds than `make test` has.
cuda-emulate: emulated $(B)/tests/cuda/check_ops
	CHECK_ROUNDS=100 $(B)/tests/cuda/check_ops
	STELE_BUILD=$(abspath $(B)) tests/cuda/test_races.py
	STELE_BUILD=$(abspath $(B)) tests/cuda/test_cuda.py

# On a machine with a GPU. Without one it ends with the reason; build/portable can then be taken to one that has it.
gpu-check: cuda portable $(B)/tests/cuda/bench_gpu.o
	$(CC) $(LDFLAGS_ALL) $(PORTABLE) -o $(B)/portable/bench_gpu $(B)/tests/cuda/bench_gpu.o $(B)/libstele.a $(RUNTIME_LIBS)
	install -m 755 scripts/gpu-check $(B)/libstele-cuda.so $(B)/portable
	$(B)/portable/gpu-check

-include $(shell find $(B) -name '*.d' 2>/dev/null)

# ---- tests ----

# They begin first, so that no core has to wait for one of them at the end.
LONGEST := $(filter $(foreach n,arrival pull pull_hub pull_s3 transport neon judging chat cuda nvcc,%/test_$n.py),$(SCRIPTS))

# STELE_BUILD tells the scripts which programs to test, STELE_SAN that memory and times are not what they are for users.
RUN_TESTS = STELE_BUILD=$(abspath $(B)) STELE_SAN='$(SAN)' tests/run $(LONGEST) $(filter-out $(LONGEST),$(SCRIPTS) $(CHECKS))

setup:
	@scripts/setup

test check-fast:
	@scripts/setup --tests
	-@scripts/setup --tests --cross
	@$(MAKE) --no-print-directory all $(CHECKS) $(if $(SAN),,emulated)
	@$(if $(filter check-fast,$@),STELE_FAST=1) $(RUN_TESTS)

# Images of f32 weights take up to 6 GB, so they lie beside the checkpoints.
test-real:
	@scripts/setup --tests python3-pip python3-venv ca-certificates
	@$(MAKE) --no-print-directory all
	@scripts/real-model build/real $(REAL)
	@STELE_REAL=1 TMPDIR=$(abspath build/real) STELE_BUILD=$(abspath $(B)) tests/run tests/end_to_end/test_real.py

REAL := smollm2-135m gemma-3-270m qwen2.5-coder-0.5b qwen2.5-coder-1.5b

# ---- demonstrations and measurements ----

demo: setup
	@$(MAKE) --no-print-directory -s all
	@STELE_BUILD=$(abspath $(B)) scripts/demo

demo-real:
	@scripts/setup python3-pip ca-certificates
	@$(MAKE) --no-print-directory -s all
	@STELE_BUILD=$(abspath $(B)) scripts/demo-real

bench:
	@scripts/setup python3-numpy
	@$(MAKE) --no-print-directory -s all $(BENCHES)
	@STELE_BUILD=$(abspath $(B)) scripts/bench $(BENCH)
	@STELE_BUILD=$(abspath $(B)) scripts/bench-pull $(BENCH)

# ---- installing ----

$(B)/stele.1: scripts/manual $(PROGRAMS)
	scripts/manual $(B)/stele > $@

# Nothing that was built knows PREFIX: the command finds libexec from where it lies itself.
TO = $(DESTDIR)$(PREFIX)

install: all $(B)/stele.1
	install -D -m 755 $(B)/stele $(TO)/bin/stele
	install -D -m 755 -t $(TO)/libexec/stele $(filter $(B)/stele-%,$(PROGRAMS))
	$(if $(wildcard $(B)/libstele-cuda.so),install -m 644 -t $(TO)/libexec/stele $(B)/libstele-cuda.so)
	install -D -m 644 -t $(TO)/lib $(B)/libstele.a $(B)/$(SHARED)
	ln -sf $(SHARED) $(TO)/lib/libstele.so
	install -D -m 644 -t $(TO)/include/stele runtime/stele.h image/error.h
	install -D -m 644 $(B)/stele.1 $(TO)/share/man/man1/stele.1
	install -d $(TO)/lib/pkgconfig
	printf '%s\n' 'prefix=$(PREFIX)' 'libdir=$${prefix}/lib' 'includedir=$${prefix}/include' '' 'Name: stele' \
	    'Description: runs language models from memory images' 'Version: $(VERSION)' 'Cflags: -I$${includedir}/stele' \
	    'Libs: -L$${libdir} -lstele' 'Libs.private: $(RUNTIME_LIBS) -pthread' > $(TO)/lib/pkgconfig/stele.pc

# DT_RPATH, not DT_RUNPATH: it also holds for libraries that libraries need, and goes before LD_LIBRARY_PATH, so that the
# folder does the same on every machine.
PORTABLE := -s -Wl,--disable-new-dtags -Wl,-rpath,'$$ORIGIN/lib'

portable: all
	rm -rf $(B)/portable
	mkdir -p $(B)/portable
	$(CC) $(LDFLAGS_ALL) $(PORTABLE) -o $(B)/portable/stele $(STELE_PARTS) $(RUNTIME_LIBS)
	$(CC) $(LDFLAGS_ALL) $(PORTABLE) -o $(B)/portable/stele-convert $(CONVERT_PARTS) $(CONVERT_LIBS) $(RUNTIME_LIBS)
	$(CC) $(LDFLAGS_ALL) $(PORTABLE) -o $(B)/portable/stele-compare $(COMPARE_PARTS) $(CONVERT_LIBS) $(RUNTIME_LIBS)
	$(CC) $(LDFLAGS_ALL) $(PORTABLE) -o $(B)/portable/stele-sizes $(SIZES_PARTS) $(CONVERT_LIBS) $(RUNTIME_LIBS)
	$(CC) $(LDFLAGS_ALL) $(PORTABLE) -o $(B)/portable/stele-pull $(PULL_PARTS) $(PULL_LIBS) $(CONVERT_LIBS) $(RUNTIME_LIBS)
	scripts/portable $(B)/portable/lib $(PROGRAMS:$(B)/%=$(B)/portable/%)

help:
	@sed -n '/^# One rule/q; 1!s/^# \{0,1\}//p' Makefile

clean:
	find $(B) -mindepth 1 -maxdepth 1 ! -name real -exec rm -rf {} +

.PHONY: all always setup test check-fast test-real demo demo-real bench install portable cuda emulated cuda-emulate \
        gpu-check help clean
.SECONDARY:
.DELETE_ON_ERROR:
