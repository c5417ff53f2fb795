/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded, it tells the kernel that mappings of files are read at random, so that a page is in the page cache only
 * because the program touched it: tests/end_to_end/test_experts.py. */
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
    void *bytes = (void *)syscall(SYS_mmap, at, length, protection, flags, fd, offset);
    if (bytes != MAP_FAILED && fd >= 0 && (flags & MAP_SHARED))
        madvise(bytes, length, MADV_RANDOM);
    return bytes;
}
