# SPDX-License-Identifier: Apache-2.0
# make            the programs, in build/
# make test       every test;  make check-fast: those that take under a minute
# make demo       convert and run the demo model, eight copies at once
# make help       the other targets
#
# One rule builds any object: its room is its folder. Flags that an instruction set needs belong to its object.

VERSION := 0.1.0
PREFIX  ?= /usr/local
B       := build
ifeq ($(origin CC),default)
CC      := gcc
endif
OPT     ?= -O2 -g
SAN     ?=
WERROR  := $(if $(CI),-Werror)

WARN := -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wdouble-promotion -Wundef -Wvla -Wformat=2 \
        -Wstrict-prototypes -Wmissing-prototypes -Wcast-qual $(WERROR)
CFLAGS_ALL = -std=gnu11 $(OPT) $(WARN) -ffp-contract=off -fno-math-errno -fvisibility=hidden -pthread -MMD -MP \
             -Iimage -Iblas -Iruntime -D_GNU_SOURCE -DSTELE_VERSION='"$(VERSION)"' \
             $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer) $(CFLAGS)
LDFLAGS_ALL = -pthread $(if $(SAN),-fsanitize=$(SAN)) -Wl,-z,now -Wl,--as-needed $(LDFLAGS)

IMAGE   := $(patsubst %.c,$(B)/%.o,$(wildcard image/*.c))
BLAS    := $(patsubst %.c,$(B)/%.o,$(wildcard blas/*.c)) $(B)/blas/generic_fma.o
RUNTIME := $(patsubst %.c,$(B)/%.o,$(filter-out runtime/stele.c runtime/cmd.c runtime/cmd_%.c runtime/guard.c runtime/stats.c,$(wildcard runtime/*.c)))
COMMAND := $(patsubst %.c,$(B)/%.o,$(wildcard runtime/stele.c runtime/cmd.c runtime/cmd_*.c runtime/guard.c runtime/stats.c))
CONVERT := $(patsubst %.c,$(B)/%.o,$(filter-out convert/stele-convert.c,$(wildcard convert/*.c convert/families/*.c)))
CHECKS  := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/*/check_*.c))

RUNTIME_LIBS := -lxxhash -lutf8proc -lonig -lm
CONVERT_LIBS := -ljansson
CHECK_LIBS   := -lcheck_pic -lsubunit -lrt

all: $(B)/stele $(B)/stele-convert

# The library of stele.h. Who links it takes what they use: stele-convert of the runtime only the normaliser, since added
# tokens are normalised there as the runtime does it.
$(B)/libstele.a: $(RUNTIME) $(BLAS) $(IMAGE)
	rm -f $@
	$(AR) rcs $@ $^

$(B)/stele: $(COMMAND) $(B)/libstele.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(RUNTIME_LIBS)

$(B)/stele-convert: $(B)/convert/stele-convert.o $(CONVERT) $(B)/libstele.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(CONVERT_LIBS) $(RUNTIME_LIBS)

# A Check suite may look into every room.
$(B)/tests/%: $(B)/tests/%.o $(CONVERT) $(B)/libstele.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(CHECK_LIBS) $(CONVERT_LIBS) $(RUNTIME_LIBS) $(LIBS_$(notdir $*))

$(B)/convert/% $(B)/tests/%: CFLAGS_ALL += -Iconvert
$(B)/convert/quantise.o: OPT += -O3
$(B)/blas/avx2.o:   CFLAGS_ALL += -mavx2 -mfma -mf16c
$(B)/blas/avx512.o: CFLAGS_ALL += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c

$(B)/blas/generic_fma.o: blas/generic.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -mfma -c -o $@ $<

$(B)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -c -o $@ $<

-include $(shell find $(B) -name '*.d' 2>/dev/null)

# ---- tests ----

setup:
	@scripts/setup

test: setup
	@$(MAKE) --no-print-directory all $(CHECKS)
	@tests/run $(CHECKS) $(wildcard tests/end_to_end/test_*.py)

clean:
	rm -rf $(B)

.PHONY: all setup test clean
.SECONDARY:
.DELETE_ON_ERROR:
