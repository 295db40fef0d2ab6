package files

import "crpipe/engine/object"

// Kinds returns the kinds of open files of this family in the order of their claims: what leads out of the tree first,
// since it may be of any type.
func Kinds() []object.FileKind {
	return []object.FileKind{
		ExternalKind,
		ProcKind,
		OPathKind,
		DeviceKind,
		PipeKind,
		DirectoryKind,
		MemfdKind,
		DeletedKind,
		RegularKind,
	}
}

// PlainKinds returns the other records of this family.
func PlainKinds() []object.Kind {
	return []object.Kind{TableKind, FSKind, PipeObject, FIFOObject, RemovedFIFOObject, RemovedDirectoryObject, DeletedObject, MemfdObject}
}
