/* SPDX-License-Identifier: Apache-2.0 */
#include "descriptors.h"

#include <fcntl.h>

void hold_standard_descriptors(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0) /* then open() takes it: it is the lowest that is free */
            (void)!open("/dev/null", fd ? O_RDONLY : O_WRONLY);
}
