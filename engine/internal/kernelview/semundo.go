package kernelview

import (
	"encoding/binary"
	"fmt"
)

// SemUndoView is a View that can read the adjustments of System V semaphores (SEM_UNDO of semop(2)), which no file and no call shows.
type SemUndoView interface {
	// SemUndo tells what lists of adjustments (Thread.SysVSem of the last Threads call) have of each set. count says how many
	// semaphores a set has, -1 if there is none of that id any more.
	SemUndo(lists []ID, count func(semid int32) int) ([]SemUndo, error)
}

// SemUndo is what one list of adjustments has of one set of semaphores.
type SemUndo struct {
	List   ID
	SemID  int32
	Adjust []int16 // by semaphore, what is added when the last task with the list ends
	// Outside says that a list that was not asked for has adjustments of the set as well.
	Outside bool
}

var (
	fUndoNext   = want("sem_undo.list_proc")
	fUndoList   = want("sem_undo.ulp")
	fUndoSame   = want("sem_undo.list_id")
	fUndoSemID  = want("sem_undo.semid")
	fUndoAdjust = want("sem_undo.semadj")
)

const (
	maxUndo      = 1 << 16 // entries of a list: the sets of a namespace (IPCMNI), and some that are gone
	maxSemaphore = 1 << 16 // semaphores of a set: an index has 16 bits
)

// SemUndo is documented with SemUndoView.
func (v *bpfView) SemUndo(lists []ID, count func(semid int32) int) ([]SemUndo, error) {
	l := v.l
	for _, f := range []field{fUndoProc, fUndoNext, fUndoList, fUndoSame, fUndoSemID, fUndoAdjust} {
		if !l.has(f) {
			return nil, &MissingError{What: "a kernel whose structures are known (that of SEM_UNDO is not in its BTF)"}
		}
	}
	ours := map[uint64]ID{}
	for _, id := range lists {
		if a := v.undoLists[id]; a != 0 {
			ours[a] = id
		} else {
			return nil, fmt.Errorf("reading semaphore adjustments: %w", ErrKind)
		}
	}
	var out []SemUndo
	for _, id := range lists {
		list := v.undoLists[id]
		head, err := v.mem.peek(list, l.span["sem_undo_list"])
		if err != nil {
			return nil, err
		}
		link, _ := l.bytes(head, fUndoProc)
		for n := 0; ; n++ {
			next := binary.NativeEndian.Uint64(link)
			if next == list+l.off(fUndoProc) {
				break
			}
			if n == maxUndo {
				return nil, errFault
			}
			at := next - l.off(fUndoNext)
			b, err := v.mem.peek(at, l.span["sem_undo"])
			if err != nil {
				return nil, err
			}
			link, _ = l.bytes(b, fUndoNext)
			if owner, _ := l.uint(b, fUndoList); owner != list || len(link) < 8 {
				return nil, errFault
			}
			semid := num[int32](l, b, fUndoSemID)
			if semid.V < 0 { // the set was removed
				continue
			}
			size := count(semid.V)
			if size <= 0 || size > maxSemaphore {
				continue // likewise
			}
			u := SemUndo{List: id, SemID: semid.V}
			if u.Adjust, err = v.adjustments(at, b, size); err != nil {
				return nil, err
			}
			if u.Outside, err = v.undoneByOthers(at, b, semid.V, ours); err != nil {
				return nil, err
			}
			out = append(out, u)
		}
	}
	return out, nil
}

// adjustments reads the array behind a sem_undo; before Linux 6.4 its address is in there.
func (v *bpfView) adjustments(at uint64, b []byte, count int) ([]int16, error) {
	from := at + v.l.off(fUndoAdjust)
	if v.l.fields[fUndoAdjust].kind == locPointer {
		from, _ = v.l.uint(b, fUndoAdjust)
	}
	raw, err := v.mem.peek(from, 2*count)
	if err != nil {
		return nil, err
	}
	out := make([]int16, count)
	for i := range out {
		out[i] = int16(binary.NativeEndian.Uint16(raw[2*i:]))
	}
	return out, nil
}

// undoneByOthers walks the ring of all adjustments of a set, in which the set itself stands too. An entry is told from that by the two rings
// that it is in.
func (v *bpfView) undoneByOthers(first uint64, b []byte, semid int32, ours map[uint64]ID) (bool, error) {
	l := v.l
	link, _ := l.bytes(b, fUndoSame)
	for n := 0; n < maxUndo; n++ {
		if len(link) < 8 {
			return false, errFault
		}
		at := binary.NativeEndian.Uint64(link) - l.off(fUndoSame)
		if at == first {
			return false, nil
		}
		b, err := v.mem.peek(at, l.span["sem_undo"])
		if err != nil {
			return false, err
		}
		link, _ = l.bytes(b, fUndoSame)
		list, _ := l.uint(b, fUndoList)
		if num[int32](l, b, fUndoSemID).V != semid || ours[list] != 0 {
			continue
		}
		proc, ok := l.bytes(b, fUndoNext)
		if !ok || len(proc) < 16 {
			continue
		}
		if after, err := v.mem.peek(binary.NativeEndian.Uint64(proc), 16); err == nil && binary.NativeEndian.Uint64(after[8:]) == at+l.off(fUndoNext) {
			return true, nil
		}
	}
	return false, errFault
}
