package harness

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Snapshot is everything that /proc shows of a job's tasks, one entry a value: "4711/4712 status Uid" -> "0 0 0 0".
type Snapshot map[string]string

// statNames are the fields of /proc/PID/stat, proc_pid_stat(5), from the third on.
var statNames = strings.Fields(`state ppid pgrp session tty_nr tpgid flags minflt cminflt majflt cmajflt utime stime cutime cstime priority nice
	num_threads itrealvalue starttime vsize rss rsslim startcode endcode startstack kstkesp kstkeip signal blocked sigignore sigcatch wchan nswap cnswap
	exit_signal processor rt_priority policy delayacct_blkio_ticks guest_time cguest_time start_data end_data start_brk arg_start arg_end env_start
	env_end exit_code`)

// taskFiles are read whole, for every thread; processFiles for the process.
var (
	taskFiles = []string{"comm", "personality", "timerslack_ns", "oom_score_adj", "cgroup", "loginuid", "sessionid", "children", "setgroups",
		"cpuset", "oom_adj", "uid_map", "gid_map", "projid_map", "attr/current", "attr/exec", "attr/fscreate", "attr/keycreate", "attr/sockcreate"}
	processFiles = []string{"cmdline", "environ", "auxv", "coredump_filter", "timers", "limits", "autogroup", "timens_offsets"}
	links        = []string{"cwd", "root", "exe"}
)

// TakeSnapshot reads all tasks of the job. They should be frozen: a running task changes under the reader.
func (j *Job) TakeSnapshot() Snapshot {
	s := Snapshot{}
	names := anonymousNames{}
	open := &openFiles{byInode: map[string][]openFile{}}
	defer open.close()
	pids := j.Tasks()
	sort.Ints(pids)
	for _, pid := range pids {
		s.process(j, pid, names, open)
	}
	return s
}

// anonymousNames give objects without a lasting number ("pipe:[1234]") a name by the order in which they are met, so
// that who shares what is compared and the numbers are not.
type anonymousNames map[string]string

func (a anonymousNames) name(link string) string {
	kind, rest, ok := strings.Cut(link, ":[")
	if ok && strings.HasSuffix(rest, "]") && kind != "anon_inode" {
		if a[link] == "" {
			a[link] = fmt.Sprintf("%s#%d", kind, len(a)+1)
		}
		return a[link]
	}
	if strings.HasPrefix(link, "/") && strings.HasSuffix(link, " (deleted)") { // who shares it is kept, its former name is not
		if a[link] == "" {
			a["deleted"] += "+"
			a[link] = fmt.Sprintf("deleted#%d", len(a["deleted"]))
		}
		return a[link]
	}
	return link
}

func (s Snapshot) process(j *Job, pid int, names anonymousNames, open *openFiles) {
	dir := fmt.Sprintf("/proc/%d", pid)
	put := func(key, value string) { s[fmt.Sprintf("%d %s", pid, key)] = value }
	for _, f := range processFiles {
		if f == "limits" && State(pid) == 'Z' {
			continue // of no more use to the dead
		}
		if data, err := os.ReadFile(filepath.Join(dir, f)); err == nil {
			put(f, autogroup.ReplaceAllString(printable(string(data)), "autogroup"))
		}
	}
	for _, l := range links {
		if to, err := os.Readlink(filepath.Join(dir, l)); err == nil {
			put(l, names.name(to))
		}
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "ns")); err == nil {
		for _, e := range entries {
			if to, err := os.Readlink(filepath.Join(dir, "ns", e.Name())); err == nil {
				mine, err := os.Readlink("/proc/self/ns/" + e.Name())
				if err == nil && to != mine {
					to = names.name(to) // one of its own is another one afterwards, the same for all
				}
				put("ns "+e.Name(), to)
			}
		}
	}
	for _, m := range readMappings(pid) {
		put("maps "+m.where, m.what)
	}
	s.descriptors(pid, names, open)
	s.mounts(pid)
	root := 0
	if pid == j.Pid {
		root = pid
	}
	workers := 0
	var tids []int
	for _, tid := range Threads(pid) {
		if ioWorker(pid, tid) {
			workers++
			continue
		}
		tids = append(tids, tid)
		s.task(pid, tid, root)
	}
	for _, tid := range tids {
		for _, count := range []string{"stat num_threads", "status Threads"} {
			key := fmt.Sprintf("%d/%d %s", pid, tid, count)
			if n, err := strconv.Atoi(s[key]); err == nil {
				s[key] = strconv.Itoa(n - workers)
			}
		}
	}
}

