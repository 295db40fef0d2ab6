/*
 * Everything that prctl(2) and arch_prctl(2) tell a thread about itself. Every fixture compares it: what a task sees when it says
 * that it is ready (fx_ready, fx_up) and after the dump and the restore (fx_wait_check). TestGettersAreAll in test/ compares the
 * list with the kernel's headers, so that a new one is missed. The names of other machines are asked too, and say EINVAL.
 */
#ifndef GETTERS_H
#define GETTERS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* OUT is a buffer of FX_OUT bytes, which the kernel fills in. One line each: Go reads them too (test/harness/getters.go). */
#define FX_OUT 1024
#define FX_PRCTLS \
	X(PR_GET_PDEATHSIG, 2, OUT, 0, 0, 0) \
	X(PR_GET_DUMPABLE, 3, 0, 0, 0, 0) \
	X(PR_GET_UNALIGN, 5, OUT, 0, 0, 0) \
	X(PR_GET_KEEPCAPS, 7, 0, 0, 0, 0) \
	X(PR_GET_FPEMU, 9, OUT, 0, 0, 0) \
	X(PR_GET_FPEXC, 11, OUT, 0, 0, 0) \
	X(PR_GET_TIMING, 13, 0, 0, 0, 0) \
	X(PR_GET_NAME, 16, OUT, 0, 0, 0) \
	X(PR_GET_ENDIAN, 19, OUT, 0, 0, 0) \
	X(PR_GET_SECCOMP, 21, 0, 0, 0, 0) \
	X(PR_GET_TSC, 25, OUT, 0, 0, 0) \
	X(PR_GET_SECUREBITS, 27, 0, 0, 0, 0) \
	X(PR_GET_TIMERSLACK, 30, 0, 0, 0, 0) \
	X(PR_MCE_KILL_GET, 34, 0, 0, 0, 0) \
	X(PR_GET_CHILD_SUBREAPER, 37, OUT, 0, 0, 0) \
	X(PR_GET_NO_NEW_PRIVS, 39, 0, 0, 0, 0) \
	X(PR_GET_TID_ADDRESS, 40, OUT, 0, 0, 0) \
	X(PR_GET_THP_DISABLE, 42, 0, 0, 0, 0) \
	X(PR_GET_FP_MODE, 46, 0, 0, 0, 0) \
	X(PR_SVE_GET_VL, 51, 0, 0, 0, 0) \
	X(PR_GET_SPECULATION_CTRL, 52, 0, 0, 0, 0) \
	X(PR_GET_SPECULATION_CTRL, 52, 1, 0, 0, 0) \
	X(PR_GET_SPECULATION_CTRL, 52, 2, 0, 0, 0) \
	X(PR_GET_TAGGED_ADDR_CTRL, 56, 0, 0, 0, 0) \
	X(PR_GET_IO_FLUSHER, 58, 0, 0, 0, 0) \
	X(PR_PAC_GET_ENABLED_KEYS, 61, 0, 0, 0, 0) \
	X(PR_SCHED_CORE_GET, 62, 0, 0, 0, OUT) \
	X(PR_SME_GET_VL, 64, 0, 0, 0, 0) \
	X(PR_GET_MDWE, 66, 0, 0, 0, 0) \
	X(PR_GET_MEMORY_MERGE, 68, 0, 0, 0, 0) \
	X(PR_RISCV_V_GET_CONTROL, 70, 0, 0, 0, 0) \
	X(PR_PPC_GET_DEXCR, 72, 0, 0, 0, 0) \
	X(PR_PPC_GET_DEXCR, 72, 1, 0, 0, 0) \
	X(PR_GET_SHADOW_STACK_STATUS, 74, OUT, 0, 0, 0) \
	X(PR_TIMER_CREATE_RESTORE_IDS_GET, 77, 2, 0, 0, 0) \
	X(PR_FUTEX_HASH_GET_SLOTS, 78, 2, 0, 0, 0) \
	X(PR_FUTEX_HASH_GET_IMMUTABLE, 78, 3, 0, 0, 0) \
	X(PR_RSEQ_SLICE_EXTENSION_GET, 79, 1, 0, 0, 0) \
	X(PR_GET_CFI, 80, 0, OUT, 0, 0) \
	X(PR_GET_AUXV, 0x41555856, OUT, 1024, 0, 0)

