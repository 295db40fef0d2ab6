package arch

import "encoding/binary"

// The words of struct user_regs_struct (arch/x86/include/asm/user_64.h), which is NT_PRSTATUS of a
// 64-bit task. The segment bases are in it: restoring it restores thread-local storage.
const (
	amd64R15 = iota
	amd64R14
	amd64R13
	amd64R12
	amd64RBP
	amd64RBX
	amd64R11
	amd64R10
	amd64R9
	amd64R8
	amd64RAX
	amd64RCX
	amd64RDX
	amd64RSI
	amd64RDI
	amd64OrigRAX
	amd64RIP
	amd64CS
	amd64EFlags
	amd64RSP
	amd64SS
	amd64FSBase
	amd64GSBase
	amd64DS
	amd64ES
	amd64FS
	amd64GS
	amd64NumRegs

	amd64PRStatusSize = amd64NumRegs * 8
)

var amd64Words = words{binary.LittleEndian, 8}

// amd64ArgRegs are the registers of a system call's arguments. The kernel leaves them as they were,
// so they are still there when the call has been interrupted. (rcx and r11 are what the instruction
// itself overwrites.)
var amd64ArgRegs = [6]int{amd64RDI, amd64RSI, amd64RDX, amd64R10, amd64R8, amd64R9}

// amd64SyscallNr: the kernel keeps the number in orig_rax from the entry of the call until its
// interruption has been dealt with, and -1 otherwise.
func amd64SyscallNr(b []byte) (int, bool) {
	nr := amd64Words.signed(b, amd64OrigRAX)
	if nr < 0 {
		return 0, false
	}
	return int(nr), true
}

func amd64SyscallArg(b []byte, i int) uint64 { return amd64Words.get(b, amd64ArgRegs[i]) }

func amd64ClearSyscall(b []byte) { amd64Words.set(b, amd64OrigRAX, ^uint64(0)) }

// amd64RewindSyscall does by hand what the kernel's handle_signal and arch_do_signal_or_restart
// (arch/x86/kernel/signal.c) do: the instruction has two bytes, whichever of syscall, sysenter's
// landing pad and int 0x80 it was.
func amd64RewindSyscall(b []byte, nr int) {
	amd64Words.set(b, amd64RAX, uint64(nr))
	amd64Words.set(b, amd64RIP, amd64Words.get(b, amd64RIP)-2)
	amd64ClearSyscall(b)
}

// amd64SetCall also makes a task that executed 32-bit code one that executes 64-bit code.
func amd64SetCall(b []byte, pc Addr, nr int, args [6]uint64) {
	amd64Words.set(b, amd64CS, amd64UserCS)
	amd64Words.set(b, amd64SS, amd64UserDS)
	for i, a := range args {
		amd64Words.set(b, amd64ArgRegs[i], a)
	}
	amd64Words.set(b, amd64RAX, uint64(nr))
	amd64Words.set(b, amd64RIP, uint64(pc))
	amd64ClearSyscall(b)
}

// amd64CallBefore knows mov $NR,%eax; syscall.
func amd64CallBefore(code []byte) (int, bool) {
	if len(code) != 7 || code[0] != 0xb8 || code[5] != 0x0f || code[6] != 0x05 {
		return 0, false
	}
	return int(binary.LittleEndian.Uint32(code[1:])), true
}