// ioWorker says whether a thread is one that the kernel has made to work for io_uring: it comes and goes as there is work.
func ioWorker(pid, tid int) bool {
	const flag = 0x10 // PF_IO_WORKER, linux/sched.h
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, tid))
	if err != nil {
		return false
	}
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(f) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(f[6], 10, 64) // the 9th field, flags
	return err == nil && flags&flag != 0
}

// printable keeps a short text and gives the length and bytes of a binary one.
func printable(v string) string {
	v = strings.TrimRight(v, "\n")
	for _, r := range v {
		if r < ' ' && r != '\n' && r != '\t' || r == 0xfffd {
			return hex.EncodeToString([]byte(v))
		}
	}
	return v
}

func (s Snapshot) task(pid, tid, root int) {
	dir := fmt.Sprintf("/proc/%d/task/%d", pid, tid)
	put := func(key, value string) { s[fmt.Sprintf("%d/%d %s", pid, tid, key)] = value }
	dead := State(tid) == 'Z'
	// ppoll and its like put a mask in force while they wait; frozen inside, the task shows that one before and its own one after, when the call is
	// about to be made again.
	swapped := false
	if call, err := os.ReadFile(dir + "/syscall"); err == nil {
		nr, _, _ := strings.Cut(string(call), " ")
		swapped = swapsMask[nr]
	}
	if data, err := os.ReadFile(dir + "/status"); err == nil {
		for _, line := range strings.Split(string(data), "\n") {
			name, value, _ := strings.Cut(line, ":")
			if name == "" || ignoredStatus[name] != "" || name == "PPid" && pid == root || dead && ignoredZombie[name] != "" {
				continue
			}
			if swapped && name == "SigBlk" {
				value = anyValue
			}
			put("status "+name, strings.Join(strings.Fields(value), " "))
		}
	}
	if data, err := os.ReadFile(dir + "/stat"); err == nil {
		end := strings.LastIndexByte(string(data), ')')
		for i, v := range strings.Fields(string(data[end+1:])) {
			name := fmt.Sprintf("field %d", i+3)
			if i < len(statNames) {
				name = statNames[i]
			}
			if ignoredStat[name] != "" || name == "ppid" && pid == root || dead && ignoredZombie[name] != "" {
				continue
			}
			if swapped && name == "blocked" {
				v = anyValue
			}
			put("stat "+name, v)
		}
	}
	if !dead {
		scheduling(tid, put)
	}
	for _, f := range taskFiles {
		if f == "sessionid" && ignoredTask[f] != "" {
			continue
		}
		if data, err := os.ReadFile(dir + "/" + f); err == nil {
			value := emptyGroup.ReplaceAllString(freezerGroup.ReplaceAllString(printable(string(data)), "$1"), ":/$1")
			if f == "children" { // the order of their births, which a restore may change
				names := strings.Fields(value)
				sort.Strings(names)
				value = strings.Join(names, " ")
			}
			put(f, value)
		}
	}
}

// autogroup is the name of a scheduler's autogroup, whose number is given at birth.
var autogroup = regexp.MustCompile(`autogroup-\d+`)

// scheduling asks what /proc does not show, or not exactly.
func scheduling(tid int, put func(key, value string)) {
	if a, err := unix.SchedGetAttr(tid, 0); err == nil {
		put("sched_getattr", fmt.Sprintf("%+v", *a))
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(tid, &set); err == nil {
		put("sched_getaffinity", fmt.Sprintf("%x", set))
	}
	if nice, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err == nil {
		put("getpriority", strconv.Itoa(nice))
	}
	const who = 1 // IOPRIO_WHO_PROCESS
	if prio, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, who, uintptr(tid), 0); errno == 0 {
		put("ioprio_get", strconv.Itoa(int(prio)))
	}
}

