package kernelview

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// What is read of unix sockets (include/net/af_unix.h, include/net/scm.h).
var (
	fUxAddr    = want("unix_sock.addr")
	fUxMount   = want("unix_sock.path.mnt")
	fUxDentry  = want("unix_sock.path.dentry")
	fUxPeer    = want("unix_sock.peer")
	fUxOOB     = want("unix_sock.oob_skb")
	fUxInq     = want("unix_sock.recvmsg_inq")
	fUxAddrLen = want("unix_address.len")
	fUxName    = want("unix_address.name")

	fSkHash     = want("sock.__sk_common.skc_hash")
	fSkBindNode = want("sock.__sk_common.skc_bind_node.pprev")
	fSkPeerPid  = want("sock.sk_peer_pid")
	fSkPeerCred = want("sock.sk_peer_cred")

	fCredEUID   = want("cred.euid")
	fCredEGID   = want("cred.egid")
	fCredGroups = want("cred.group_info")
	fGroupCount = want("group_info.ngroups")
	fGroupIDs   = want("group_info.gid")

	fDInode    = want("dentry.d_inode")
	fDHash     = want("dentry.d_hash.pprev")
	fMountRoot = want("vfsmount.mnt_root")

	fCbPid      = want("unix_skb_parms.pid")
	fCbUID      = want("unix_skb_parms.uid")
	fCbGID      = want("unix_skb_parms.gid")
	fCbFiles    = want("unix_skb_parms.fp")
	fCbSecurity = want("unix_skb_parms.secid") // with CONFIG_SECURITY_NETWORK only
	fCbConsumed = want("unix_skb_parms.consumed")
	fFpCount    = want("scm_fp_list.count")
	fFpFiles    = want("scm_fp_list.fp")
)

const (
	maxGroups = 65536 // NGROUPS_MAX

	// unixBoundHash is where the places of abstract names begin in the hash table of sockets: behind those of sockets that
	// no name finds (UNIX_HASH_SIZE / 2).
	unixBoundHash = 256
)

// Unix tells all of a unix socket that Files has shown. Any other is an error that matches ErrKind.
func (v *bpfView) Unix(file ID) (Unix, error) {
	sk, _, err := v.sockOf(file)
	if err != nil {
		return Unix{}, err
	}
	return v.unixSocket(sk)
}

// UnixOf tells the same of a socket that an answer has named, be there an open file of it or not.
func (v *bpfView) UnixOf(socket ID) (Unix, error) {
	if socket > 0 && socket <= ID(len(v.addrs)) {
		return v.unixSocket(v.addrs[socket-1])
	}
	return Unix{}, fmt.Errorf("reading a unix socket: %w", ErrKind)
}

func (v *bpfView) unixSocket(addr uint64) (Unix, error) {
	l := v.l
	for _, f := range []field{fUxAddr, fUxMount, fUxDentry, fUxPeer, fUxAddrLen, fUxName, fSkHash, fSkPeerPid, fSkPeerCred, fCredEUID, fCredEGID,
		fCredGroups, fGroupCount, fGroupIDs, fDInode, fCbPid, fCbUID, fCbGID, fCbFiles, fCbConsumed, fFpCount, fFpFiles} {
		if !l.has(f) {
			return Unix{}, &MissingError{What: "a kernel whose structures are known (" + fieldPaths[f] + " is not in its BTF)"}
		}
	}
	s, err := v.socket(addr)
	if err != nil {
		return Unix{}, err
	}
	if s.Family != unix.AF_UNIX {
		return Unix{}, fmt.Errorf("reading a unix socket: %w", ErrKind)
	}
	u := Unix{Socket: s, Dead: s.State == SocketClosed && s.Shutdown == ShutRead|ShutWrite && s.File == 0}
	packets := u.Receive
	u.Receive = nil
	b, err := v.mem.peek(addr, l.span["unix_sock"])
	if err != nil {
		return Unix{}, fmt.Errorf("reading a unix socket: %w", err)
	}
	peer, _ := l.uint(b, fUxPeer)
	u.Peer = v.id(peer)
	inq, _ := l.uint(b, fUxInq)
	u.Inq = inq != 0
	if err := v.unixAddress(&u, addr, b); err != nil {
		return Unix{}, fmt.Errorf("reading the address of a unix socket: %w", err)
	}
	if err := v.peerCred(&u, addr); err != nil {
		return Unix{}, fmt.Errorf("reading the credentials of a unix socket: %w", err)
	}
	oob, _ := l.uint(b, fUxOOB)
	for i := range packets {
		if u.State == SocketListening {
			embryo, _ := l.uint(packets[i].block, fSkbSk)
			p, err := v.unixSocket(embryo)
			if err != nil {
				return Unix{}, err
			}
			u.Pending = append(u.Pending, p)
			continue
		}
		m, err := v.unixMessage(&packets[i])
		if err != nil {
			return Unix{}, fmt.Errorf("reading a message in a unix socket: %w", err)
		}
		m.OOB = oob != 0 && packets[i].addr == oob
		u.OOB = u.OOB || m.OOB
		u.Messages = append(u.Messages, m)
	}
	return u, nil
}

