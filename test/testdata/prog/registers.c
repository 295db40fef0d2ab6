/*
 * Every register of a thread that spins in user mode while the dump happens: the general ones, the flags (with the
 * direction flag set), sixteen vector registers in full width, mxcsr, the x87 stack with its control word, fs and gs base.
 * Two such threads hold different values. A third one runs a calculation that would come out wrong if anything were lost for a moment only.
 */
#include "fixture.h"
#include <asm/prctl.h>

struct frame {            /* offsets are used by the assembly below */
	uint64_t gpr[16];     /* 0: rax rbx rcx rdx rsi rdi rbp rsp r8..r15 as loaded */
	uint64_t out[16];     /* 128: as found */
	uint64_t flags;       /* 256 */
	uint32_t mxcsr, mxcsr_out; /* 264, 268 */
	uint16_t fcw, fcw_out, fsw_out, pad; /* 272 274 276 */
	volatile uint32_t stop, running; /* 280 284 */
	uint64_t saved_rsp;   /* 288 */
	uint64_t pad2[3];
	double st[8];         /* 320 */
	uint8_t st_out[8][16]; /* 384 */
	uint8_t vec[16][32];  /* 512 */
	uint8_t vec_out[16][32]; /* 1024 */
} __attribute__((aligned(64)));

_Static_assert(offsetof(struct frame, out) == 128 && offsetof(struct frame, flags) == 256 && offsetof(struct frame, stop) == 280 &&
	offsetof(struct frame, saved_rsp) == 288 && offsetof(struct frame, st) == 320 && offsetof(struct frame, st_out) == 384 &&
	offsetof(struct frame, vec) == 512 && offsetof(struct frame, vec_out) == 1024, "frame layout");

/*
 * spin(frame): the frame's address is kept in gs base (swapped by the caller), so that all sixteen registers can hold values.
 * rsp holds a value too: an address in the frame, valid should a signal come, though none does.
 */
void spin(void);
asm(
".text\n.globl spin\nspin:\n"
"	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
"	mov %rsp, %gs:288\n"
"	ldmxcsr %gs:264\n"
"	fninit; fldcw %gs:272\n"
"	fldl %gs:320; fldl %gs:328; fldl %gs:336; fldl %gs:344; fldl %gs:352; fldl %gs:360; fldl %gs:368; fldl %gs:376\n"
#define V(n) "	vmovdqu %gs:512+32*" #n ", %ymm" #n "\n"
V(0) V(1) V(2) V(3) V(4) V(5) V(6) V(7) V(8) V(9) V(10) V(11) V(12) V(13) V(14) V(15)
#undef V
"	mov %gs:0, %rax; mov %gs:8, %rbx; mov %gs:16, %rcx; mov %gs:24, %rdx; mov %gs:32, %rsi; mov %gs:40, %rdi; mov %gs:48, %rbp\n"
"	mov %gs:64, %r8; mov %gs:72, %r9; mov %gs:80, %r10; mov %gs:88, %r11; mov %gs:96, %r12; mov %gs:104, %r13; mov %gs:112, %r14; mov %gs:120, %r15\n"
"	mov %gs:56, %rsp\n"
"	std\n"
"	movl $1, %gs:284\n"
"1:	pause; cmpl $0, %gs:280; je 1b\n"
"	mov %rax, %gs:128; mov %rbx, %gs:136; mov %rcx, %gs:144; mov %rdx, %gs:152; mov %rsi, %gs:160; mov %rdi, %gs:168; mov %rbp, %gs:176; mov %rsp, %gs:184\n"
"	mov %r8, %gs:192; mov %r9, %gs:200; mov %r10, %gs:208; mov %r11, %gs:216; mov %r12, %gs:224; mov %r13, %gs:232; mov %r14, %gs:240; mov %r15, %gs:248\n"
"	mov %gs:288, %rsp\n"
"	pushfq; popq %gs:256; cld\n"
"	stmxcsr %gs:268\n"
"	fnstcw %gs:274; fnstsw %gs:276\n"
"	fstpt %gs:384; fstpt %gs:400; fstpt %gs:416; fstpt %gs:432; fstpt %gs:448; fstpt %gs:464; fstpt %gs:480; fstpt %gs:496\n"
"	fninit\n"
#define V(n) "	vmovdqu %ymm" #n ", %gs:1024+32*" #n "\n"
V(0) V(1) V(2) V(3) V(4) V(5) V(6) V(7) V(8) V(9) V(10) V(11) V(12) V(13) V(14) V(15)
#undef V
"	vzeroupper\n"
"	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
"	ret\n");