// anyValue equals whatever the other snapshot has.
const anyValue = "*"

// swapsMask are the amd64 numbers of rt_sigsuspend, pselect6, ppoll, epoll_pwait, epoll_pwait2.
var swapsMask = map[string]bool{"130": true, "270": true, "271": true, "281": true, "441": true}

// freezerGroup is what a freeze adds to the path of a cgroup while it lasts, emptyGroup what is then left of the root's. One that ended while it
// was being frozen stays there, and one that is restored dead was never in it.
var (
	freezerGroup = regexp.MustCompile(`/?crpipe-[0-9a-f]+(\n|$)`)
	emptyGroup   = regexp.MustCompile(`:(\n|$)`)
)

func (s Snapshot) descriptors(pid int, names anonymousNames, open *openFiles) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	var fds []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			fds = append(fds, n)
		}
	}
	sort.Ints(fds)
	for _, fd := range fds {
		link, err := os.Readlink(fmt.Sprintf("%s/%d", dir, fd))
		if err != nil {
			continue
		}
		lasting := strings.HasPrefix(link, "/") && !strings.HasSuffix(link, " (deleted)") && !strings.HasPrefix(link, "/memfd:")
		var value string
		// A file with a name is what it is by device and inode: the name by which it was opened may be gone and another one left.
		var st syscall.Stat_t
		if err := syscall.Stat(fmt.Sprintf("%s/%d", dir, fd), &st); err == nil && st.Mode&syscall.S_IFMT == syscall.S_IFREG && st.Nlink > 0 && !strings.HasPrefix(link, "/proc/") {
			var fs syscall.Statfs_t
			if err := syscall.Statfs(fmt.Sprintf("%s/%d", dir, fd), &fs); err == nil && int64(fs.Type) == mqueueMagic {
				value, lasting = names.name(fmt.Sprintf("mqueue:[%d]", st.Ino)), false // who shares the queue is kept
			} else {
				value, lasting = fmt.Sprintf("file %x:%d", st.Dev, st.Ino), true
			}
		} else {
			value = names.name(link)
		}
		s[fmt.Sprintf("%d fd %d", pid, fd)] = value
		open.ask(pid, fd, func(name, value string) { s[fmt.Sprintf("%d fd %d %s", pid, fd, name)] = value })
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
		if err != nil {
			continue
		}
		var items []string
		for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
			name, value, _ := strings.Cut(line, ":")
			value = strings.Join(strings.Fields(value), " ")
			switch {
			case name == "ino" && (!lasting || strings.HasPrefix(link, "/proc/")), name == "mnt_id" && !lasting, ignoredFdinfo[name] != "":
			case name == "tfd":
				items = append(items, epollItem(value))
			case name == "it_value": // time passes between the two looks
				s[fmt.Sprintf("%d fdinfo %d it_value", pid, fd)] = map[bool]string{true: "armed", false: "disarmed"}[value != "(0, 0)"]
			default:
				if name == "flags" { // O_NOFOLLOW matters only while a file is opened, and a deleted one is opened by other means
					if n, err := strconv.ParseUint(value, 8, 64); err == nil {
						value = strconv.FormatUint(n&^unix.O_NOFOLLOW, 8)
					}
				}
				s[fmt.Sprintf("%d fdinfo %d %s", pid, fd, name)] = value
			}
		}
		if len(items) > 0 {
			sort.Strings(items)
			s[fmt.Sprintf("%d fdinfo %d items", pid, fd)] = strings.Join(items, "; ")
		}
	}
}

const mqueueMagic = 0x19800202 // MQUEUE_MAGIC of ipc/mqueue.c

// epollItem keeps the descriptor, the events and the data of a "tfd:" line; position, inode and device of the target
// are the target's own.
func epollItem(value string) string {
	if i := strings.Index(value, " pos:"); i >= 0 {
		value = value[:i]
	}
	return value
}

