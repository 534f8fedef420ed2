/* The plugin of nearest.c, which tells when its library is opened: a line in the file that QFW_TEST_MARK names. */
#include "nearest.c"

#include <stdio.h>

__attribute__((constructor)) static void tell(void) {
    const char *path = getenv("QFW_TEST_MARK");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) {
        fputs("opened\n", file);
        fclose(file);
    }
}
