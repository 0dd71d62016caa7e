/* A plugin of qemu: how many instructions a program has run each time it asks for its parent.
 *
 * Nothing else in an inference asks for that, and from Python it is `os.getppid()`. The file named
 * by `out=` gets a line for each: the count and how many threads there have been until then.
 * Debian ships no header; these declarations are of the plugins' interface, version 1.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { ADD_U64 = 0, GETPPID = 173 };

typedef uint64_t plugin;
typedef uint64_t word;
struct block;
struct info;

extern void qemu_plugin_register_vcpu_init_cb(plugin, void (*)(plugin, unsigned));
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin, void (*)(plugin, struct block *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, int, void *, uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(
    plugin, void (*)(plugin, unsigned, int64_t, word, word, word, word, word, word, word, word));
extern void qemu_plugin_register_atexit_cb(plugin, void (*)(plugin, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const struct block *);

EXPORT int qemu_plugin_version = 1;

static uint64_t instructions;
static unsigned threads;
static FILE *out;

static void begins(plugin id, unsigned thread) { threads++; }

/* A block runs from its first to its last instruction, so they are added all at once. */
static void translated(plugin id, struct block *block) {
    qemu_plugin_register_vcpu_tb_exec_inline(
        block, ADD_U64, &instructions, qemu_plugin_tb_n_insns(block));
}

static void called(plugin id, unsigned thread, int64_t number, word a, word b, word c, word d,
                   word e, word f, word g, word h) {
    if (number == GETPPID)
        fprintf(out, "%llu %u\n", (unsigned long long)instructions, threads);
}

static void ends(plugin id, void *unused) { fclose(out); }

EXPORT int qemu_plugin_install(plugin id, const struct info *info, int count, char **arguments) {
    for (int i = 0; i < count; i++)
        if (!strncmp(arguments[i], "out=", 4))
            out = fopen(arguments[i] + 4, "w");
    if (!out)
        return 1;
    qemu_plugin_register_vcpu_init_cb(id, begins);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    qemu_plugin_register_atexit_cb(id, ends, NULL);
    return 0;
}