/* of the capabilities 0 to 63 each, as one mask: PR_CAPBSET_READ, PR_CAP_AMBIENT_IS_SET */
#define FX_CAPABILITIES \
	X(PR_CAPBSET_READ, 23, CAP, 0, 0, 0) \
	X(PR_CAP_AMBIENT_IS_SET, 47, 1, CAP, 0, 0)

/* arch_prctl(2) of x86: TLS of a thread, CPUID faulting, permission for large states, address tagging, shadow stacks */
#define FX_ARCH_PRCTLS \
	X(ARCH_GET_FS, 0x1003, OUT) \
	X(ARCH_GET_GS, 0x1004, OUT) \
	X(ARCH_GET_CPUID, 0x1011, 0) \
	X(ARCH_GET_XCOMP_SUPP, 0x1021, OUT) \
	X(ARCH_GET_XCOMP_PERM, 0x1022, OUT) \
	X(ARCH_GET_XCOMP_GUEST_PERM, 0x1024, OUT) \
	X(ARCH_GET_UNTAG_MASK, 0x4001, OUT) \
	X(ARCH_GET_MAX_TAG_BITS, 0x4002, OUT) \
	X(ARCH_SHSTK_STATUS, 0x5005, OUT)

static const char *const fx_getter_names[] = {
#define X(name, nr, a, b, c, d) #name " (" #a ", " #b ", " #c ", " #d ")",
	FX_PRCTLS FX_CAPABILITIES
#undef X
#define X(name, nr, a) #name,
#ifdef __x86_64__
	FX_ARCH_PRCTLS
#endif
#undef X
};
enum { FX_GETTERS = sizeof fx_getter_names / sizeof *fx_getter_names };

/* -errno, or one number made of the result and of what was written */
static uint64_t fx_getter(long nr, long op, long a, long b, long c, long d, const unsigned char *out)
{
	long r = syscall(nr, op, a, b, c, d);
	if (r < 0)
		return (uint64_t)-errno;
	uint64_t sum = (uint64_t)r;
	for (int i = 0; i < FX_OUT; i++)
		if (out[i])
			sum = (sum ^ (uint64_t)out[i] << 8 ^ (uint64_t)i << 16) * 0x100000001b3ull;
	return sum;
}

static void fx_get_all(uint64_t *v)
{
	unsigned char out[FX_OUT];
	int i = 0;
	int saved = errno;
#define OUT ((long)out)
#define X(name, nr, a, b, c, d) memset(out, 0, sizeof out); v[i++] = fx_getter(SYS_prctl, nr, a, b, c, d, out);
	FX_PRCTLS
#undef X
	memset(out, 0, sizeof out);
#define X(name, nr, a, b, c, d) v[i] = 0; for (long CAP = 0; CAP < 64; CAP++) v[i] |= (uint64_t)(fx_getter(SYS_prctl, nr, a, b, c, d, out) == 1) << CAP; i++;
	FX_CAPABILITIES
#undef X
#ifdef __x86_64__
#define X(name, nr, a) memset(out, 0, sizeof out); v[i++] = fx_getter(SYS_arch_prctl, nr, a, 0, 0, 0, out);
	FX_ARCH_PRCTLS
#undef X
#endif
#undef OUT
	errno = saved;
}

/* What each task saw, by its tid: tasks of clone(2) may share memory and thread-local storage. */
static struct fx_seen {
	int tid;
	uint64_t v[FX_GETTERS];
} fx_seen[256];

static struct fx_seen *fx_slot(int make)
{
	int tid = syscall(SYS_gettid);
	for (int i = 0; i < 256; i++) {
		struct fx_seen *s = &fx_seen[(tid + i) & 255];
		int none = 0;
		if (__atomic_load_n(&s->tid, __ATOMIC_SEQ_CST) == tid)
			return s;
		if (make && __atomic_compare_exchange_n(&s->tid, &none, tid, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return s;
		if (!make && !__atomic_load_n(&s->tid, __ATOMIC_SEQ_CST))
			return NULL;
	}
	return NULL;
}

static void fx_look(void)
{
	struct fx_seen *s = fx_slot(1);
	if (s)
		fx_get_all(s->v);
}
#endif