static struct frame frame[2];
static const char *name[16] = { "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };

static void *holder(void *arg)
{
	long which = (long)arg;
	struct frame *f = &frame[which];
	for (int i = 0; i < 16; i++)
		f->gpr[i] = fx_mix(which * 100 + i);
	f->gpr[7] = (uintptr_t)&f->vec_out[15]; /* room below for a signal frame's start; no signal comes */
	f->mxcsr = which ? 0x5f80 : 0x3fa1; /* other rounding; exception flags set */
	f->fcw = which ? 0x027f : 0x0f7f;
	for (int i = 0; i < 8; i++)
		f->st[i] = 1.5 * i + 100 * which + 0.25;
	fx_fill(f->vec, sizeof f->vec, 4000 + which);
	MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, f));
	uint64_t fs0, fs1, gs1;
	syscall(SYS_arch_prctl, ARCH_GET_FS, &fs0);
	spin();
	syscall(SYS_arch_prctl, ARCH_GET_FS, &fs1);
	syscall(SYS_arch_prctl, ARCH_GET_GS, &gs1);
	CHECK_EQ(fs1, fs0, "fs base");
	CHECK_EQ(gs1, (uintptr_t)f, "gs base");
	for (int i = 0; i < 16; i++)
		CHECK_EQ(f->out[i], f->gpr[i], name[i]);
	CHECK_EQ(f->flags & 0x400, 0x400, "direction flag");
	CHECK_EQ(f->mxcsr_out, f->mxcsr, "mxcsr");
	CHECK_EQ(f->fcw_out, f->fcw, "x87 control word");
	CHECK_EQ(f->fsw_out >> 11 & 7, 0, "x87 top of stack");
	for (int i = 0; i < 8; i++) {
		long double got = 0;
		memcpy(&got, f->st_out[i], 10);
		CHECK(got == (long double)f->st[7 - i], "x87 st(%d): %Lg, want %g", i, got, f->st[7 - i]);
	}
	for (int i = 0; i < 16; i++)
		if (memcmp(f->vec[i], f->vec_out[i], 32))
			FAIL("ymm%d: low %016" PRIx64 " high %016" PRIx64, i, *(uint64_t *)f->vec_out[i], *(uint64_t *)(f->vec_out[i] + 16));
	return NULL;
}

static volatile int stop_sum;

/* registers used as a compiler uses them, with a known sum every round */
static void *summer(void *arg)
{
	(void)arg;
	while (!stop_sum) {
		uint64_t a = 1, b = 2, c = 3, d = 4;
		double x = 1, y = 0;
		for (int i = 0; i < 100000; i++) {
			a = a * 3 + b, b ^= a >> 7, c += b * 5, d -= c ^ a;
			x = x * 1.0000001 + 0.5, y += x;
		}
		static uint64_t first;
		static double firstx;
		uint64_t sum = a ^ b ^ c ^ d;
		if (!first)
			first = sum, firstx = x + y;
		CHECK_EQ(sum, first, "integer sum of one round");
		CHECK(firstx == x + y, "floating sum of one round: %.17g, want %.17g", x + y, firstx);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	if (!__builtin_cpu_supports("avx")) {
		FAIL("set-up: this CPU has no AVX");
		fx_finish();
	}
	pthread_t t[3];
	pthread_create(&t[2], NULL, summer, NULL);
	for (long i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, holder, (void *)i);
	while (!frame[0].running || !frame[1].running)
		fx_pause_ms(1);
	fx_ready();
	fx_wait_check();
	frame[0].stop = frame[1].stop = 1;
	stop_sum = 1;
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	fx_finish();
}
