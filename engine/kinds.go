package engine

import (
	"crpipe/engine/events"
	"crpipe/engine/files"
	"crpipe/engine/ipc"
	"crpipe/engine/memory"
	"crpipe/engine/namespaces"
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/engine/sockets"
	"crpipe/engine/tasks"
	"crpipe/engine/terminals"
)

// fileKinds is THE table of kinds of open files, in the order in which they are asked whether a file is theirs: what
// is external or not what its path says comes before what would take it for an ordinary file.
func fileKinds() []object.FileKind {
	return []object.FileKind{
		files.ExternalKind,
		events.EventfdKind,
		events.TimerfdKind,
		events.SignalfdKind,
		events.PidfdKind,
		events.InotifyKind,
		events.FanotifyKind,
		events.EpollKind,
		events.URingKind,
		sockets.UDPKind,
		sockets.RawKind,
		sockets.NetlinkKind,
		sockets.PacketKind,
		terminals.MasterKind,
		terminals.SlaveKind,
		sockets.TCPKind,
		sockets.UnixKind,
		ipc.MqueueKind,
		files.ProcKind,
		files.OPathKind,
		files.DeviceKind,
		files.PipeKind,
		files.DirectoryKind,
		files.MemfdKind,
		files.DeletedKind,
		files.RegularKind,
	}
}

// otherKinds is the table of all other records that an image may hold.
func otherKinds() []object.Kind {
	return append([]object.Kind{
		namespaces.PIDKind,
		namespaces.MountsKind,
		namespaces.UTSKind,
		namespaces.NetKind,
		namespaces.TimeKind,
		namespaces.CgroupKind,
		ipc.NamespaceKind,
		ipc.SemKind,
		ipc.UndoKind,
		ipc.MsgKind,
		ipc.MqueueObject,
		files.PipeObject,
		files.FIFOObject,
		files.RemovedFIFOObject,
		files.RemovedDirectoryObject,
		files.DeletedObject,
		files.MemfdObject,
		files.TableKind,
		files.FSKind,
		terminals.PairObject,
		terminals.OutsideObject,
		events.EpollObject,
		events.EpollLink,
		events.InotifyObject,
		events.InotifyLink,
		events.FanotifyObject,
		events.FanotifyLink,
		sockets.QueueObject,
		sockets.UnixObject,
		sockets.UnixLink,
		sockets.UnixQueue,
		signals.SighandKind,
		tasks.ProcessKind,
		tasks.FilterKind,
		tasks.KeyringKind,
		tasks.ThreadKind,
		sockets.HoldObject,
	}, memory.Kinds()...)
}

// allKinds is every kind of record that a restore knows.
func allKinds() []object.Kind {
	kinds := otherKinds()
	for _, k := range fileKinds() {
		kinds = append(kinds, k.AsKind())
	}
	return kinds
}
