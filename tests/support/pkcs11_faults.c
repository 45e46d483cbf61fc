/* A PKCS#11 module of the tests: SoftHSM2 behind it, and what goes wrong is named in a file.
 *
 * TA_TEST_PKCS11_FAULT names the file, read at each call: "slow SECONDS", "removed", "wrong-key",
 * "truncated", "final-try". Function numbers and offsets are those of PKCS#11 v2.40. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODULE "/usr/lib/softhsm/libsofthsm2.so"
#define FUNCTIONS 68
#define DEVICE_REMOVED 0x32UL
#define FINAL_TRY 0x20000UL
#define VALUE 0x11UL
enum { GET_TOKEN_INFO = 6, GET_ATTRIBUTE_VALUE = 24, DECRYPT = 34 };

typedef unsigned long ulong_t;
typedef ulong_t (*call)(void);
struct list { unsigned char version[2]; call at[FUNCTIONS]; };
static struct list ours, *theirs;

static char *fault(void) {
    static char text[64];
    const char *path = getenv("TA_TEST_PKCS11_FAULT");
    FILE *file = path ? fopen(path, "r") : NULL;
    text[0] = 0;
    if (file) {
        if (!fgets(text, sizeof text, file)) text[0] = 0;
        fclose(file);
    }
    return text;
}

static void spoil(unsigned char *bytes, ulong_t *size) {
    if (*size && !strncmp(fault(), "wrong-key", 9)) bytes[0] ^= 1;
    if (!strncmp(fault(), "truncated", 9)) *size /= 2;
}

static ulong_t token_info(ulong_t slot, unsigned char *info) {
    if (!strncmp(fault(), "removed", 7)) return DEVICE_REMOVED;
    ulong_t result = ((ulong_t(*)(ulong_t, unsigned char *))theirs->at[GET_TOKEN_INFO])(slot, info);
    if (!result && !strncmp(fault(), "final-try", 9)) {
        ulong_t flags;
        memcpy(&flags, info + 96, sizeof flags);
        flags |= FINAL_TRY;
        memcpy(info + 96, &flags, sizeof flags);
    }
    return result;
}

struct attribute { ulong_t type; unsigned char *value; ulong_t size; };

static ulong_t get_attribute_value(ulong_t session, ulong_t object, struct attribute *template, ulong_t count) {
    char *now = fault();
    if (!strncmp(now, "removed", 7)) return DEVICE_REMOVED;
    if (!strncmp(now, "slow ", 5)) sleep((unsigned)atoi(now + 5));
    ulong_t result = ((ulong_t(*)(ulong_t, ulong_t, void *, ulong_t))theirs->at[GET_ATTRIBUTE_VALUE])(
        session, object, template, count);
    for (ulong_t i = 0; !result && i < count; i++)
        if (template[i].type == VALUE && template[i].value) spoil(template[i].value, &template[i].size);
    return result;
}

static ulong_t decrypt(ulong_t session, void *in, ulong_t in_size, unsigned char *out, ulong_t *out_size) {
    ulong_t result = ((ulong_t(*)(ulong_t, void *, ulong_t, unsigned char *, ulong_t *))theirs->at[DECRYPT])(
        session, in, in_size, out, out_size);
    if (!result && out) spoil(out, out_size);
    return result;
}

__attribute__((visibility("default"))) ulong_t C_GetFunctionList(struct list **answer) {
    if (!theirs) {
        void *module = dlopen(MODULE, RTLD_NOW | RTLD_LOCAL);
        ulong_t (*get)(struct list **) = module ? (ulong_t(*)(struct list **))dlsym(module, "C_GetFunctionList") : NULL;
        if (!get || get(&theirs)) return 5; /* CKR_GENERAL_ERROR */
        ours = *theirs;
        ours.at[GET_TOKEN_INFO] = (call)token_info;
        ours.at[GET_ATTRIBUTE_VALUE] = (call)get_attribute_value;
        ours.at[DECRYPT] = (call)decrypt;
    }
    *answer = &ours;
    return 0;
}
