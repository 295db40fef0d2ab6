package kernelview

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// mayMiss are the fields that some kernel from 6.1 to 6.18 lacks, each of which
// the code has another source for or tells as unknown.
var mayMiss = []string{
	"task_struct.thread.fpu.fpstate", "fpu.fpstate",
	"file.f_count",                           // until 6.12
	"file.f_ref.refcnt",                      // since 6.13
	"task_struct.rseq_len",                   // since 6.3
	"task_struct.se.slice",                   // since 6.6
	"task_struct.se.custom_slice",            // since 6.12
	"signal_struct.timer_create_restore_ids", // since 6.15
	"epitem.dying",                           // since 6.4
	"vm_area_struct.anon_name",               // with CONFIG_ANON_VMA_NAME
	"file_lock.fl_list",                      // until 6.8
	"file_lock.fl_owner",                     // until 6.8
	"file_lock.fl_type",                      // until 6.8
	"file_lock.fl_file",                      // until 6.8
	"file_lock.fl_fasync",                    // until 6.8
	"inet_sock.ipv6_fl_list",                 // since 6.17
	"ipv6_pinfo.ipv6_fl_list",                // until 6.16
	"tcp_sock.ao_info",                       // since 6.7, with CONFIG_TCP_AO
	"sock.sk_policy",                         // with CONFIG_XFRM
	"pipe_inode_info.watch_queue",            // with CONFIG_WATCH_QUEUE
	"cgroup.freezer.freeze_start_nsec",       // since 6.18
	"mm_struct.futex_phash",                  // since 6.16, as the next two
	"futex_private_hash.hash_mask",
	"futex_private_hash.custom",
	"file_lock_core.flc_list",  // since 6.9
	"file_lock_core.flc_owner", // since 6.9
	"file_lock_core.flc_type",  // since 6.9
	"file_lock_core.flc_file",  // since 6.9
	"file_lease.c",             // since 6.9
	"file_lease.fl_fasync",     // since 6.9
	"skb_frag.netmem",          // since 6.10; skb_frag_t was a bio_vec before it
	"skb_frag.len",
	"skb_frag.offset",
	"fsnotify_group.user_ns", // since 6.16
	"tcp_sock.tcp_usec_ts",   // since 6.7
	"bpf_tcp_req_attrs.mss",  // since 6.9
	"unix_sock.recvmsg_inq",  // since 6.17, with SO_INQ
	// Of io_uring:
	"io_ring_ctx.clockid",           // since 6.12
	"io_ring_ctx.file_table.data",   // since 6.13, as the next four
	"io_ring_ctx.buf_table",         //
	"io_rsrc_data.nodes",            //
	"io_rsrc_node.tag",              //
	"io_rsrc_node.file_ptr",         //
	"io_ring_ctx.nr_user_files",     // until 6.12, as the next
	"io_ring_ctx.nr_user_bufs",      //
	"io_ring_ctx.io_bl",             // until 6.8
	"io_ring_ctx.retry_llist.first", // since 6.13
	"io_ring_ctx.param_region.ptr",  // since 6.14
	"io_ring_ctx.zcrx_ctxs.xa_head", // since 6.15
	"io_ring_ctx.nr_req_allocated",  // since 6.16
	"io_kiocb.tctx",                 // since 6.13, as the next
	"io_kiocb.file_node",
	"io_timeout.repeats",                                                                    // since 6.4
	"enum .REQ_F_MULTISHOT_BIT", "enum .REQ_F_POLL_NO_LAZY_BIT", "enum .REQ_F_CAN_POLL_BIT", // 6.7 to 6.10
	"enum .REQ_F_SQE_COPIED_BIT", // since 6.17
}

// either are fields of which every kernel has one: what moved.
var either = [][2]string{
	{"task_struct.thread.fpu.fpstate", "fpu.fpstate"},
	{"file.f_count", "file.f_ref.refcnt"},
	{"file_lock.fl_list", "file_lock_core.flc_list"},
	{"file_lock.fl_owner", "file_lock_core.flc_owner"},
	{"file_lock.fl_type", "file_lock_core.flc_type"},
	{"file_lock.fl_file", "file_lock_core.flc_file"},
	{"file_lock.fl_fasync", "file_lease.fl_fasync"},
	{"io_ring_ctx.nr_user_files", "io_ring_ctx.file_table.data"},
	{"io_ring_ctx.nr_user_bufs", "io_ring_ctx.buf_table"},
	{"inet_sock.ipv6_fl_list", "ipv6_pinfo.ipv6_fl_list"},
}

// TestResolveKernels resolves all fields in the running kernel's BTF, and in
// every file of raw BTF that CRPIPE_TEST_BTF (a glob pattern) names.
func TestResolveKernels(t *testing.T) {
	specs := make(map[string]*btf.Spec)
	if spec, err := btf.LoadKernelSpec(); err == nil {
		specs["running"] = spec
	}
	others, err := filepath.Glob(os.Getenv("CRPIPE_TEST_BTF"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range others {
		spec, err := btf.LoadSpec(path)
		if err != nil {
			t.Fatal(err)
		}
		specs[path] = spec
	}
	if len(specs) == 0 {
		t.Skip("needs BTF of the running kernel, or CRPIPE_TEST_BTF")
	}
	for name, spec := range specs {
		has := make(map[string]bool)
		for i, f := range resolveFields(spec) {
			path := fieldPaths[i]
			has[path] = f.kind != locMissing
			switch {
			case f.kind == locMissing && !slices.Contains(mayMiss, path):
				t.Errorf("%s: %s is missing", name, path)
			case !f.plausible():
				t.Errorf("%s: %s lies at %+v", name, path, f)
			}
		}
		for _, e := range either {
			if !has[e[0]] && !has[e[1]] {
				t.Errorf("%s: neither %s nor %s", name, e[0], e[1])
			}
		}
	}
}

// TestFieldPaths finds what is wanted twice, or cannot be a path.
func TestFieldPaths(t *testing.T) {
	seen := make(map[string]bool)
	for _, p := range fieldPaths {
		if seen[p] || strings.Contains(p, "..") || strings.TrimSpace(p) != p {
			t.Errorf("field %q", p)
		}
		seen[p] = true
	}
	if len(symbolNames)-int(symFirstFile) != len(fileKinds) {
		t.Errorf("%d symbols of files, %d kinds", len(symbolNames)-int(symFirstFile), len(fileKinds))
	}
}
