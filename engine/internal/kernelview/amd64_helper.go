//go:build amd64

package kernelview

import "encoding/binary"

// helperCode reads {nr, six arguments} from descriptor 0, makes the call,
// writes its result to descriptor 1, and so on until there is no more to read.
var helperCode = []byte{
	0x48, 0x83, 0xec, 0x40, //             sub    $64,%rsp
	0x31, 0xc0, //                   next: xor    %eax,%eax          read
	0x31, 0xff, //                         xor    %edi,%edi
	0x48, 0x89, 0xe6, //                   mov    %rsp,%rsi
	0xba, 0x38, 0x00, 0x00, 0x00, //       mov    $56,%edx
	0x0f, 0x05, //                         syscall
	0x48, 0x83, 0xf8, 0x38, //             cmp    $56,%rax
	0x75, 0x3e, //                         jne    end
	0x48, 0x8b, 0x04, 0x24, //             mov    (%rsp),%rax
	0x48, 0x8b, 0x7c, 0x24, 0x08, //       mov    8(%rsp),%rdi
	0x48, 0x8b, 0x74, 0x24, 0x10, //       mov    16(%rsp),%rsi
	0x48, 0x8b, 0x54, 0x24, 0x18, //       mov    24(%rsp),%rdx
	0x4c, 0x8b, 0x54, 0x24, 0x20, //       mov    32(%rsp),%r10
	0x4c, 0x8b, 0x44, 0x24, 0x28, //       mov    40(%rsp),%r8
	0x4c, 0x8b, 0x4c, 0x24, 0x30, //       mov    48(%rsp),%r9
	0x0f, 0x05, //                         syscall
	0x48, 0x89, 0x04, 0x24, //             mov    %rax,(%rsp)
	0xb8, 0x01, 0x00, 0x00, 0x00, //       mov    $1,%eax            write
	0xbf, 0x01, 0x00, 0x00, 0x00, //       mov    $1,%edi
	0x48, 0x89, 0xe6, //                   mov    %rsp,%rsi
	0xba, 0x08, 0x00, 0x00, 0x00, //       mov    $8,%edx
	0x0f, 0x05, //                         syscall
	0xeb, 0xae, //                         jmp    next
	0xb8, 0xe7, 0x00, 0x00, 0x00, // end:  mov    $231,%eax          exit_group
	0x31, 0xff, //                         xor    %edi,%edi
	0x0f, 0x05, //                         syscall
}

// helperImage is a static executable of one segment: an ELF header, a program
// header, the code.
func helperImage() []byte {
	const base, headers = 0x400000, 64 + 56
	le := binary.LittleEndian
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = le.AppendUint16(b, 2)            // ET_EXEC
	b = le.AppendUint16(b, 62)           // EM_X86_64
	b = le.AppendUint32(b, 1)            // version
	b = le.AppendUint64(b, base+headers) // entry
	b = le.AppendUint64(b, 64)           // program headers
	b = le.AppendUint64(b, 0)            // no sections
	b = le.AppendUint32(b, 0)            // flags
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v) // sizes and counts of headers
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // read, execute
	size := uint64(headers + len(helperCode))
	for _, v := range []uint64{0, base, base, size, size, 0x1000} {
		b = le.AppendUint64(b, v) // offset, addresses, sizes, alignment
	}
	return append(b, helperCode...)
}