// unixAddress reads the name of a socket, and where it lies.
func (v *bpfView) unixAddress(u *Unix, sock uint64, b []byte) error {
	l := v.l
	at, _ := l.uint(b, fUxAddr)
	if at == 0 {
		return nil
	}
	head, err := v.mem.peek(at, l.span["unix_address"])
	if err != nil {
		return err
	}
	n, _ := l.uint(head, fUxAddrLen)
	const family, longest = 2, 128
	if n <= family || n > longest {
		return errFault
	}
	name, err := v.mem.peek(at+l.off(fUxName), int(n))
	if err != nil {
		return err
	}
	u.Address = name[family:]
	s, err := v.sock(sock)
	if err != nil {
		return err
	}
	hash, _ := l.uint(s, fSkHash)
	dentry, _ := l.uint(b, fUxDentry)
	if dentry == 0 {
		u.Bound = uint32(hash) >= unixBoundHash
		return nil
	}
	node, ok := l.uint(s, fSkBindNode)
	if !ok {
		return missingField(KindSocket)
	}
	u.Bound = node != 0
	d, err := v.mem.peek(dentry, l.span["dentry"])
	if err != nil {
		return err
	}
	ino, _ := l.uint(d, fDInode)
	if ino == 0 {
		return nil
	}
	i, err := v.mem.peek(ino, l.span["inode"])
	if err != nil {
		return err
	}
	u.Ino, _ = l.uint(i, fIIno)
	links := num[uint32](l, i, fINlink)
	u.Links = links.V
	sb, _ := l.uint(i, fISB)
	super, err := v.mem.peek(sb, l.span["super_block"])
	if err != nil {
		return err
	}
	u.Dev = deviceNumber(num[uint32](l, super, fSBDev)).V
	if hashed, ok := l.uint(d, fDHash); !ok || hashed == 0 {
		return nil // its name was taken away
	}
	mnt, _ := l.uint(b, fUxMount)
	return v.nameOf(u, mnt, dentry)
}

// nameOf finds the path of a directory entry within its mount.
func (v *bpfView) nameOf(u *Unix, mnt, dentry uint64) error {
	l := v.l
	if !l.has(fDParent) || !l.has(fDName) || !l.has(fDNameLen) || !l.has(fMountRoot) || !l.has(fMntMnt) || !l.has(fMntID) {
		return nil
	}
	m, err := v.mem.peek(mnt-l.off(fMntMnt), l.span["mount"])
	if err != nil {
		return err
	}
	w, err := v.mem.peek(mnt, l.span["vfsmount"])
	if err != nil {
		return err
	}
	root, _ := l.uint(w, fMountRoot)
	const deepest, longest = 2048, 255 // PATH_MAX / 2, NAME_MAX
	path := ""
	for range deepest {
		if dentry == root {
			u.Mount, u.Name = num[int32](l, m, fMntID).V, path
			return nil
		}
		d, err := v.mem.peek(dentry, l.span["dentry"])
		if err != nil {
			return err
		}
		at, _ := l.uint(d, fDName)
		n, _ := l.uint(d, fDNameLen)
		if n == 0 || n > longest {
			return errFault
		}
		name, err := v.mem.peek(at, int(n))
		if err != nil {
			return err
		}
		path = "/" + string(name) + path
		parent, _ := l.uint(d, fDParent)
		if parent == dentry { // the root of a file system that is not mounted as a whole
			return nil
		}
		dentry = parent
	}
	return errFault
}

