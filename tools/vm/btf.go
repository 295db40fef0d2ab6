package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// writeBTF writes the type information that a kernel has of itself, without booting it: what /sys/kernel/btf/vmlinux would be.
func writeBTF(ctx context.Context, k kernel, path string) error {
	image, err := os.ReadFile(k.image)
	if err != nil {
		return err
	}
	vmlinux, err := payload(ctx, image)
	if err != nil {
		return fmt.Errorf("unpacking %s: %w", k.image, err)
	}
	f, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return err
	}
	section := f.Section(".BTF")
	if section == nil {
		return fmt.Errorf("%s has no section .BTF", k.image)
	}
	data, err := section.Data()
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// payload returns the kernel's ELF file out of a bzImage. Its header (Documentation/arch/x86/boot.rst) tells where it is packed:
// setup_sects sectors of 512 bytes and one more are the loader's, and payload_offset counts from there.
func payload(ctx context.Context, image []byte) ([]byte, error) {
	const setupSects, magic, version, offset, length = 0x1f1, 0x202, 0x206, 0x248, 0x24c
	if len(image) < 0x250 || string(image[magic:magic+4]) != "HdrS" || binary.LittleEndian.Uint16(image[version:]) < 0x208 {
		return nil, errors.New("no bzImage")
	}
	from := (uint64(image[setupSects])+1)*512 + uint64(binary.LittleEndian.Uint32(image[offset:]))
	to := from + uint64(binary.LittleEndian.Uint32(image[length:]))
	if to > uint64(len(image)) || to < from+4 {
		return nil, errors.New("the payload is not in the image")
	}
	packed := image[from : to-4] // the length unpacked follows (scripts/Makefile.lib, size_append)
	for _, p := range []struct{ magic, program string }{{"\xfd7zXZ\x00", "xz"}, {"\x28\xb5\x2f\xfd", "zstd"}} {
		if bytes.HasPrefix(packed, []byte(p.magic)) {
			cmd := exec.CommandContext(ctx, p.program, "-dc")
			cmd.Stdin = bytes.NewReader(packed)
			return cmd.Output()
		}
	}
	return nil, fmt.Errorf("packed in an unknown way: it begins with %x", packed[:min(8, len(packed))])
}