// mapping is one range with equal attributes; neighbours that differ in nothing are one.
type mapping struct{ where, what string }

// readMappings reads smaps for ranges, permissions, offset, name and VmFlags. Two neighbours that would be one mapping had
// they been made at once are shown as one: whether the kernel has joined them is its own affair (it depends on the order
// in which pages were touched).
func readMappings(pid int) []mapping {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil
	}
	type area struct {
		start, end, offset uint64
		perms, name, flags string
	}
	var areas []area
	for _, line := range strings.Split(string(data), "\n") {
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && len(areas) > 0 {
			var kept []string
			for _, f := range strings.Fields(flags) {
				if ignoredVMFlags[f] == "" {
					kept = append(kept, f)
				}
			}
			if a := &areas[len(areas)-1]; a.perms == "r--s" { // "sh" says then how the file was opened, and nothing can be written either way
				kept = slices.DeleteFunc(kept, func(f string) bool { return f == "sh" })
			}
			areas[len(areas)-1].flags = strings.Join(kept, " ")
			continue
		}
		f := strings.SplitN(line, " ", 6)
		if len(f) < 6 || strings.HasSuffix(f[0], ":") {
			continue
		}
		var a area
		if _, err := fmt.Sscanf(f[0], "%x-%x", &a.start, &a.end); err != nil {
			continue
		}
		a.perms, a.name = f[1], strings.TrimSpace(f[5])
		if strings.HasPrefix(a.name, "/") && strings.HasSuffix(a.name, " (deleted)") && !strings.HasPrefix(a.name, "/memfd:") {
			a.name = "(deleted)" // its former name is not kept
		}
		a.offset, _ = strconv.ParseUint(f[2], 16, 64)
		areas = append(areas, a)
	}
	var out []mapping
	for i := 0; i < len(areas); {
		a := areas[i]
		i++
		for i < len(areas) && areas[i].start == a.end && areas[i].perms == a.perms && areas[i].name == a.name && areas[i].flags == a.flags &&
			(strings.HasPrefix(a.name, "[") || a.name == "" || areas[i].offset == a.offset+(a.end-a.start)) {
			a.end = areas[i].end
			i++
		}
		what := fmt.Sprintf("%s %s [%s]", a.perms, a.name, a.flags)
		if a.name != "" && !strings.HasPrefix(a.name, "[") {
			what = fmt.Sprintf("%s %s+%x [%s]", a.perms, a.name, a.offset, a.flags)
		}
		out = append(out, mapping{where: fmt.Sprintf("%012x-%012x", a.start, a.end), what: what})
	}
	return out
}

// Diff lists what differs between two snapshots.
func (s Snapshot) Diff(after Snapshot) []string {
	var out []string
	for k, v := range s {
		if w, ok := after[k]; !ok {
			out = append(out, fmt.Sprintf("%s: gone, was %s", k, short(v)))
		} else if w != v && v != anyValue && w != anyValue && !timerExpired(k, v, w) {
			out = append(out, fmt.Sprintf("%s: was %s, is %s", k, short(v), short(w)))
		}
	}
	for k, w := range after {
		if _, ok := s[k]; !ok {
			out = append(out, fmt.Sprintf("%s: new, is %s", k, short(w)))
		}
	}
	sort.Strings(out)
	return out
}

// timerExpired says whether two sets of pending signals of a process differ by a SIGALRM only that has come: timers of real time go on while a
// tree stands frozen.
func timerExpired(key, before, after string) bool {
	if !strings.HasSuffix(key, " status ShdPnd") {
		return false
	}
	was, err := strconv.ParseUint(before, 16, 64)
	now, err2 := strconv.ParseUint(after, 16, 64)
	return err == nil && err2 == nil && now == was|1<<(syscall.SIGALRM-1)
}

func short(v string) string {
	if len(v) > 300 {
		v = v[:300] + "..."
	}
	return strconv.Quote(v)
}