// peerCred reads who was at the other end when it was connected, or whom others will be told when they connect.
func (v *bpfView) peerCred(u *Unix, sock uint64) error {
	l := v.l
	s, err := v.sock(sock)
	if err != nil {
		return err
	}
	pid, _ := l.uint(s, fSkPeerPid)
	cred, _ := l.uint(s, fSkPeerCred)
	if pid == 0 && cred == 0 {
		return nil
	}
	c := &PeerCred{Process: v.id(pid)}
	if c.Numbers, c.PID, err = v.innerNumbers(pid); err != nil {
		return err
	}
	if cred != 0 {
		b, err := v.mem.peek(cred, l.span["cred"])
		if err != nil {
			return err
		}
		uid, _ := l.uint(b, fCredEUID)
		gid, _ := l.uint(b, fCredEGID)
		groups, _ := l.uint(b, fCredGroups)
		c.UID, c.GID = uint32(uid), uint32(gid)
		head, err := v.mem.peek(groups, int(l.off(fGroupIDs)))
		if err != nil {
			return err
		}
		n, _ := l.uint(head, fGroupCount)
		if n > maxGroups {
			return errFault
		}
		if n > 0 {
			all, err := v.mem.peek(groups+l.off(fGroupIDs), int(n)*4)
			if err != nil {
				return err
			}
			for i := range n {
				c.Groups = append(c.Groups, binary.NativeEndian.Uint32(all[i*4:]))
			}
		}
	}
	u.PeerCred = c
	return nil
}

// innerNumbers returns the numbers that a struct pid has from the caller's namespace inwards, and the first of them; none and 0 where it
// is not in that. They stay when the process has ended.
func (v *bpfView) innerNumbers(pid uint64) ([]int, int, error) {
	if pid == 0 {
		return nil, 0, nil
	}
	l := v.l
	b, err := v.mem.peek(pid, l.span["pid"])
	if err != nil {
		return nil, 0, err
	}
	level, ok := l.uint(b, fPidLevel)
	if !ok || level > 32 { // MAX_PID_NS_LEVEL
		return nil, 0, errFault
	}
	size := int(l.fields[fUpidSize].size)
	all, err := v.mem.peek(pid+l.off(fPidNumbers), int(level+1)*size)
	if err != nil {
		return nil, 0, err
	}
	if level < v.pidLevel {
		return nil, 0, nil
	}
	var out []int
	for i := int(v.pidLevel); i <= int(level); i++ {
		one := all[i*size : (i+1)*size]
		if ns, _ := l.uint(one, fUpidNS); len(out) == 0 && ns != v.pidNS {
			return nil, 0, nil
		}
		n, _ := l.uint(one, fUpidNr)
		out = append(out, int(int32(n)))
	}
	return out, out[0], nil
}

// unixMessage reads what a message carries beside its bytes (struct unix_skb_parms in the buffer's cb).
func (v *bpfView) unixMessage(p *Packet) (UnixMessage, error) {
	l := v.l
	if len(p.control) < l.span["unix_skb_parms"] {
		return UnixMessage{}, missingField(KindSocket)
	}
	get := func(f field) uint64 { n, _ := l.uint(p.control, f); return n }
	m := UnixMessage{Sender: p.Sock, Time: p.Time, UID: uint32(get(fCbUID)), GID: uint32(get(fCbGID)), Security: uint32(get(fCbSecurity))}
	consumed := get(fCbConsumed)
	if consumed > uint64(len(p.Data)) {
		return UnixMessage{}, errFault
	}
	m.Data = p.Data[consumed:]
	var err error
	if m.Numbers, m.PID, err = v.innerNumbers(get(fCbPid)); err != nil {
		return UnixMessage{}, err
	}
	m.Credentials = get(fCbPid) != 0 || m.UID != ^uint32(0)
	at := get(fCbFiles)
	if at == 0 {
		return m, nil
	}
	b, err := v.mem.peek(at, l.span["scm_fp_list"])
	if err != nil {
		return UnixMessage{}, err
	}
	n, _ := l.uint(b, fFpCount)
	list, _ := l.bytes(b, fFpFiles)
	if n > uint64(len(list)/8) {
		return UnixMessage{}, errFault
	}
	addrs := make([]uint64, n)
	for i := range n {
		addrs[i] = binary.NativeEndian.Uint64(list[i*8:])
		m.Files = append(m.Files, v.id(addrs[i]))
	}
	return m, nil
}

// UnixView is what a View may offer beside: all of unix sockets, also of those that no descriptor leads to.
type UnixView interface {
	LeakView
	// Unix tells of the socket behind an open file, UnixOf of one that an answer has named (a peer, a sender).
	Unix(file ID) (Unix, error)
	UnixOf(socket ID) (Unix, error)
}

// SortIDs sorts a list of identities and takes out what is there twice.
func SortIDs(ids []ID) []ID {
	slices.SortFunc(ids, cmp.Compare)
	return slices.Compact(ids)
}
